# SPDX-License-Identifier: Apache-2.0
"""Sparse weights and models on disk: safetensors and JSON only, every file treated as hostile."""

from sparsecore.io.bitmask import load_sparse_bitmask, save_sparse_bitmask
from sparsecore.io.model import load_model, save_model
from sparsecore.io.weights import load_weights, save_weights

__all__ = [
    "load_model",
    "load_sparse_bitmask",
    "load_weights",
    "save_model",
    "save_sparse_bitmask",
    "save_weights",
]
