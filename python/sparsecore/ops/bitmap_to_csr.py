# SPDX-License-Identifier: Apache-2.0
"""The pattern of a bitmap weight to CSR columns; crow_indices are row_offsets, values stay as they are."""

import torch
from torch import Tensor

from ..arguments import same_device
from .bitmap_to_dense import bits


def bitmap_to_csr(bitmask: Tensor, row_offsets: Tensor, k: int, int64: bool = False) -> Tensor:
    """The columns of a bitmask's set bits.

    Args:
        bitmask: ``[n, 8 * ceil(k / 64)]`` uint8, least significant bit first; bits at columns >= k are 0.
        row_offsets: ``[n + 1]`` int64, how many bits are set before each row.
        k: in_features.
        int64: columns in int64, not int32.

    Returns:
        col_indices ``[nnz]``, rising strictly within a row.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for a bitmask or
            row_offsets that break the format's invariants.
    """
    return torch.ops.sparsecore.bitmap_to_csr(bitmask, row_offsets, k, int64)


def reference(bitmask: Tensor, row_offsets: Tensor, k: int, int64: bool = False) -> Tensor:
    """The same in torch's operations, on any device."""
    return bits(bitmask, k).nonzero(as_tuple=True)[1].to(torch.int64 if int64 else torch.int32)


@torch.library.register_fake("sparsecore::bitmap_to_csr")
def _(bitmask, row_offsets, k, int64):
    same_device(bitmask=bitmask, row_offsets=row_offsets)
    nnz = torch.library.get_ctx().new_dynamic_size()
    return bitmask.new_empty(nnz, dtype=torch.int64 if int64 else torch.int32)
