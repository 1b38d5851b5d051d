# SPDX-License-Identifier: Apache-2.0
"""A dense weight to the arrays of a bitmap."""

import torch
from torch import Tensor


def bitmap_from_dense(w: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nonzeros of w; NaN is stored, -0.0 is not. Takes no gradient: what is stored is not smooth in w.

    Args:
        w: ``[n, k]`` float32, bfloat16 or float16, any strides.
        dtype: of the values; float32, bfloat16 or float16 (to nearest even), or int8: w over its row's
            scale to nearest even. Default: w's.

    Returns:
        bitmask ``[n, 8 * ceil(k / 64)]``, row_offsets ``[n + 1]``, values ``[nnz]``, and for int8 scales
        ``[n]`` float32, the row's absolute maximum over 127 (else ``[0]``). An int8 row that holds NaN or
        infinity has that as its scale and values of 0.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices.
    """
    return torch.ops.sparsecore.bitmap_from_dense(w, w.dtype if dtype is None else dtype)


def reference(w: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in torch's operations, on any device."""
    dtype = dtype or w.dtype
    n, k = w.shape
    mask = torch.zeros(n, (k + 63) // 64 * 64, dtype=torch.bool, device=w.device)
    mask[:, :k] = w != 0
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=w.device)
    bitmask = (mask.view(n, (k + 63) // 64 * 8, 8) * weights).sum(-1, dtype=torch.uint8)
    row_offsets = torch.zeros(n + 1, dtype=torch.int64, device=w.device)
    row_offsets[1:] = mask.sum(1).cumsum(0)
    if dtype is not torch.int8:
        scales = torch.zeros(0, device=w.device)
        return bitmask, row_offsets, w[mask[:, :k]].to(dtype), scales
    wide = w.float()
    largest = wide.abs().amax(1) if k else wide.new_zeros(n)
    scales = largest / 127
    # A subnormal quotient is coarse: where 127 of it fall short of the largest, the next number is taken.
    low = (scales < torch.finfo(torch.float32).tiny) & (scales.double() * 127 < largest.double())
    scales = torch.where(low, scales.nextafter(torch.full_like(scales, torch.inf)), scales)
    codes = (wide / scales[:, None])[mask[:, :k]].round()
    usable = (scales.isfinite() & (scales > 0)).repeat_interleave(row_offsets.diff())
    return bitmask, row_offsets, torch.where(usable, codes, 0).to(dtype), scales


@torch.library.register_fake("sparsecore::bitmap_from_dense")
def _(w, dtype):
    n, k = w.shape
    nnz = torch.library.get_ctx().new_dynamic_size()
    return (
        w.new_empty(n, (k + 63) // 64 * 8, dtype=torch.uint8),
        w.new_empty(n + 1, dtype=torch.int64),
        w.new_empty(nnz, dtype=dtype),
        w.new_empty(n if dtype is torch.int8 else 0, dtype=torch.float32),
    )
