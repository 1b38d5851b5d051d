# SPDX-License-Identifier: Apache-2.0
"""Which named cases a run times, and which of them side by side."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import product

import torch

from . import cases
from .cases import Case, bf16, f16, f32, i8, i32, i64

DTYPES = {"f32": f32, "bf16": bf16, "f16": f16, "i8": i8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Cell:
    """One product y = x @ W.T, and the cases of ops that compute it: alike in all but dtypes."""

    key: Case
    ours: tuple[tuple[str, Case], ...]

    @property
    def weight(self) -> Case:
        """Alike for cells that share W."""
        return replace(self.key, m=1)


def pair(text: str) -> tuple[torch.dtype, torch.dtype]:
    """ "f32" and "f32/bf16": dtype of x / of the values."""
    x, _, values = text.partition("/")
    return DTYPES[x], DTYPES[values or x]


def shape(text: str) -> tuple[int, int]:
    n, k = map(int, text.split("x"))
    return n, k


def made(
    ops: Iterable[str],
    shapes: Iterable[tuple[int, int]],
    sparsities: Iterable[float],
    ms: Iterable[int],
    pairs: Iterable[tuple[torch.dtype, torch.dtype]],
    pattern: str = "uniform",
) -> list[tuple[str, Case]]:
    """A case of every op for every choice; dtypes and patterns that an op has no sample of are left out."""
    found = []
    ops, ms, pairs = list(ops), list(ms), list(pairs)
    for (n, k), s, m, op, (d, v) in product(shapes, sparsities, ms, ops, pairs):
        samples = cases.of(op).CASES
        if ":" not in pattern and hasattr(cases.of(op), "KINDS"):
            continue  # W of any other pattern is not what the op would multiply
        if any((c.dtype, c.value) == (d, v) for c in samples):
            index = i32 if any(c.index is i32 for c in samples) else i64
            found.append((op, Case(m, n, k, round(1 - s, 6), pattern, dtype=d, value=v, index=index)))
    return found


def named(
    ops: Iterable[str], pattern: str, pairs: Iterable[tuple[torch.dtype, torch.dtype]] | None
) -> list[tuple[str, Case]]:
    """Cases for bench whose name matches; where none does, those for tests."""
    wanted = None if pairs is None else set(pairs)
    for group in ("BENCH", "CASES"):
        every = [(op, c) for op in ops for c in getattr(cases.of(op), group) if fnmatch(c.name, pattern)]
        if group == "CASES":  # a kind of N:M that a case does not name is not another op's W
            every = [(op, c) for op, c in every if ":" in c.pattern or not hasattr(cases.of(op), "KINDS")]
        found = [
            (op, c) for op, c in every if c.m * c.n * c.k and (wanted is None or (c.dtype, c.value) in wanted)
        ]
        if found:
            return found
    return []


def cells(chosen: Iterable[tuple[str, Case]]) -> list[Cell]:
    """Cells in the order in which they are cheapest to prepare: those of a weight together."""
    groups: dict[Case, list[tuple[str, Case]]] = {}
    for op, case in chosen:
        groups.setdefault(replace(case, dtype=f32, value=f32, index=i64), []).append((op, case))
    found = [Cell(key, tuple(dict.fromkeys(ours))) for key, ours in groups.items()]
    order = {weight: i for i, weight in enumerate(dict.fromkeys(cell.weight for cell in found))}
    return sorted(found, key=lambda cell: order[cell.weight])
