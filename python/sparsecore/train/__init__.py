# SPDX-License-Identifier: Apache-2.0
"""Training of N:M weights: layers whose products are sparse in both directions, and recipes over them."""

from sparsecore.train.fan_in import FanInLinear
from sparsecore.train.linear import NmLinear
from sparsecore.train.masks import transposable_mask
from sparsecore.train.recipes import Recipe, bdwp_, cast_, decaying_flow_, finish_, sr_ste_, srigl_

__all__ = [
    "FanInLinear",
    "NmLinear",
    "Recipe",
    "bdwp_",
    "cast_",
    "decaying_flow_",
    "finish_",
    "sr_ste_",
    "srigl_",
    "transposable_mask",
]
