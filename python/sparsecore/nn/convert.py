# SPDX-License-Identifier: Apache-2.0
"""Replace the nn.Linear modules of a model by SparseLinear, and say what it saves."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.formats import Bitmap, Csr
from sparsecore.nm import Nm
from sparsecore.nn.linear import SparseLinear
from sparsecore.progress import bar


@dataclass(frozen=True)
class LayerReport:
    """One layer: its format and its weight's bytes before and after."""

    name: str
    shape: tuple[int, int]
    density: float
    format: str
    dense_bytes: int
    sparse_bytes: int

    @property
    def estimated_speedup(self) -> float:
        """Decode with batch 1 reads every weight once, so time is modelled as bytes: dense / sparse."""
        return self.dense_bytes / self.sparse_bytes if self.sparse_bytes else 1.0


@dataclass(frozen=True)
class Report:
    """What :func:`sparsify_` did: one row per layer it looked at, in the model's order."""

    layers: tuple[LayerReport, ...]

    @property
    def total(self) -> LayerReport:
        """All layers as one: shapes summed up to (elements, 1)."""
        count = sum(row.shape[0] * row.shape[1] for row in self.layers)
        nonzeros = sum(row.density * row.shape[0] * row.shape[1] for row in self.layers)
        formats = sorted({row.format for row in self.layers})
        return LayerReport(
            "total",
            (count, 1),
            nonzeros / count if count else 1.0,
            "+".join(formats),
            sum(row.dense_bytes for row in self.layers),
            sum(row.sparse_bytes for row in self.layers),
        )

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.name,
                "x".join(map(str, row.shape)) if row.name != "total" else str(row.shape[0]),
                f"{row.density:.3f}",
                row.format,
                f"{row.dense_bytes / 1e6:.2f}",
                f"{row.sparse_bytes / 1e6:.2f}",
                f"{row.estimated_speedup:.2f}x",
            )
            for row in (*self.layers, self.total)
        ]

    _header = ("layer", "shape", "density", "format", "dense MB", "sparse MB", "batch-1 estimate")

    def __str__(self) -> str:
        rows = [self._header, *self._cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._header))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(
            *self._header, caption="estimate: bytes of dense over sparse weights, not a measurement"
        )
        *rows, total = self._cells()
        for row in rows:
            table.add_row(*row)
        table.add_section()
        table.add_row(*total)
        return table


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def selected(
    model: nn.Module,
    kinds: type | tuple[type, ...],
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> list[tuple[str, Any, bool]]:
    """Modules of some kinds that the patterns select: name, module, whether no other shares its weight."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        (name, module, owners.get(id(module.weight), 0) == 1)  # type: ignore[attr-defined]
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and (include is None or _matches(name, include))
        and not (exclude is not None and _matches(name, exclude))
    ]


def sparsify_(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    format: str = "auto",
    trainable: bool = False,
    progress: bool = True,
) -> Report:
    """Replace every pruned nn.Linear of a model, in place, by a :class:`SparseLinear`.

    A layer for which ``"auto"`` keeps the dense weight stays the nn.Linear it is, and so does one whose
    weight another module shares (a tied output embedding: untie it first to make it sparse). A second call
    finds nothing left to do and reports the same.

    Args:
        model: any module that contains nn.Linear.
        include, exclude: glob patterns of dotted module names; all, but for the excluded, by default.
        dtype: of the stored values, e.g. torch.bfloat16; activations keep theirs. Default: the weight's.
        format: "auto", "csr", "bitmap" or "2:4" and its like, as :func:`sparsecore.sparsify`.
        trainable: values and biases become parameters.
        progress: show a bar on stderr.

    Returns:
        A :class:`Report` of every layer that the patterns select.

    Raises:
        ValueError: naming the argument; ``include`` when it selects no layer.
    """
    chosen = selected(model, (nn.Linear, SparseLinear), include, exclude)
    if not chosen and include is not None:
        raise ValueError(f"include: {include!r} selects no linear layer")
    rows = []
    for name, module, alone in bar(chosen, progress, "sparsify", "layer"):
        if isinstance(module, nn.Linear) and alone:
            module = _replaced(model, name, module, dtype, format, trainable)
        rows.append(_row(name, module))
    return Report(tuple(rows))


def _replaced(
    model: nn.Module, name: str, layer: nn.Linear, dtype: torch.dtype | None, format: str, trainable: bool
) -> nn.Linear | SparseLinear:
    if not name:
        raise ValueError("model: is itself the layer; use SparseLinear.from_linear")
    with warnings.catch_warnings():
        # The report says which layers stay dense.
        warnings.filterwarnings("ignore", message="dense_weight: kept dense")
        sparse = SparseLinear.from_linear(layer, dtype=dtype, format=format, trainable=trainable)
    if isinstance(sparse.weight, Tensor):
        return layer
    model.set_submodule(name, sparse)
    return sparse


def _row(name: str, module: nn.Linear | SparseLinear) -> LayerReport:
    weight: Tensor | Csr | Bitmap | Nm = module.weight
    shape = (module.out_features, module.in_features)
    count = shape[0] * shape[1]
    if isinstance(weight, Tensor):
        density = int(torch.count_nonzero(weight)) / count if count else 1.0
        return LayerReport(name, shape, density, "dense", weight.nbytes, weight.nbytes)
    dense_bytes = count * module.dense_itemsize if isinstance(module, SparseLinear) else weight.nbytes
    kind = f"{type(weight).__name__.lower()} {str(weight.dtype).removeprefix('torch.')}"
    return LayerReport(name, shape, weight.density, kind, dense_bytes, weight.nbytes)
