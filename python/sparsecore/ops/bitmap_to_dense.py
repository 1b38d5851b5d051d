# SPDX-License-Identifier: Apache-2.0
"""A bitmap weight to a dense one."""

import torch
from torch import Tensor

from ..arguments import same_device


def bitmap_to_dense(
    bitmask: Tensor, row_offsets: Tensor, values: Tensor, scales: Tensor | None, k: int
) -> Tensor:
    """W ``[n, k]``: 0 where nothing is stored.

    Args:
        bitmask: ``[n, 8 * ceil(k / 64)]`` uint8, least significant bit first; bits at columns >= k are 0.
        row_offsets: ``[n + 1]`` int64; row i owns ``values[row_offsets[i]:row_offsets[i + 1]]``.
        values: ``[nnz]`` float32, bfloat16, float16, or int8 with scales.
        scales: ``[n]`` float32, with int8 values only: weight = scale of its row * value.
        k: in_features.

    Returns:
        ``[n, k]`` of values' dtype, float32 when scaled. Differentiable in values and scales.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for a bitmask or
            row_offsets that break the format's invariants.
    """
    return torch.ops.sparsecore.bitmap_to_dense(bitmask, row_offsets, values, scales, k)


def bits(bitmask: Tensor, k: int) -> Tensor:
    """The bitmask as bool ``[n, k]``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    return (bitmask[:, :, None] >> shifts & 1).bool().flatten(1)[:, :k]


def reference(bitmask: Tensor, row_offsets: Tensor, values: Tensor, scales: Tensor | None, k: int) -> Tensor:
    """The same in torch's operations, on any device."""
    stored = bits(bitmask, k)
    if scales is not None:
        values = values.float() * scales.repeat_interleave(row_offsets.diff())
    dense = torch.zeros(stored.shape, dtype=values.dtype, device=values.device)
    dense[stored] = values
    return dense


@torch.library.register_fake("sparsecore::bitmap_to_dense")
def _(bitmask, row_offsets, values, scales, k):
    same_device(bitmask=bitmask, row_offsets=row_offsets, values=values, scales=scales)
    return values.new_empty(bitmask.shape[0], k, dtype=values.dtype if scales is None else torch.float32)


def _setup(ctx, inputs, output):
    bitmask, row_offsets, values, scales, ctx.k = inputs
    ctx.save_for_backward(bitmask, row_offsets, values, scales)


def _backward(ctx, grad):
    bitmask, row_offsets, values, scales = ctx.saved_tensors
    grad_values = grad_scales = None
    if ctx.needs_input_grad[2]:
        grad_values = grad[bits(bitmask, ctx.k)]
    if ctx.needs_input_grad[3]:
        grad_scales = (
            grad * bitmap_to_dense(bitmask, row_offsets, values, torch.ones_like(scales), ctx.k)
        ).sum(1)
    return None, None, grad_values, grad_scales, None


torch.library.register_autograd("sparsecore::bitmap_to_dense", _backward, setup_context=_setup)
