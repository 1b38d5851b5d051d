# SPDX-License-Identifier: Apache-2.0
"""Samples of nm_compress: bits of any kind, ties, masks, every kind of group."""

from collections.abc import Iterator
from itertools import product

import torch

from . import EDGES, FLOATS, Case, bitmap_from_dense, f32, i8, spmm_nm

# Ways to choose beside the layouts of bitmap_from_dense: few magnitudes, so that ties decide; a mask that
# selects n of every m, or fewer; NaN and infinity; nothing but zeros.
CHOICES = ("ties", "mask", "sparse_mask", "wild", "tiny", "zero", "transposed", "every_other")
KINDS = (*spmm_nm.KINDS, (0, 0), (1, 0), (7, 0))
CASES = (
    *(  # sizes one off the widths that kernels like
        Case(
            0,
            5,
            e,
            pattern=f"{n}:{m}",
            dtype=FLOATS[(i + j) % 3],
            value=spmm_nm.VALUES[(i + 2 * j) % 5],
            layout=how,
        )
        for (i, e), (j, (n, m)) in product(enumerate(EDGES), enumerate(KINDS))
        if n <= e
        for how in (CHOICES[(i + j) % len(CHOICES)],)
    ),
    *(
        Case(0, 13, 150, pattern=f"{n}:{m}", dtype=d, value=v, layout=how)
        for (n, m), how, (i, d), (j, v) in product(
            KINDS, CHOICES, enumerate(FLOATS), enumerate(spmm_nm.VALUES)
        )
        if (i + j + n + m + len(how)) % 3 == 0
    ),
    *(Case(0, 3, k, pattern=f"{n}:{m}", value=v) for n, m in KINDS for k, v in ((40000, f32), (640, i8))),
)


def kind(case: Case) -> tuple[int, int]:
    """(n, m); generic suites ask with patterns of other ops."""
    if ":" not in case.pattern:
        return 2, 4
    n, m = case.pattern.split(":")
    return int(n), int(m)


def inputs(case: Case) -> dict:
    n, m = kind(case)
    g, mask = case.generator(), None
    if case.layout in ("wild", "tiny", "transposed", "every_other"):
        w = bitmap_from_dense.inputs(Case(0, case.n, case.k, 0.9, dtype=case.dtype, layout=case.layout))["w"]
    else:
        w = Case(0, case.n, case.k, 1.0, dtype=case.dtype).dense().to(case.dtype)
    if case.layout == "ties":
        w = (w * 2).round() / 2
    elif case.layout == "zero":
        w = torch.where(torch.rand(w.shape, generator=g) < 0.7, w.sign() * 0, w)
    elif "mask" in case.layout:
        mask = Case(0, case.n, case.k, 1.0, f"{n}:{m}").dense() != 0
        if case.layout == "sparse_mask":
            mask &= torch.rand(w.shape, generator=g) < 0.6
    return {"w": w, "n": n, "m": m, "dtype": case.value, "mask": mask}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    w, mask = inputs["w"], inputs["mask"]
    arrays = {"w": torch.nn.functional.pad(w, (0, 3), value=float("nan"))}
    if mask is not None:
        arrays["mask"] = torch.nn.functional.pad(mask, (0, 3), value=True).to(torch.uint8)
    return arrays, ("values", "positions", "scales"), {"k": w.shape[1]}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    w = inputs["w"]
    for wrong in (w.double(), w.int(), w.bool(), w.to(torch.complex64), w[0], w[None], torch.empty(0, 2**31)):
        yield "w", {**inputs, "w": wrong}
    for dtype in (torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e5m2):
        yield "dtype", {**inputs, "dtype": dtype}
    for n, m in ((3, 4), (2, 2), (0, 4), (4, 4), (1, 32), (2, -4), (-1, 4), (-1, 0), (w.shape[1] + 1, 0)):
        yield "n", {**inputs, "n": n, "m": m}
    mask = torch.zeros(w.shape, dtype=torch.bool)
    for wrong in (mask.int(), mask[0], mask[:, :-1], mask[:-1], mask.float()):
        yield "mask", {**inputs, "mask": wrong}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    w = inputs["w"]
    for n, m in KINDS:
        for row in (0, w.shape[0] - 1):
            mask = torch.zeros(w.shape, dtype=torch.bool)
            mask[row, : n + 1] = True
            yield "mask", {**inputs, "n": n, "m": m, "mask": mask}


def broken_rows(inputs: dict) -> set[int]:
    """Rows in which the mask selects too many of a group that stores something."""
    n, m, mask = inputs["n"], inputs["m"] or inputs["w"].shape[1], inputs["mask"]
    selected = torch.nn.functional.pad(mask, (0, -mask.shape[1] % m)).view(mask.shape[0], -1, m).sum(2)
    return set((selected > n).any(1).nonzero().flatten().tolist()) if n else set()
