# SPDX-License-Identifier: Apache-2.0
"""y = x @ W.T + bias, W with n of every m columns stored."""

import torch
from torch import Tensor

from ..arguments import refuse_grad, same_device
from .nm_to_dense import columns, gathered, nm_to_dense


def spmm_nm(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply by an N:M weight: ``y = x @ W.T + bias``.

    Args:
        x: ``[..., k]`` float32, bfloat16 or float16, any strides.
        values: ``[rows, G, n]`` float32, bfloat16, float16, or int8 or float8_e4m3fn with scales.
        positions: uint8 ``[rows, bytes]`` of packed groups of m = K / G columns, K = 64 * ceil(k / 64), or
            int16 or int32 ``[rows, n]`` of a constant fan-in (G = 1); see ``sparsecore.Nm``.
        scales: ``[rows]`` float32, with values of 8 bits only: weight = scale of its row * value.
        bias: ``[rows]`` of x's dtype.
        out: ``[..., rows]`` of x's dtype, contiguous, overlapping no other argument.

    Returns:
        ``[..., rows]`` of x's dtype. Sums are in float32 and rounded once. An element that is not
        stored takes no part, so NaN in x at that column does not reach y.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for positions that break
            the format's invariants.
    """
    if out is None:
        return torch.ops.sparsecore.spmm_nm(x, values, positions, scales, bias)
    refuse_grad(x, values, scales, bias, out)
    torch.ops.sparsecore.spmm_nm.out(x, values, positions, scales, bias, out=out)
    return out


def reference(
    x: Tensor, values: Tensor, positions: Tensor, scales: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The same in float64, one stored element at a time."""
    k = x.shape[-1]
    cols = columns(values, positions, k)
    weights = (
        values.flatten(1).double()
        if scales is None
        else values.flatten(1).double() * scales.double()[:, None]
    )
    rows = torch.arange(values.shape[0], device=x.device)[:, None].expand(cols.shape)
    inside = cols < k
    products = x.double()[..., cols[inside]] * weights[inside]
    y = products.new_zeros(*x.shape[:-1], values.shape[0])
    y.index_add_(-1, rows[inside], products)
    return y if bias is None else y + bias.double()


@torch.library.register_fake("sparsecore::_spmm_nm")
@torch.library.register_fake("sparsecore::spmm_nm")
def _(x, values, positions, scales=None, bias=None):
    same_device(x=x, values=values, positions=positions, scales=scales, bias=bias)
    return x.new_empty(*x.shape[:-1], values.shape[0])


@torch.library.register_fake("sparsecore::spmm_nm.out")
def _(x, values, positions, scales=None, bias=None, *, out):
    same_device(x=x, values=values, positions=positions, scales=scales, bias=bias, out=out)


def _rows(t: Tensor) -> Tensor:
    """``[..., k]`` as ``[m, k]``, k = 0 included."""
    return t.flatten(0, -2) if t.dim() > 1 else t[None]


def _setup(ctx, inputs, output):
    x, values, positions, scales, bias = inputs
    ctx.save_for_backward(x, values, positions, scales)
    ctx.has_bias = bias is not None


def gradients(x, values, positions, scales, grad, needs, needs_bias):
    """Of x, values, positions, scales and bias, where they are asked for, from y's."""
    k = x.shape[-1]
    g = _rows(grad)
    grad_x = grad_values = grad_scales = grad_bias = None
    if needs[0]:
        dense = nm_to_dense(values, positions, scales, k)
        grad_x = (g.float() @ dense.float()).to(x.dtype).reshape(x.shape)
    if needs[1] or needs[3]:
        outer = g.float().T @ _rows(x).float()
        if needs[1]:
            grad_values = gathered(outer, values, positions, k).to(values.dtype)
        if needs[3]:
            dense = nm_to_dense(values, positions, torch.ones_like(scales), k)
            grad_scales = (outer * dense).sum(1)
    if needs_bias:
        grad_bias = g.sum(0)
    return grad_x, grad_values, None, grad_scales, grad_bias


def _backward(ctx, grad):
    x, values, positions, scales = ctx.saved_tensors
    # The dispatcher drops trailing arguments that equal their defaults.
    needs = [*ctx.needs_input_grad, False, False]
    return gradients(x, values, positions, scales, grad, needs, ctx.has_bias and needs[4])


torch.library.register_autograd("sparsecore::spmm_nm", _backward, setup_context=_setup)
