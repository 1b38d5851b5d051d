# SPDX-License-Identifier: Apache-2.0
"""Sparse times sparse, for every way that a CSR matrix comes in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .formats import Csr
from .ops import spgemm as op


class _Operand(NamedTuple):
    """A matrix's arrays as tensors that share its memory, and the kind it came as."""

    crow: Tensor
    col: Tensor
    values: Tensor | None
    shape: tuple[int, int]
    kind: str  # "Csr", "torch", "scipy", "numpy", "tensors"


def _tensor(array: Any, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if not hasattr(array, "flags"):
        raise TypeError(f"{name}: must be a tensor or a NumPy array, not {type(array).__name__}")
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():  # torch has no tensor that is only read; this one is
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _operand(x: Any, name: str) -> _Operand:
    if isinstance(x, Csr):
        return _Operand(x.crow_indices, x.col_indices, x.values, x.shape, "Csr")
    if isinstance(x, Tensor):
        if x.layout is not torch.sparse_csr or x.dim() != 2 or x.dense_dim():
            raise TypeError(f"{name}: must be a two-dimensional torch.sparse_csr tensor, not {x.layout}")
        return _Operand(x.crow_indices(), x.col_indices(), x.values(), (x.shape[0], x.shape[1]), "torch")
    if getattr(x, "format", None) == "csr":
        arrays = [_tensor(getattr(x, field), name) for field in ("indptr", "indices", "data")]
        return _Operand(arrays[0], arrays[1], arrays[2], tuple(x.shape), "scipy")
    if not isinstance(x, tuple) or len(x) != 4:
        raise TypeError(
            f"{name}: must be a Csr, a torch.sparse_csr tensor, a SciPy CSR matrix or a tuple "
            f"(crow_indices, col_indices, values or None, shape), not {type(x).__name__}"
        )
    crow, col, values, shape = x
    kind = "tensors" if isinstance(crow, Tensor) else "numpy"
    values = None if values is None else _tensor(values, name)
    return _Operand(_tensor(crow, name), _tensor(col, name), values, tuple(shape), kind)


def _pair(a: Any, b: Any) -> tuple[_Operand, _Operand]:
    x, y = _operand(a, "a"), _operand(b, "b")
    for name, operand in (("a", x), ("b", y)):
        if operand.crow.numel() != operand.shape[0] + 1:
            raise ValueError(
                f"{name}: crow_indices must have {operand.shape[0] + 1} elements for shape {operand.shape}, "
                f"not {operand.crow.numel()}"
            )
    if x.shape[1] != y.shape[0]:
        raise ValueError(f"b: must have as many rows as a has columns, {x.shape[1]}, not {y.shape[0]}")
    return x, y


def _as(kind: str, crow: Tensor, col: Tensor, values: Tensor | None, shape: tuple[int, int]) -> Any:
    if kind == "Csr" and values is not None:
        return Csr(crow, col, values, shape)
    if kind == "torch" and values is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)
    if kind == "scipy" and values is not None:
        from scipy.sparse import csr_array

        return csr_array((values.numpy(), col.numpy(), crow.numpy()), shape=shape)
    if kind == "numpy":
        return crow.numpy(), col.numpy(), None if values is None else values.numpy(), shape
    return crow, col, values, shape


def spgemm(a: Any, b: Any, *, sorted: bool = True, memory: int = 0, deterministic: bool = True) -> Any:
    """``a @ b`` of two CSR matrices, as a CSR matrix of a's kind.

    Args:
        a: ``[m, k]``: a Csr, a torch.sparse_csr tensor, a SciPy CSR matrix or array, or a tuple
            ``(crow_indices, col_indices, values or None, shape)`` of tensors or NumPy arrays. Values float32
            or float64, on CPUs complex64 or complex128 and on CUDA bfloat16 or float16 as well; indices int32
            or int64 (int64 where a and b differ); rows may be unsorted and repeat columns. Nothing is copied.
        b: ``[k, n]``, of any of those kinds. Without values in either (tuples), only the pattern is made.
        sorted: columns of the result's rows rise. Else they may come in any order, which SciPy and tuples
            allow; faster for short rows of wide matrices.
        memory: most bytes of working space; see sparsecore.ops.spgemm.
        deterministic: the same bits for any order of threads, as CPUs always give. Else, on CUDA, sums are
            made by atomics as products come.

    Returns:
        ``[m, n]``, the kind of a (of SciPy's kinds, an array), on its device.
        Gradients reach the values of a Csr and of a tuple of tensors, kept to the operand's pattern.

    Raises:
        TypeError, ValueError, RuntimeError: naming the argument.

    Example:
        >>> square = sparsecore.spgemm(a, a)
    """
    x, y = _pair(a, b)
    if not sorted and x.kind in ("Csr", "torch"):
        raise ValueError(f"sorted: a {x.kind} matrix has sorted rows; pass a tuple for unsorted ones")
    shape = (x.shape[0], y.shape[1])
    if x.values is None or y.values is None:
        crow, col = op.pattern(x.crow, x.col, y.crow, y.col, shape[1], memory=memory)
        return _as(x.kind, crow, col, None, shape)
    arrays = (x.crow, x.col, x.values, y.crow, y.col, y.values)
    made = op.spgemm(*arrays, shape[1], sorted=sorted, memory=memory, deterministic=deterministic)
    return _as(x.kind, *made, shape)


@dataclass(frozen=True, eq=False)
class SpgemmPlan:
    """The pattern of a product, for products of the same patterns with other values.

    Attributes:
        crow_indices: ``[m + 1]``; col_indices: ``[nnz]``, rising within a row.
        shape: ``(m, n)``.
    """

    crow_indices: Tensor
    col_indices: Tensor
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        return self.col_indices.numel()

    def __call__(self, a: Any, b: Any, *, memory: int = 0, deterministic: bool = True) -> Any:
        """``a @ b``, bit for bit what spgemm gives; the result shares the plan's indices.

        On CUDA the call does not wait for the device and can be captured in a graph; rows whose arrays are
        broken, or that have an element which the plan lacks, are then NaN instead of an error.

        Raises:
            TypeError, ValueError, RuntimeError: naming the argument; also where the product has an element
                that the plan lacks.
        """
        x, y = _pair(a, b)
        shape = (x.shape[0], y.shape[1])
        if shape != self.shape:
            raise ValueError(f"a, b: the plan is for a product {self.shape}, not {shape}")
        if x.values is None or y.values is None:
            raise ValueError(f"{'a' if x.values is None else 'b'}: must have values")
        arrays = (x.crow, x.col, x.values, y.crow, y.col, y.values, self.crow_indices, self.col_indices)
        values = op.values(*arrays, shape[1], memory=memory, deterministic=deterministic)
        return _as(x.kind, self.crow_indices, self.col_indices, values, shape)


def spgemm_plan(a: Any, b: Any, *, memory: int = 0) -> SpgemmPlan:
    """The symbolic phase of ``a @ b``: reads no values; arguments and errors as spgemm's."""
    x, y = _pair(a, b)
    crow, col = op.pattern(x.crow, x.col, y.crow, y.col, y.shape[1], memory=memory)
    return SpgemmPlan(crow, col, (x.shape[0], y.shape[1]))
