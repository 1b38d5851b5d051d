# SPDX-License-Identifier: Apache-2.0
"""y = x @ W.T + bias, W as a bitmap and its nonzeros."""

import torch
from torch import Tensor

from ..arguments import refuse_grad, same_device
from .bitmap_to_dense import bitmap_to_dense, bits


def spmm_bitmap(
    x: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    values: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply by a bitmap weight: ``y = x @ W.T + bias``.

    Args:
        x: ``[..., k]`` float32, bfloat16 or float16, any strides.
        bitmask: ``[n, 8 * ceil(k / 64)]`` uint8; bit j (least significant first) of byte b is
            column 8b + j; bits at columns >= k are 0.
        row_offsets: ``[n + 1]`` int64; row i owns ``values[row_offsets[i]:row_offsets[i + 1]]``.
        values: ``[nnz]`` float32, bfloat16, float16, or int8 with scales.
        scales: ``[n]`` float32, with int8 values only: weight = scale of its row * value.
        bias: ``[n]`` of x's dtype.
        out: ``[..., n]`` of x's dtype, contiguous, overlapping no other argument.

    Returns:
        ``[..., n]`` of x's dtype. Sums are in float32 and rounded once. An element that is not
        stored takes no part, so NaN in x at that column does not reach y.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for a bitmask
            or row_offsets that break the format's invariants.
    """
    if out is None:
        return torch.ops.sparsecore.spmm_bitmap(x, bitmask, row_offsets, values, scales, bias)
    refuse_grad(x, values, scales, bias, out)
    torch.ops.sparsecore.spmm_bitmap.out(x, bitmask, row_offsets, values, scales, bias, out=out)
    return out


def reference(
    x: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    values: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The same in float64, one nonzero at a time."""
    rows, cols = bits(bitmask, x.shape[-1]).nonzero(as_tuple=True)
    weights = values.double() if scales is None else values.double() * scales.double()[rows]
    products = x.double()[..., cols] * weights
    y = products.new_zeros(*x.shape[:-1], bitmask.shape[0])
    y.index_add_(-1, rows, products)
    return y if bias is None else y + bias.double()


@torch.library.register_fake("sparsecore::_spmm_bitmap")
@torch.library.register_fake("sparsecore::spmm_bitmap")
def _(x, bitmask, row_offsets, values, scales=None, bias=None):
    same_device(x=x, bitmask=bitmask, row_offsets=row_offsets, values=values, scales=scales, bias=bias)
    return x.new_empty(*x.shape[:-1], bitmask.shape[0])


@torch.library.register_fake("sparsecore::spmm_bitmap.out")
def _(x, bitmask, row_offsets, values, scales=None, bias=None, *, out):
    same_device(
        x=x, bitmask=bitmask, row_offsets=row_offsets, values=values, scales=scales, bias=bias, out=out
    )


def _rows(t: Tensor) -> Tensor:
    """``[..., k]`` as ``[m, k]``, k = 0 included."""
    return t.flatten(0, -2) if t.dim() > 1 else t[None]


def _setup(ctx, inputs, output):
    x, bitmask, row_offsets, values, scales, bias = inputs
    ctx.save_for_backward(x, bitmask, row_offsets, values, scales)
    ctx.has_bias = bias is not None


def _backward(ctx, grad):
    x, bitmask, row_offsets, values, scales = ctx.saved_tensors
    k = x.shape[-1]
    g = _rows(grad)
    # The dispatcher drops trailing arguments that equal their defaults.
    needs = [*ctx.needs_input_grad, False, False]
    grad_x = grad_values = grad_scales = grad_bias = None
    if needs[0]:
        dense = bitmap_to_dense(bitmask, row_offsets, values, scales, k)
        grad_x = (g.float() @ dense.float()).to(x.dtype).reshape(x.shape)
    if needs[3] or needs[4]:
        outer = g.float().T @ _rows(x).float()
        if needs[3]:
            grad_values = outer[bits(bitmask, k)].to(values.dtype)
        if needs[4]:
            dense = bitmap_to_dense(bitmask, row_offsets, values, torch.ones_like(scales), k)
            grad_scales = (outer * dense).sum(1)
    if ctx.has_bias and needs[5]:
        grad_bias = g.sum(0)
    return grad_x, None, None, grad_values, grad_scales, grad_bias


torch.library.register_autograd("sparsecore::spmm_bitmap", _backward, setup_context=_setup)
