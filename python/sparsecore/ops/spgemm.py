# SPDX-License-Identifier: Apache-2.0
"""C = A @ B, all of them CSR, over plain tensors; `sparsecore.spgemm` takes matrices."""

import torch
from torch import Tensor

from ..arguments import same_device, wants_grad
from .spmm_csr import row_indices


def _one_index(*arrays: Tensor) -> tuple[Tensor, ...]:
    """int32 arrays as they are; all int64 where one of them is."""
    if {t.dtype for t in arrays} == {torch.int32, torch.int64}:
        return tuple(t.long() if t.dtype is torch.int32 else t for t in arrays)
    return arrays


def spgemm(
    a_crow_indices: Tensor,
    a_col_indices: Tensor,
    a_values: Tensor,
    b_crow_indices: Tensor,
    b_col_indices: Tensor,
    b_values: Tensor,
    n: int,
    *,
    sorted: bool = True,
    memory: int = 0,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply CSR by CSR, row by row (Gustavson 1978), without a list of partial products.

    Args:
        a_crow_indices, a_col_indices: A ``[m, k]``, int32 or int64; columns of a row in any order, repeated
            ones are added. Where A and B differ, int32 is widened and the result is int64.
        a_values: ``[nnz of A]`` float32 or float64; on CPUs complex64 or complex128 as well, on CUDA bfloat16
            or float16 (sums in float32).
        b_crow_indices, b_col_indices, b_values: B ``[k, n]``, the same, with values of a_values' dtype.
        n: columns of B, below 2^31.
        sorted: columns of C's rows rise; else they may come in any order, which is faster for short rows of
            wide matrices. No column is repeated in either case.
        memory: most bytes of working space for all threads, beside 8 a row of A, 16 a row of B and 12 an
            element of B; wide rows are then made piece by piece. 0: what is fast, but no more than a quarter
            of what is free. On CUDA of tables for rows with thousands of elements, beside 16 a row of A.
        deterministic: the same bits for any order of threads. Else, on CUDA, sums are made by atomics as
            products come, and rows that need not be sorted are not.

    Returns:
        crow_indices ``[m + 1]``, col_indices and values of C ``[m, n]``. An element that is stored in neither
        takes no part (NaN and infinity reach what they are multiplied with); a sum that is zero stays stored.
        The same bits for any number of threads. Gradients reach both values and keep to their patterns. On
        CUDA the call waits for the device once, for the number of nonzeros.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, for index arrays that are no
            CSR, for more nonzeros than the index type counts, and for memory that is not there.
    """
    arrays = _one_index(a_crow_indices, a_col_indices, b_crow_indices, b_col_indices)
    op = torch.ops.sparsecore.spgemm if wants_grad(a_values, b_values) else torch.ops.sparsecore._spgemm
    return op.default(*arrays[:2], a_values, *arrays[2:], b_values, n, sorted, memory, deterministic)


def pattern(
    a_crow_indices: Tensor,
    a_col_indices: Tensor,
    b_crow_indices: Tensor,
    b_col_indices: Tensor,
    n: int,
    *,
    memory: int = 0,
) -> tuple[Tensor, Tensor]:
    """crow_indices and col_indices, sorted, of what spgemm gives; the same arguments and errors."""
    arrays = _one_index(a_crow_indices, a_col_indices, b_crow_indices, b_col_indices)
    return torch.ops.sparsecore.spgemm_pattern.default(*arrays, n, memory)


def values(
    a_crow_indices: Tensor,
    a_col_indices: Tensor,
    a_values: Tensor,
    b_crow_indices: Tensor,
    b_col_indices: Tensor,
    b_values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    n: int,
    *,
    memory: int = 0,
    deterministic: bool = True,
) -> Tensor:
    """Values of C for columns from `pattern`, bit for bit spgemm's where both are deterministic.

    Args:
        crow_indices, col_indices: rise strictly within a row and hold every column of the product; one that
            the product lacks gets zero. Else as spgemm.

    Raises:
        RuntimeError: as spgemm, and for columns that lack one of the product's. On CUDA, where the call does
            not wait for the device and can be captured in a graph, rows of C that meet a broken row are NaN
            instead, and all of C where offsets fall.
    """
    arrays = _one_index(
        a_crow_indices, a_col_indices, b_crow_indices, b_col_indices, crow_indices, col_indices
    )
    op = (
        torch.ops.sparsecore.spgemm_values
        if wants_grad(a_values, b_values)
        else torch.ops.sparsecore._spgemm_values
    )
    return op.default(*arrays[:2], a_values, *arrays[2:4], b_values, *arrays[4:], n, memory, deterministic)


def reference(
    a_crow_indices: Tensor,
    a_col_indices: Tensor,
    a_values: Tensor,
    b_crow_indices: Tensor,
    b_col_indices: Tensor,
    b_values: Tensor,
    n: int,
    **_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64 or complex128, product by product: all of them are listed, then added."""
    wide = torch.complex128 if a_values.is_complex() else torch.float64
    lengths = b_crow_indices.diff()[a_col_indices.long()]
    at_a = torch.arange(a_col_indices.numel(), device=a_values.device).repeat_interleave(lengths)
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    within = torch.arange(at_a.numel(), device=a_values.device) - first
    at_b = b_crow_indices[a_col_indices.long()].long()[at_a] + within
    places = row_indices(a_crow_indices)[at_a] * n + b_col_indices.long()[at_b]
    unique, where = places.unique(return_inverse=True)
    sums = torch.zeros(unique.numel(), dtype=wide, device=a_values.device)
    sums.index_add_(0, where, a_values.to(wide)[at_a] * b_values.to(wide)[at_b])
    m, index = a_crow_indices.numel() - 1, torch.promote_types(a_crow_indices.dtype, b_crow_indices.dtype)
    crow = torch.zeros(m + 1, dtype=index, device=a_values.device)
    if unique.numel():
        crow[1:] = torch.bincount(unique // n, minlength=m).cumsum(0)
    return crow, (unique % max(n, 1)).to(index), sums


def _fake_pattern(a_crow_indices: Tensor, b_crow_indices: Tensor) -> tuple[Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    return a_crow_indices.new_empty(a_crow_indices.shape[0]), a_crow_indices.new_empty(nnz)


@torch.library.register_fake("sparsecore::_spgemm")
@torch.library.register_fake("sparsecore::spgemm")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, n, sorted=True, memory=0, deterministic=True):
    same_device(a_values=a_values, a_crow_indices=a_crow, a_col_indices=a_col, b_crow_indices=b_crow,
                b_col_indices=b_col, b_values=b_values)  # fmt: skip
    crow, col = _fake_pattern(a_crow, b_crow)
    return crow, col, a_values.new_empty(col.shape[0])


@torch.library.register_fake("sparsecore::spgemm_pattern")
def _(a_crow, a_col, b_crow, b_col, n, memory=0):
    same_device(a_crow_indices=a_crow, a_col_indices=a_col, b_crow_indices=b_crow, b_col_indices=b_col)
    return _fake_pattern(a_crow, b_crow)


@torch.library.register_fake("sparsecore::_spgemm_values")
@torch.library.register_fake("sparsecore::spgemm_values")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, n, memory=0, deterministic=True):
    same_device(a_values=a_values, a_crow_indices=a_crow, a_col_indices=a_col, b_crow_indices=b_crow,
                b_col_indices=b_col, b_values=b_values, crow_indices=crow, col_indices=col)  # fmt: skip
    return a_values.new_empty(col.shape[0])


@torch.library.register_fake("sparsecore::spgemm_grad_a")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n):
    return torch.empty_like(a_values)


@torch.library.register_fake("sparsecore::spgemm_grad_b")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n):
    return torch.empty_like(b_values)


@torch.library.register_fake("sparsecore::_spgemm_masked")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, n):
    return a_values.new_empty(col.shape[0])


def _transposed(crow: Tensor, col: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose ``[width, rows]`` of a CSR matrix, rows rising. Does not wait for the device."""
    at = torch.arange(col.numel(), device=col.device)
    rows = torch.searchsorted(crow, at.to(crow.dtype), right=True).to(col.dtype) - 1
    columns, order = col.sort(stable=True)
    starts = torch.searchsorted(columns, torch.arange(width + 1, device=col.device, dtype=col.dtype))
    return starts.to(crow.dtype), rows[order], values[order]


@torch.library.impl("sparsecore::spgemm_grad_a", "CUDA")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n):
    # (G B^T)[i, k] = sum over j of G[i, j] B[k, j], at A's columns
    of_b = _transposed(b_crow, b_col, b_values, n)
    k = b_crow.numel() - 1
    return torch.ops.sparsecore._spgemm_masked.default(crow, col, grad, *of_b, a_crow, a_col, k)


@torch.library.impl("sparsecore::spgemm_grad_b", "CUDA")
def _(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n):
    # (A^T G)[k, j] = sum over i of A[i, k] G[i, j], at B's columns
    of_a = _transposed(a_crow, a_col, a_values, b_crow.numel() - 1)
    return torch.ops.sparsecore._spgemm_masked.default(*of_a, crow, col, grad, b_crow, b_col, n)


def _gradients(ctx, grad):
    a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col = ctx.saved_tensors
    arrays = (a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad.contiguous(), ctx.n)
    of_a = torch.ops.sparsecore.spgemm_grad_a.default(*arrays) if ctx.needs_input_grad[2] else None
    of_b = torch.ops.sparsecore.spgemm_grad_b.default(*arrays) if ctx.needs_input_grad[5] else None
    return None, None, of_a, None, None, of_b


def _setup(ctx, inputs, output):
    crow, col, _ = output
    ctx.mark_non_differentiable(crow, col)
    ctx.save_for_backward(*inputs[:6], crow, col)
    ctx.n = inputs[6]


def _backward(ctx, _crow, _col, grad):
    return *_gradients(ctx, grad), None, None, None, None


def _setup_values(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8])
    ctx.n = inputs[8]


def _backward_values(ctx, grad):
    return *_gradients(ctx, grad), None, None, None, None, None


torch.library.register_autograd("sparsecore::spgemm", _backward, setup_context=_setup)
torch.library.register_autograd("sparsecore::spgemm_values", _backward_values, setup_context=_setup_values)
