# SPDX-License-Identifier: Apache-2.0
"""Pruning recipes: magnitude, Wanda, SparseGPT; unstructured or n:m; calibrated block by block."""

from sparsecore.prune.allocation import owl_sparsity
from sparsecore.prune.calibration import calibration_tokens
from sparsecore.prune.masks import nm_mask, unstructured_mask
from sparsecore.prune.recipes import magnitude_, sparsegpt_, wanda_

__all__ = [
    "calibration_tokens",
    "magnitude_",
    "nm_mask",
    "owl_sparsity",
    "sparsegpt_",
    "unstructured_mask",
    "wanda_",
]
