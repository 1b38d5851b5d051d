# SPDX-License-Identifier: Apache-2.0
"""Samples of spmm_bitmap."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from . import FLOATS, Case, bench_cases, bf16, f32, i8, strided, tensor_bytes, weight_cases

CASES = weight_cases((*FLOATS, i8))
BENCH = bench_cases([(f32, f32), (bf16, bf16), (bf16, i8)])


def inputs(case: Case) -> dict:
    w = case.dense()
    stored = w != 0
    padded = np.zeros((case.n, (case.k + 63) // 64 * 64), dtype=bool)
    padded[:, : case.k] = stored
    offsets = torch.zeros(case.n + 1, dtype=torch.int64)
    offsets[1:] = stored.sum(1).cumsum(0)
    values, scales = w[stored].to(case.value), None
    if case.value is i8:  # every code from -127 to 127, so 0 is stored too
        g = case.generator()
        values = torch.randint(-127, 128, (values.numel(),), generator=g, dtype=i8)
        scales = torch.rand(case.n, generator=g) / 100 + 1e-3
    return {
        "x": case.x(),
        "bitmask": torch.from_numpy(np.packbits(padded, axis=1, bitorder="little")),
        "row_offsets": offsets,
        "values": values,
        "scales": scales,
        "bias": case.bias_or_none(),
    }


def rows(inputs: dict) -> int:
    return inputs["row_offsets"].numel() - 1


def weight(inputs: dict) -> torch.Tensor:
    k = inputs["x"].shape[-1]
    stored = torch.from_numpy(
        np.unpackbits(inputs["bitmask"].numpy(), axis=1, bitorder="little")[:, :k].astype(bool)
    )
    w = torch.zeros(rows(inputs), k, dtype=torch.float64)
    w[stored] = inputs["values"].double()
    return w if inputs["scales"] is None else w * inputs["scales"].double()[:, None]


def roundings(inputs: dict) -> int:
    return 1 + (inputs["scales"] is not None)


def native(inputs: dict) -> tuple[dict, dict]:
    names = ("bitmask", "row_offsets", "values", "scales")
    return {name: inputs[name] for name in names if inputs[name] is not None}, {}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    mask, offsets, values = inputs["bitmask"], inputs["row_offsets"], inputs["values"]
    scales = torch.ones(rows(inputs))
    wrong = {
        "bitmask": [
            mask.bool(),
            mask.char(),
            mask[0],
            mask[:, :-1],
            torch.cat([mask, mask], 1),
            strided(mask),
        ],
        "row_offsets": [offsets.int(), offsets[:-1], offsets[None], strided(offsets)],
    }
    yield from ((name, {**inputs, name: t}) for name, tensors in wrong.items() for t in tensors)
    yield "values", {**inputs, "scales": scales}
    for t in (None, scales[:-1], scales.double(), scales[None], strided(scales)):
        yield "scales", {**inputs, "values": values.char(), "scales": t}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    offsets, mask, k = inputs["row_offsets"], inputs["bitmask"], inputs["x"].shape[-1]
    n, nnz = rows(inputs), inputs["values"].numel()

    def broken(name: str, at, change) -> tuple[str, dict]:
        t = inputs[name].clone()
        t[at] = change(t[at]) if callable(change) else change
        # Where the two disagree, either may be named.
        return "bitmask|row_offsets", {**inputs, name: t}

    extremes = [torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max, -1]
    yield from (broken("row_offsets", 0, v) for v in (1, *extremes))
    yield from (broken("row_offsets", n, v) for v in (nnz - 1, nnz + 1, *extremes))
    yield from (broken("row_offsets", n // 2, v) for v in (nnz + 1, *extremes))
    long = int(offsets.diff().argmax())
    yield broken("row_offsets", long + 1, int(offsets[long]) - 1)  # falls
    byte = int(mask[long].argmax())  # holds a set bit
    yield broken("bitmask", (long, byte), lambda b: b & (b - 1))  # one bit less than values
    yield broken("bitmask", (long, byte), lambda b: b ^ 255)
    yield broken("bitmask", (n - 1, slice(None)), 255)
    yield broken("bitmask", (n - 1, slice(0, k // 8)), 255)  # more bits than values are left
    assert k % 64, "a shape with padding bits"
    # A padding bit in place of a real one: the count is right.
    name, moved = broken("bitmask", (long, byte), lambda b: b & (b - 1))
    moved["bitmask"][long, k // 8] |= 1 << (k % 8)
    if k % 8 == 0 or byte != k // 8:
        yield name, moved


def broken_rows(inputs: dict) -> set[int]:
    """Rows that break an invariant of their own."""
    mask, k, nnz = inputs["bitmask"].numpy(), inputs["x"].shape[-1], inputs["values"].numel()
    bits = np.unpackbits(mask, axis=1, bitorder="little")
    ends = inputs["row_offsets"].tolist()
    return {
        i
        for i, (begin, end) in enumerate(pairwise(ends))
        if not 0 <= begin <= end <= nnz or int(bits[i].sum()) != end - begin or bits[i, k:].any()
    }


def flops(inputs: dict) -> int:
    return 2 * inputs["x"].numel() // max(inputs["x"].shape[-1], 1) * inputs["values"].numel()


def nbytes(inputs: dict) -> int:
    x = inputs["x"]
    y = x.numel() // max(x.shape[-1], 1) * rows(inputs) * x.element_size()
    return tensor_bytes(*inputs.values()) + y
