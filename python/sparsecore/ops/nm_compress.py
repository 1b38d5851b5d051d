# SPDX-License-Identifier: Apache-2.0
"""A dense weight to the arrays of an N:M one."""

import torch
from torch import Tensor

from .nm_to_dense import COLUMNS, field_bits, is_mask, row_bytes


def nm_compress(
    w: Tensor, n: int, m: int, dtype: torch.dtype | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep n of every m columns of w. Takes no gradient: what is kept is not smooth in w.

    Args:
        w: ``[rows, k]`` float32, bfloat16 or float16, any strides.
        n, m: 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8 or 1:16; with m = 0 n of the whole row, a constant fan-in.
        dtype: of the values; float32, bfloat16 or float16 (to nearest even), or int8 or float8_e4m3fn: w over
            its row's scale to nearest even. Default: w's.
        mask: bool ``[rows, k]``, at most n selected in a group; where fewer are, zeros are stored at the
            lowest other columns. Default: the largest magnitudes, of equals the lowest column, NaN before all
            numbers.

    Returns:
        values ``[rows, G, n]`` and positions as ``sparsecore.Nm`` has them, and for values of 8 bits scales
        ``[rows]`` float32, the absolute maximum of what the row stores over 127, 448 for float8 (else
        ``[0]``). Such a row that stores NaN or infinity has that as its scale and values of 0.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for a mask that selects
            too many. On CUDA, where the call does not wait for the device, such a group stores NaN, and
            its row's scale is NaN.
    """
    return torch.ops.sparsecore.nm_compress(w, n, m, w.dtype if dtype is None else dtype, mask)


def reference(
    w: Tensor, n: int, m: int, dtype: torch.dtype | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in torch's operations, on any device."""
    dtype = dtype or w.dtype
    rows, k = w.shape
    width = -(-k // COLUMNS) * COLUMNS if m else k
    group = m or k
    groups = width // m if m else 1
    wide = w.float()
    if mask is None:
        magnitude = wide.abs().view(torch.int32).long()
        keys = torch.where(wide.isnan(), 1 << 31, magnitude)
    else:
        keys = mask.long()
    # The order of a key and then of the lower column; padding comes last.
    keys = torch.nn.functional.pad(keys, (0, width - k), value=-1).view(rows, groups, group)
    keys = keys * (group + 1) - torch.arange(group, device=w.device)
    found = keys.topk(n, -1).indices.sort(-1).values if n else keys.new_zeros(rows, groups, 0)
    kept = torch.nn.functional.pad(w if mask is None else torch.where(mask, w, 0), (0, width - k))
    values = kept.view(rows, groups, group).gather(2, found)
    if not m:
        positions = found[:, 0].to(torch.int16 if k <= 1 << 15 else torch.int32)
    elif is_mask(n, m):
        positions = (1 << found).sum(-1).to(torch.uint8)
    else:
        bits = field_bits(m)
        fields = found.reshape(rows, groups * n * bits // 8, 8 // bits)
        positions = (fields << torch.arange(0, 8, bits, device=w.device)).sum(-1).to(torch.uint8)
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        return values.to(dtype), positions, torch.zeros(0, device=w.device)
    top = 127.0 if dtype is torch.int8 else 448.0
    values = values.float()
    flat = values.flatten(1)
    largest = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(rows)
    scales = largest / top
    # A subnormal quotient is coarse: where `top` of it fall short of the largest, the next number is taken.
    low = (scales < torch.finfo(torch.float32).tiny) & (scales.double() * top < largest.double())
    scales = torch.where(low, scales.nextafter(torch.full_like(scales, torch.inf)), scales)
    codes = values / scales[:, None, None]
    usable = (scales.isfinite() & (scales > 0))[:, None, None]
    codes = torch.where(usable, codes.round() if dtype is torch.int8 else codes.clamp(-top, top), 0)
    return codes.to(dtype), positions, scales


@torch.library.register_fake("sparsecore::nm_compress")
def _(w, n, m, dtype, mask=None):
    rows, k = w.shape
    words = (k + COLUMNS - 1) // COLUMNS
    if m:
        positions = w.new_empty(rows, row_bytes(n, m, k), dtype=torch.uint8)
    else:
        positions = w.new_empty(rows, n, dtype=torch.int16 if k <= 1 << 15 else torch.int32)
    scaled = dtype in (torch.int8, torch.float8_e4m3fn)
    return (
        w.new_empty(rows, words * (COLUMNS // m) if m else 1, n, dtype=dtype),
        positions,
        w.new_empty(rows if scaled else 0, dtype=torch.float32),
    )
