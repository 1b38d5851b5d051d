# SPDX-License-Identifier: Apache-2.0
"""N:M weights: of every group of m columns of a row, n are stored."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .arguments import wants_grad
from .formats import (
    _FLOATS,
    _check_shape,
    _dense_2d,
    _either,
    _Format,
    _raise_value_error,
    _require,
)
from .ops import nm_compress, nm_to_dense, spmm_nm, spmm_nm_fused

_SCALED = (torch.int8, torch.float8_e4m3fn)
_KINDS = ", ".join(f"{n}:{m}" for n, m in nm_to_dense.PACKED)


def _require_at_most(mask: Tensor, n: int, m: int) -> None:
    """Waits for the device: an op there cannot refuse a mask."""
    selected = torch.nn.functional.pad(mask, (0, -mask.shape[1] % m)).unflatten(1, (-1, m)).sum(2)
    rows = (selected > n).any(1).nonzero()
    _require(
        not len(rows), f"mask: row {int(rows[0]) if len(rows) else 0} selects more than {n} in a group of {m}"
    )


@dataclass(frozen=True, eq=False, repr=False)
class Nm(_Format):
    """N:M weight ``[rows, k]``: n of every m columns stored, or of the whole row (constant fan-in).

    Attributes:
        values: ``[rows, G, n]`` float32, bfloat16, float16, or int8 or float8_e4m3fn with scales; a group's
            in rising order of column. G groups of m columns make K = 64 * ceil(k / 64); a value past k takes
            no part.
        positions: uint8 ``[rows, bytes]``, a field a group from the least significant bit on: the columns
            within it (1, 2, 4, 4 bits each for m = 2, 4, 8, 16: 2:4 as mma.sp has it), or for 4:8 and 6:8 a
            mask of 8 bits. Of a constant fan-in (G = 1) the columns, int16 ``[rows, n]`` up to k = 2^15, else
            int32.
        scales: ``[rows]`` float32 with values of 8 bits, else None.
        shape: ``(rows, k)``.

    csrc/core/nm.h draws it. Every tensor is plain and means the same on any device.

    Raises:
        ValueError: at construction for shapes and dtypes; ``check()`` also reads the positions.
    """

    names: ClassVar[tuple[str, ...]] = ("values", "positions", "scales")
    values: Tensor
    positions: Tensor
    shape: tuple[int, int]
    scales: Tensor | None

    def __init__(
        self, values: Tensor, positions: Tensor, shape: tuple[int, int], scales: Tensor | None = None
    ) -> None:
        rows, k = shape = _check_shape(shape)
        _require(isinstance(values, Tensor) and values.dim() == 3, "values: must be a tensor [rows, G, n]")
        _require(
            values.dtype in (*_FLOATS, *_SCALED),
            f"values: dtype must be one of {(*_FLOATS, *_SCALED)}, not {values.dtype}",
        )
        _require(values.shape[0] == rows, f"values: must have {rows} rows, not {values.shape[0]}")
        _require(
            isinstance(positions, Tensor) and positions.dim() == 2, "positions: must be a tensor [rows, ...]"
        )
        groups, n = values.shape[1:]
        if positions.dtype is torch.uint8:
            padded = -(-k // nm_to_dense.COLUMNS) * nm_to_dense.COLUMNS
            m = nm_to_dense.group_size(values, positions, k)
            _require(
                (n, m) in nm_to_dense.PACKED and m * groups == padded,
                f"values: {groups} groups of {n} for {padded} padded columns are none of {_KINDS}",
            )
            width = nm_to_dense.row_bytes(n, m, k)
        else:
            index = torch.int16 if k <= 1 << 15 else torch.int32
            _require(
                positions.dtype is index,
                f"positions: dtype must be uint8, or {index} of a constant fan-in, not {positions.dtype}",
            )
            _require(
                groups == 1 and n <= k,
                f"values: a constant fan-in has [{rows}, 1, at most {k}], not {list(values.shape)}",
            )
            width = n
        _require(
            positions.shape == (rows, width),
            f"positions: must be [{rows}, {width}] for shape {shape}, not {list(positions.shape)}",
        )
        _require(
            (values.dtype in _SCALED) == (scales is not None),
            "scales: go with int8 and float8_e4m3fn values, and only with them",
        )
        if scales is not None:
            _require(
                isinstance(scales, Tensor) and scales.dtype is torch.float32 and scales.shape == (rows,),
                f"scales: must be float32 [{rows}]",
            )
            scales = scales.contiguous()
        for name, value in (
            ("values", values.contiguous()),
            ("positions", positions.contiguous()),
            ("shape", shape),
            ("scales", scales),
        ):
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        return self.values.shape[2]

    @property
    def m(self) -> int:
        """Columns of a group; k of a constant fan-in."""
        return nm_to_dense.group_size(self.values, self.positions, self.shape[1])

    @property
    def density(self) -> float:
        """n / m; 1 for an empty shape."""
        return self.n / self.m if self.shape[0] * self.shape[1] else 1.0

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        n: int,
        m: int | None = None,
        *,
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Nm":
        """Of w ``[rows, k]`` the n largest magnitudes of every m columns, of equals the lowest column.

        Args:
            m: None for n of the whole row, a constant fan-in.
            mask: bool ``[rows, k]``: store these instead, at most n in a group; ``w != 0`` takes a weight
                that is n:m already, and refuses one that is not.
            dtype: of the values; int8 and float8_e4m3fn quantise each row by its absolute maximum over 127,
                448.

        Raises:
            ValueError: naming the argument: a kind that is not there, a mask that selects too many.
        """
        dtype = _dense_2d(w, dtype, (*_FLOATS, *_SCALED))
        _require(w.dtype in _FLOATS, f"w: dtype must be one of {_FLOATS}, not {w.dtype}")
        fan_in = m is None and 0 <= n <= w.shape[1]
        _require(
            fan_in or (n, m) in nm_to_dense.PACKED,
            f"n: {n}:{m} is none of {_KINDS}, nor n <= {w.shape[1]} of a whole row (m = None)",
        )
        try:
            made = _either(nm_compress, w)(w.detach(), n, m or 0, dtype, mask)
        except RuntimeError as error:
            raise ValueError(str(error).split("\n")[0]) from None
        if mask is not None and w.is_cuda:
            _require_at_most(mask, n, m or max(w.shape[1], 1))
        values, positions, scales = made
        return cls(values, positions, (w.shape[0], w.shape[1]), scales if dtype in _SCALED else None)

    @classmethod
    def from_torch(cls, w: Tensor) -> "Nm":
        """2:4 of a ``torch.sparse.SparseSemiStructuredTensor``, by way of its dense form.

        Raises:
            ValueError: for another tensor, or dtypes other than float32, bfloat16 and float16.
        """
        _require(
            isinstance(w, torch.sparse.SparseSemiStructuredTensor), "w: must be a SparseSemiStructuredTensor"
        )
        dense = w.to_dense()
        return cls.from_dense(dense, 2, 4, mask=dense != 0)

    def to_torch(self) -> Tensor:
        """2:4 as ``torch.sparse.to_sparse_semi_structured`` makes it: on CUDA, in shapes that it takes."""
        _require((self.n, self.m) == (2, 4), f"weight: torch has 2:4 alone, not {self.n}:{self.m}")
        return torch.sparse.to_sparse_semi_structured(self.to_dense())

    def to_dense(self) -> Tensor:
        """``[rows, k]`` of values' dtype, float32 when scaled."""
        return _either(nm_to_dense, self.values)(self.values, self.positions, self.scales, self.shape[1])

    def linear(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """``activation(x @ W.T + bias) + residual``; see sparsecore.linear."""
        self._check_x(x)
        args = (x, self.values, self.positions, self.scales, bias)
        if activation is not None or residual is not None:
            if out is None:
                wants = wants_grad(x, self.values, self.scales, bias, residual)
                op = torch.ops.sparsecore.spmm_nm_fused if wants else torch.ops.sparsecore._spmm_nm_fused
                return op.default(*args, residual, spmm_nm_fused.code(activation))
            y = spmm_nm_fused.finished(self.linear(x, bias), activation, residual)
            return y if out is None else out.copy_(y)
        if out is None:
            if wants_grad(x, self.values, self.scales, bias):
                return torch.ops.sparsecore.spmm_nm.default(*args)
            return torch.ops.sparsecore._spmm_nm.default(*args)
        return spmm_nm.spmm_nm(*args, out=out)

    def check(self) -> None:
        """Read the positions once.

        Raises:
            ValueError: naming the array that breaks an invariant.
        """
        _raise_value_error(
            torch.ops.sparsecore._check_nm, self.values, self.positions, self.scales, self.shape[1]
        )

    def __repr__(self) -> str:
        kind = f"{self.n}:{self.m}"
        return f"Nm({kind}, shape={self.shape}, dtype={self.dtype}, device={self.device})"
