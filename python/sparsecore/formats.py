# SPDX-License-Identifier: Apache-2.0
"""Sparse weight formats: frozen groups of plain tensors that a state dict can hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from .arguments import wants_grad
from .ops import bitmap_from_csr, bitmap_from_dense, bitmap_to_csr, bitmap_to_dense, spmm_bitmap, spmm_csr

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# What spgemm multiplies, and linear does not, beside float32.
_PRECISE = (torch.float64, torch.complex64, torch.complex128)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _either(op: ModuleType, where: Tensor) -> Callable[..., Any]:
    """The op on a device that it has kernels for, else its equation in torch's operations."""
    name = op.__name__.rpartition(".")[2]
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(where.device.type)
    has = key and torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsecore::{name}", key)
    return getattr(op, name if has else "reference")


def _dense_2d(w: Tensor, dtype: torch.dtype | None, allowed: tuple[torch.dtype, ...]) -> torch.dtype:
    _require(isinstance(w, Tensor) and w.layout is torch.strided, "w: must be a dense tensor")
    _require(w.dim() == 2, f"w: must be [out_features, in_features], not {list(w.shape)}")
    dtype = dtype or w.dtype
    _require(dtype in allowed, f"dtype: must be one of {allowed}, not {dtype}")
    return dtype


@dataclass(frozen=True, eq=False)
class _Format:
    """What every format offers; a subclass names its tensors and its shape."""

    names: ClassVar[tuple[str, ...]]
    offsets: ClassVar[str] = ""
    """Which of them, if any, counts the elements before each row."""
    values: Tensor
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        return self.values.numel()

    @property
    def density(self) -> float:
        """Stored elements over all; 1 for an empty shape."""
        n, k = self.shape
        return self.nnz / (n * k) if n * k else 1.0

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The plain tensors by name; an absent one is left out."""
        return {name: t for name in self.names if (t := getattr(self, name)) is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], shape: tuple[int, int]) -> "_Format":
        """The inverse of tensors(); checked.

        Raises:
            ValueError: for a missing, unknown or broken tensor, naming it.
        """
        unknown = set(tensors) - set(cls.names)
        _require(not unknown, f"tensors: {sorted(unknown)} are not of {cls.__name__}")
        try:
            made = cls(**tensors, shape=shape)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"tensors: {error}") from None
        made.check()
        return made

    @classmethod
    def stack(cls, parts: "Sequence[_Format]") -> "_Format":
        """The rows of one weight after those of the other.

        Raises:
            ValueError: parts: there are none, or they differ in format, columns, dtypes or device.
        """
        _require(len(parts) > 0 and all(type(p) is cls for p in parts), f"parts: must be {cls.__name__}s")
        alike = [
            (p.shape[1], [(name, t.dtype, t.device, t.shape[1:]) for name, t in p.tensors().items()])
            for p in parts
        ]
        _require(all(a == alike[0] for a in alike), "parts: differ in columns, dtypes or device")
        made = {name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()}
        if cls.offsets:
            before = torch.tensor([0, *(p.nnz for p in parts)]).cumsum(0)
            first = parts[0].tensors()[cls.offsets]
            _require(
                int(before[-1]) <= torch.iinfo(first.dtype).max,
                f"parts: {int(before[-1])} stored elements need int64 {cls.offsets}",
            )
            shifted = [
                p.tensors()[cls.offsets][1:] + b.to(first.dtype) for p, b in zip(parts, before, strict=False)
            ]
            made[cls.offsets] = torch.cat([first[:1], *shifted])
        return cls(**made, shape=(sum(p.shape[0] for p in parts), parts[0].shape[1]))  # type: ignore[arg-type]

    def rows(self, begin: int, end: int) -> "_Format":
        """Rows [begin, end) as a weight of their own, which shares all memory but that of offsets."""
        _require(0 <= begin <= end <= self.shape[0], f"begin, end: must be rows of {self.shape[0]}")
        tensors = self.tensors()
        if not self.offsets:
            taken = {name: t[begin:end] for name, t in tensors.items()}
        else:
            counts = tensors[self.offsets][begin : end + 1]
            first, last = int(counts[0]), int(counts[-1])
            an_element = ("values", "col_indices")
            taken = {
                name: t[first:last] if name in an_element else t[begin:end] for name, t in tensors.items()
            }
            taken[self.offsets] = counts - counts[0]
        return type(self)(**taken, shape=(end - begin, self.shape[1]))  # type: ignore[arg-type]

    def to(self, *args: Any, **kwargs: Any) -> "_Format":
        """Like Tensor.to; a dtype applies to the values alone."""
        like = torch.empty(0, dtype=self.values.dtype, device=self.values.device).to(*args, **kwargs)
        moved = {name: t.to(like.device) for name, t in self.tensors().items()}
        if like.dtype != self.dtype:
            _require(
                like.dtype in _FLOATS and self.dtype in _FLOATS,
                f"dtype: can't turn {self.dtype} values into {like.dtype}",
            )
            moved["values"] = moved["values"].to(like.dtype)
        return type(self)(**moved, shape=self.shape)  # type: ignore[arg-type]

    def check(self) -> None:
        """Read the index arrays once; ValueError names the one that breaks an invariant."""
        raise NotImplementedError

    def _check_x(self, x: Tensor) -> None:
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"x: last dimension must be in_features = {self.shape[1]}, not {x.shape[-1]}")

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype}, device={self.device})"


def _check_values(values: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    _require(isinstance(values, Tensor) and values.dim() == 1, "values: must be a tensor of one dimension")
    _require(values.dtype in allowed, f"values: dtype must be one of {allowed}, not {values.dtype}")


def _check_shape(shape: Any) -> tuple[int, int]:
    _require(
        len(shape) == 2 and all(isinstance(s, int) and s >= 0 for s in shape),
        f"shape: must be two sizes >= 0, not {tuple(shape)}",
    )
    return tuple(shape)


def _raise_value_error(op: Any, *args: Any) -> None:
    """Calls a check, whose kernels are the CPU's, on arrays of any device."""
    try:
        op(*(a.cpu() if isinstance(a, Tensor) else a for a in args))
    except RuntimeError as error:
        raise ValueError(str(error).split("\n")[0]) from None


@dataclass(frozen=True, eq=False, repr=False)
class Csr(_Format):
    """CSR matrix ``[n, k]``, array for array ``torch.sparse_csr``.

    Attributes:
        crow_indices: ``[n + 1]`` int32 or int64.
        col_indices: ``[nnz]`` of the same dtype, rising strictly within a row.
        values: ``[nnz]`` float32, bfloat16 or float16; float64, complex64 or complex128 for spgemm alone.
        shape: ``(n, k)``.

    Raises:
        ValueError: at construction for shapes and dtypes; ``check()`` also reads the indices.
    """

    names: ClassVar[tuple[str, ...]] = ("crow_indices", "col_indices", "values")
    offsets: ClassVar[str] = "crow_indices"
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __init__(
        self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, int]
    ) -> None:
        shape = _check_shape(shape)
        _check_values(values, (*_FLOATS, *_PRECISE))
        for name, t in (("crow_indices", crow_indices), ("col_indices", col_indices)):
            _require(isinstance(t, Tensor) and t.dim() == 1, f"{name}: must be a tensor of one dimension")
            _require(
                t.dtype in (torch.int32, torch.int64), f"{name}: dtype must be int32 or int64, not {t.dtype}"
            )
        _require(crow_indices.dtype == col_indices.dtype, "col_indices: dtype must be that of crow_indices")
        _require(
            crow_indices.numel() == shape[0] + 1,
            f"crow_indices: must have {shape[0] + 1} elements, not {crow_indices.numel()}",
        )
        _require(
            col_indices.numel() == values.numel(),
            f"values: must have one element per col_indices, {col_indices.numel()}, not {values.numel()}",
        )
        for name, value in (
            ("crow_indices", crow_indices.contiguous()),
            ("col_indices", col_indices.contiguous()),
            ("values", values.contiguous()),
            ("shape", shape),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dense(
        cls, w: Tensor, *, dtype: torch.dtype | None = None, index_dtype: torch.dtype = torch.int32
    ) -> "Csr":
        """The nonzeros of w ``[n, k]``; NaN is stored, -0.0 is not."""
        dtype = _dense_2d(w, dtype, _FLOATS)
        return Bitmap.from_dense(w.detach(), dtype=dtype).to_csr(index_dtype=index_dtype)

    @classmethod
    def from_torch(cls, w: Tensor) -> "Csr":
        """From ``torch.sparse_csr``, sharing its memory; checked.

        Raises:
            ValueError: for another layout, or indices that break the invariants.
        """
        _require(
            isinstance(w, Tensor) and w.layout is torch.sparse_csr, "w: must be a torch.sparse_csr tensor"
        )
        _require(w.dim() == 2 and w.dense_dim() == 0, "w: must be two-dimensional")
        made = cls(w.crow_indices(), w.col_indices(), w.values(), (w.shape[0], w.shape[1]))
        made.check()
        return made

    @classmethod
    def from_scipy(cls, w: Any) -> "Csr":
        """From a SciPy CSR matrix or array with sorted indices, sharing its memory; checked.

        Raises:
            ValueError: for another format, other dtypes, and unsorted or duplicated columns.
        """
        _require(getattr(w, "format", None) == "csr", "w: must be a SciPy CSR matrix or array")
        made = cls(
            torch.from_numpy(w.indptr), torch.from_numpy(w.indices), torch.from_numpy(w.data), tuple(w.shape)
        )
        made.check()
        return made

    def to_dense(self) -> Tensor:
        """``[n, k]`` of values' dtype."""
        if self.device.type == "cpu" and self.dtype not in _PRECISE:
            return self.to_bitmap().to_dense()
        return spmm_csr.dense_weight(self.crow_indices, self.col_indices, self.values, self.shape[1])

    def to_torch(self) -> Tensor:
        """A ``torch.sparse_csr`` tensor that shares the arrays."""
        return torch.sparse_csr_tensor(
            self.crow_indices, self.col_indices, self.values, self.shape, check_invariants=False
        )

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.csr_array`` that shares the arrays (no 16-bit floats)."""
        from scipy.sparse import csr_array

        _require(self.dtype.itemsize >= 4, f"values: SciPy has no {self.dtype}")
        arrays = (self.values.numpy(), self.col_indices.numpy(), self.crow_indices.numpy())
        return csr_array(arrays, shape=self.shape)

    def to_bitmap(self) -> "Bitmap":
        """The same weight as a bitmap, which shares the values."""
        convert = _either(bitmap_from_csr, self.values)
        bitmask = convert(self.crow_indices, self.col_indices, self.shape[1])
        return Bitmap(bitmask, self.crow_indices.long(), self.values, self.shape)

    def linear(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias``; see sparsecore.linear."""
        self._check_x(x)
        args = (x, self.crow_indices, self.col_indices, self.values, bias)
        if out is None:
            if wants_grad(x, self.values, bias):
                return torch.ops.sparsecore.spmm_csr.default(*args)
            return torch.ops.sparsecore._spmm_csr.default(*args)
        return spmm_csr.spmm_csr(*args, out=out)

    def check(self) -> None:
        """Read the index arrays once.

        Raises:
            ValueError: naming the array that breaks an invariant.
        """
        _raise_value_error(
            torch.ops.sparsecore._check_csr, self.crow_indices, self.col_indices, self.values, self.shape[1]
        )


@dataclass(frozen=True, eq=False, repr=False)
class Bitmap(_Format):
    """Bitmap weight ``[n, k]``: one bit an element, then the nonzeros in row order.

    Attributes:
        bitmask: ``[n, 8 * ceil(k / 64)]`` uint8, least significant bit first; padding bits 0.
        row_offsets: ``[n + 1]`` int64 into values.
        values: ``[nnz]`` float32, bfloat16, float16, or int8 with scales.
        scales: ``[n]`` float32 with int8 values, else None.
        shape: ``(n, k)``.

    Raises:
        ValueError: at construction for shapes and dtypes; ``check()`` also reads mask and offsets.
    """

    names: ClassVar[tuple[str, ...]] = ("bitmask", "row_offsets", "values", "scales")
    offsets: ClassVar[str] = "row_offsets"
    bitmask: Tensor
    row_offsets: Tensor
    values: Tensor
    shape: tuple[int, int]
    scales: Tensor | None

    def __init__(
        self,
        bitmask: Tensor,
        row_offsets: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        scales: Tensor | None = None,
    ) -> None:
        n, k = shape = _check_shape(shape)
        _check_values(values, (*_FLOATS, torch.int8))
        _require(
            isinstance(bitmask, Tensor) and bitmask.dtype is torch.uint8, "bitmask: must be a uint8 tensor"
        )
        width = (k + 63) // 64 * 8
        _require(
            bitmask.shape == (n, width),
            f"bitmask: must be [{n}, {width}] for shape {shape}, not {list(bitmask.shape)}",
        )
        _require(
            isinstance(row_offsets, Tensor)
            and row_offsets.dtype is torch.int64
            and row_offsets.shape == (n + 1,),
            f"row_offsets: must be int64 [{n + 1}]",
        )
        _require(
            (values.dtype is torch.int8) == (scales is not None),
            "scales: go with int8 values, and only with them",
        )
        if scales is not None:
            _require(
                isinstance(scales, Tensor) and scales.dtype is torch.float32 and scales.shape == (n,),
                f"scales: must be float32 [{n}]",
            )
            scales = scales.contiguous()
        for name, value in (
            ("bitmask", bitmask.contiguous()),
            ("row_offsets", row_offsets.contiguous()),
            ("values", values.contiguous()),
            ("shape", shape),
            ("scales", scales),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dense(cls, w: Tensor, *, dtype: torch.dtype | None = None) -> "Bitmap":
        """The nonzeros of w ``[n, k]``; NaN is stored, -0.0 is not.

        dtype int8 quantises each row by its absolute maximum over 127, to nearest even.
        """
        dtype = _dense_2d(w, dtype, (*_FLOATS, torch.int8))
        w = w.detach()
        convert = _either(bitmap_from_dense, w) if w.dtype in _FLOATS else bitmap_from_dense.reference
        bitmask, row_offsets, values, scales = convert(w, dtype)
        n, k = w.shape
        return cls(bitmask, row_offsets, values, (n, k), scales if dtype is torch.int8 else None)

    def to_dense(self) -> Tensor:
        """``[n, k]`` of values' dtype, float32 when scaled."""
        convert = _either(bitmap_to_dense, self.values)
        return convert(self.bitmask, self.row_offsets, self.values, self.scales, self.shape[1])

    def to_csr(self, *, index_dtype: torch.dtype = torch.int32) -> Csr:
        """The same weight in CSR, which shares the values; int8 ones are scaled to float32."""
        _require(
            index_dtype is not torch.int32 or self.nnz < 2**31, "index_dtype: 2^31 stored elements need int64"
        )
        convert = _either(bitmap_to_csr, self.values)
        cols = convert(self.bitmask, self.row_offsets, self.shape[1], index_dtype is torch.int64)
        values = self.values
        if self.scales is not None:
            values = values.float() * self.scales.repeat_interleave(self.row_offsets.diff())
        return Csr(self.row_offsets.to(index_dtype), cols, values, self.shape)

    def linear(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias``; see sparsecore.linear."""
        self._check_x(x)
        args = (x, self.bitmask, self.row_offsets, self.values, self.scales, bias)
        if out is None:
            if wants_grad(x, self.values, self.scales, bias):
                return torch.ops.sparsecore.spmm_bitmap.default(*args)
            return torch.ops.sparsecore._spmm_bitmap.default(*args)
        return spmm_bitmap.spmm_bitmap(*args, out=out)

    def check(self) -> None:
        """Read the bitmask and the offsets once.

        Raises:
            ValueError: naming the array that breaks an invariant.
        """
        _raise_value_error(
            torch.ops.sparsecore._check_bitmap,
            self.bitmask,
            self.row_offsets,
            self.values,
            self.scales,
            self.shape[1],
        )
