# SPDX-License-Identifier: Apache-2.0
"""The pattern of a CSR weight to a bitmask; row_offsets are crow_indices, values stay as they are."""

import torch
from torch import Tensor

from ..arguments import same_device
from .spmm_csr import row_indices


def bitmap_from_csr(crow_indices: Tensor, col_indices: Tensor, k: int) -> Tensor:
    """The bitmask of a CSR pattern.

    Args:
        crow_indices: ``[n + 1]`` int32 or int64.
        col_indices: ``[nnz]`` of crow_indices' dtype, rising strictly within a row.
        k: in_features.

    Returns:
        ``[n, 8 * ceil(k / 64)]`` uint8, least significant bit first.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for index arrays
            that break CSR's invariants.
    """
    return torch.ops.sparsecore.bitmap_from_csr(crow_indices, col_indices, k)


def reference(crow_indices: Tensor, col_indices: Tensor, k: int) -> Tensor:
    """The same in torch's operations, on any device."""
    n = crow_indices.numel() - 1
    mask = torch.zeros(n, (k + 63) // 64 * 64, dtype=torch.bool, device=crow_indices.device)
    mask[row_indices(crow_indices), col_indices.long()] = True
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=crow_indices.device)
    return (mask.view(n, (k + 63) // 64 * 8, 8) * weights).sum(-1, dtype=torch.uint8)


@torch.library.register_fake("sparsecore::bitmap_from_csr")
def _(crow_indices, col_indices, k):
    same_device(crow_indices=crow_indices, col_indices=col_indices)
    return crow_indices.new_empty(crow_indices.shape[0] - 1, (k + 63) // 64 * 8, dtype=torch.uint8)
