# SPDX-License-Identifier: Apache-2.0
"""Samples of spmm_nm.

A case's pattern says n:m ("2:4"); of any other pattern, density chooses among the kinds, so that all of
them meet all the shapes that other weight ops meet. What is stored is not 0, but where a row's columns do
not suffice.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from sparsecore import testing
from sparsecore.ops import nm_compress, nm_to_dense

from . import FLOATS, MODEL_SHAPES, Case, bf16, f8, f32, i8, strided, tensor_bytes, weight_cases

VALUES = (*FLOATS, i8, f8)
KINDS = nm_to_dense.PACKED
# Density from which a kind is taken, and which of them by the size of W.
CHOICE = ((0.96, ()), (0.6, ((6, 8),)), (0.35, ((2, 4), (4, 8), (1, 2))), (0.15, ((1, 4), (2, 8), (2, 4))))
CHOICE += ((0.05, ((1, 8), (1, 16))),)


def kind(case: Case) -> tuple[int, int]:
    """(n, m); m is 0 for a constant fan-in."""
    if ":" in case.pattern:
        n, m = case.pattern.split(":")
        return int(n), int(m)
    fan_in = round(case.density * case.k), 0
    # 13 rows are weight_cases' sweep of dtypes, 3 its long rows: a constant fan-in is one of the kinds there.
    if case.n in (3, 300) and (case.k + case.m) % 3 == 0:
        return fan_in
    kinds = next((k for least, k in CHOICE if case.density >= least), ())
    return kinds[(case.n + case.k + case.m // 60) % len(kinds)] if kinds else fan_in


def every_kind() -> Iterator[Case]:
    for i, (n, m) in enumerate((*KINDS, (7, 0), (0, 0), (64, 0))):
        for j, value in enumerate(VALUES):
            for rows, k in ((1, 130), (3, 64), (6, 201), (17, 300), (40, 70)):
                x = FLOATS[(i + j) % 3]
                yield Case(
                    rows, 9 + 5 * j, k, n / m if m else 0.0, f"{n}:{m}", dtype=x, value=value, bias=j % 2 == 0
                )
        yield Case(2, 70, 1000, n / m if m else 0.0, f"{n}:{m}", bias=True)
        yield Case(1, 130, 2048, n / m if m else 0.0, f"{n}:{m}", value=bf16)
        yield Case(64, 37, 700, n / m if m else 0.0, f"{n}:{m}", value=bf16)


CASES = (*weight_cases(VALUES), *every_kind())
BENCH = tuple(
    Case(m, n, k, density, pattern, dtype=d, value=v)
    for n, k in MODEL_SHAPES
    for pattern, density in (("2:4", 0.5), ("1:4", 0.25), ("2:8", 0.25))
    for m in (1, 8, 64)
    for d, v in ((f32, f32), (bf16, bf16), (bf16, i8))
)


def inputs(case: Case) -> dict:
    keep, group = kind(case)
    w = replace(case, pattern=f"{keep}:{group}").dense()
    values, positions, _ = nm_compress.reference(w, keep, group, f32, w != 0)
    inside = nm_to_dense.columns(values, positions, case.k).view(values.shape) < case.k
    scales = None
    if case.value in (i8, f8):  # every code, so 0 is stored too
        g = case.generator()
        codes = torch.randint(-127, 128, values.shape, generator=g, dtype=i8)
        values = torch.where(inside, codes if case.value is i8 else codes.float() * 3, 0).to(case.value)
        scales = torch.rand(case.n, generator=g) / 100 + 1e-3
    return {
        "x": case.x(),
        "values": values.to(case.value),
        "positions": positions,
        "scales": scales,
        "bias": case.bias_or_none(),
    }


def rows(inputs: dict) -> int:
    return inputs["values"].shape[0]


def weight(inputs: dict) -> torch.Tensor:
    values = inputs["values"].double().flatten(1)
    if inputs["scales"] is not None:
        values = values * inputs["scales"].double()[:, None]
    k = inputs["x"].shape[-1]
    return nm_to_dense.scatter(values, nm_to_dense.columns(inputs["values"], inputs["positions"], k), k)


def roundings(inputs: dict) -> int:
    return 1 + (inputs["scales"] is not None)


def native(inputs: dict) -> tuple[dict, dict]:
    names = ("values", "positions", "scales")
    return {name: inputs[name] for name in names if inputs[name] is not None}, {}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    values, positions, scales = inputs["values"], inputs["positions"], torch.ones(rows(inputs))
    for t in (
        positions.bool(),
        positions.long(),
        positions.int(),
        positions[0],
        positions[:-1],
        positions[:, :-1],
    ):
        yield "positions", {**inputs, "positions": t}
    yield "positions", {**inputs, "positions": strided(positions)}
    for t in (
        values[0],
        values.flatten(1),
        values[..., :1],
        values.repeat(1, 3, 1),
        values.to(torch.float8_e5m2),
    ):
        yield "values|positions", {**inputs, "values": t}
    yield "values", {**inputs, "scales": scales}
    for t in (None, scales[:-1], scales.double(), scales[None], strided(scales)):
        yield "scales", {**inputs, "values": values.char(), "scales": t}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    values, k = inputs["values"], inputs["x"].shape[-1]
    last = rows(inputs) - 1
    # Whatever the sample's own kind, those whose positions can be wrong.
    for keep, group, wrong in (
        (2, 4, (0b0000, 0b0101, 0b1111, 0b0001, 0b0111)),
        (2, 8, (0b00000000, 0b10000001, 0b00001000, 0b00010011, 0b11110000)),
        (4, 8, (0, 255, 0b111, 0b11111, 0b10101)),
        (6, 8, (0, 255, 0b1111, 0b1111111)),
        (1, 8, (8, 15)),
    ):
        w = testing.random_weight(rows(inputs), k, 1.0, seed=keep + group)
        stored, positions, _ = nm_compress.reference(w, keep, group, f32)
        for i, code in enumerate(wrong):
            broken = positions.clone()
            at = (0 if i % 2 else last, (0, broken.shape[1] // 2, broken.shape[1] - 1)[i % 3])
            broken[at] = (
                broken[at] & 0xF0 | code if (code < 16 and group != 8) or (keep, group) == (1, 8) else code
            )
            yield "positions", {**inputs, "values": stored.to(values.dtype), "positions": broken}
    w = testing.random_weight(rows(inputs), k, 1.0, seed=9)
    stored, positions, _ = nm_compress.reference(w, k // 3, 0, f32)
    for row, at, column in (
        *((last, 3, c) for c in (-1, k, 2**15 - 1, -(2**15))),
        (0, 0, -1), (0, k // 3 - 1, k), (last, k // 3 - 1, 2**15 - 1), (0, 1, int(positions[0, 0])),
        (last, 2, int(positions[last, 1])), (last, 1, k - 1), (last // 2, k // 3 - 1, 0),
    ):  # fmt: skip
        broken = positions.clone()
        broken[row, at] = column
        yield "positions", {**inputs, "values": stored.to(values.dtype), "positions": broken}


def broken_rows(inputs: dict) -> set[int]:
    """Rows that break an invariant of their own."""
    values, positions = inputs["values"], inputs["positions"]
    k, n = inputs["x"].shape[-1], values.shape[2]
    m = nm_to_dense.group_size(values, positions, k)
    if nm_to_dense.is_mask(n, m) and positions.dtype is torch.uint8:
        counts = (positions[..., None] >> torch.arange(8) & 1).sum(-1)
        return set((counts != n).any(1).nonzero().flatten().tolist())
    cols = nm_to_dense.columns(values, positions, k).view(values.shape)
    wrong = (cols.diff(dim=2) <= 0).any(2).any(1)
    if positions.dtype is not torch.uint8:
        wrong |= ((cols < 0) | (cols >= k)).any(2).any(1)
    elif m == 8:  # fields of 4 bits
        wrong |= ((positions & 0x88) != 0).any(1)
    return set(wrong.nonzero().flatten().tolist())


def flops(inputs: dict) -> int:
    m = inputs["x"].numel() // max(inputs["x"].shape[-1], 1)
    return 2 * m * inputs["values"].numel()


def nbytes(inputs: dict) -> int:
    x = inputs["x"]
    m = x.numel() // max(x.shape[-1], 1)
    weight = tensor_bytes(inputs["values"], inputs["positions"], inputs["scales"], inputs["bias"])
    return weight + (x.numel() + m * rows(inputs)) * x.element_size()


def with_kind(case: Case, keep: int, group: int) -> Case:
    """The case with another kind of W."""
    return replace(case, pattern=f"{keep}:{group}", density=keep / group if group else keep / max(case.k, 1))
