# SPDX-License-Identifier: Apache-2.0
"""y = x @ W.T + bias, W in CSR."""

import torch
from torch import Tensor

from ..arguments import refuse_grad, same_device


def spmm_csr(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply by a CSR weight: ``y = x @ W.T + bias``.

    Args:
        x: ``[..., k]`` float32, bfloat16 or float16, any strides.
        crow_indices: ``[n + 1]`` int32 or int64, as ``torch.sparse_csr`` has it.
        col_indices: ``[nnz]`` of crow_indices' dtype, rising strictly within a row.
        values: ``[nnz]`` float32, bfloat16 or float16.
        bias: ``[n]`` of x's dtype.
        out: ``[..., n]`` of x's dtype, contiguous, overlapping no other argument.

    Returns:
        ``[..., n]`` of x's dtype. Sums are in float32 and rounded once. An element that is not
        stored takes no part, so NaN in x at that column does not reach y.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for index arrays
            that break CSR's invariants.
    """
    if out is None:
        return torch.ops.sparsecore.spmm_csr(x, crow_indices, col_indices, values, bias)
    refuse_grad(x, values, bias, out)
    torch.ops.sparsecore.spmm_csr.out(x, crow_indices, col_indices, values, bias, out=out)
    return out


def dense_weight(crow_indices: Tensor, col_indices: Tensor, values: Tensor, k: int) -> Tensor:
    """W ``[n, k]`` of values' dtype."""
    n = crow_indices.numel() - 1
    dense = values.new_zeros(n, k)
    dense[row_indices(crow_indices), col_indices.long()] = values
    return dense


def row_indices(crow_indices: Tensor) -> Tensor:
    """Row of every stored element, int64 ``[nnz]``."""
    rows = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    return rows.repeat_interleave(crow_indices.diff())


def reference(
    x: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same in float64, one nonzero at a time."""
    rows, cols = row_indices(crow_indices), col_indices.long()
    products = x.double()[..., cols] * values.double()
    y = products.new_zeros(*x.shape[:-1], crow_indices.numel() - 1)
    y.index_add_(-1, rows, products)
    return y if bias is None else y + bias.double()


@torch.library.register_fake("sparsecore::_spmm_csr")
@torch.library.register_fake("sparsecore::spmm_csr")
def _(x, crow_indices, col_indices, values, bias=None):
    same_device(x=x, crow_indices=crow_indices, col_indices=col_indices, values=values, bias=bias)
    return x.new_empty(*x.shape[:-1], crow_indices.shape[0] - 1)


@torch.library.register_fake("sparsecore::spmm_csr.out")
def _(x, crow_indices, col_indices, values, bias=None, *, out):
    same_device(x=x, crow_indices=crow_indices, col_indices=col_indices, values=values, bias=bias, out=out)


def _rows(t: Tensor) -> Tensor:
    """``[..., k]`` as ``[m, k]``, k = 0 included."""
    return t.flatten(0, -2) if t.dim() > 1 else t[None]


def _setup(ctx, inputs, output):
    x, crow_indices, col_indices, values, bias = inputs
    ctx.save_for_backward(x, crow_indices, col_indices, values)
    ctx.has_bias = bias is not None


def _backward(ctx, grad):
    x, crow_indices, col_indices, values = ctx.saved_tensors
    g = _rows(grad)
    # The dispatcher drops trailing arguments that equal their defaults.
    needs = [*ctx.needs_input_grad, False, False]
    grad_x = grad_values = grad_bias = None
    if needs[0]:
        dense = dense_weight(crow_indices, col_indices, values, x.shape[-1])
        grad_x = (g.float() @ dense.float()).to(x.dtype).reshape(x.shape)
    if needs[3]:
        outer = g.float().T @ _rows(x).float()
        grad_values = outer[row_indices(crow_indices), col_indices.long()].to(values.dtype)
    if ctx.has_bias and needs[4]:
        grad_bias = g.sum(0)
    return grad_x, None, None, grad_values, grad_bias


torch.library.register_autograd("sparsecore::spmm_csr", _backward, setup_context=_setup)
