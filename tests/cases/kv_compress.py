# SPDX-License-Identifier: Apache-2.0
"""Samples of kv_compress: every head_dim, ties, NaN, zeros, strides, weights."""

from collections.abc import Iterator
from itertools import product

import torch

from . import FLOATS, Case, bitmap_from_dense, strided

# Few magnitudes, so that ties decide; NaN and infinity; subnormals; mostly zeros; strides.
WEIGHTED = ("weighted", "weighted_heads", "weighted_batch", "weighted_wild")
CHOICES = ("plain", "ties", "wild", "tiny", "zero", "batch", "transposed", "every_other")
CASES = (
    *(  # head_dim 32 to 256
        Case(0, 7, k, (0.3, 0.5, 0.1)[k % 3], value=FLOATS[(k + j) % 3], layout=how)
        for k, (j, how) in product(range(29), enumerate(CHOICES))
        if (k + j) % 3 == 0
    ),
    *(Case(0, 5, k, density, value=v) for k in (4, 12) for density in (0.0, 1.0, 0.01, 0.97) for v in FLOATS),
    *(
        Case(0, 5 + k % 3, k, (0.3, 0.5, 0.1)[k % 3], value=FLOATS[(k // 4 + k) % 3], layout=WEIGHTED[k % 4])
        for k in range(29)
    ),
    *(Case(0, n, 4, 0.3, value=v, layout=how) for n in (0, 1, 33) for v in FLOATS for how in WEIGHTED),
    *(Case(0, n, 4, 0.3, value=v) for n in (0, 1, 2, 3, 64, 301) for v in FLOATS),
)


def head_dim(case: Case) -> int:
    """Generic suites ask for any k."""
    return 32 + 8 * (case.k % 29)


def keep(case: Case) -> int:
    return round(case.density * head_dim(case))


def inputs(case: Case) -> dict:
    n, d = case.n, head_dim(case)
    g = torch.Generator().manual_seed(1000 * n + case.k)
    if case.layout in ("wild", "tiny", "transposed", "every_other"):
        like = Case(0, n, d, 0.9, dtype=case.value, layout=case.layout)
        x = bitmap_from_dense.inputs(like)["w"]
    else:
        x = torch.randn(n, d, generator=g).to(case.value)
    if case.layout == "ties":
        x = (x * 2).round() / 2
    elif case.layout == "zero":
        x = torch.where(torch.rand(n, d, generator=g) < 0.9, x.sign() * 0, x)
    elif case.layout == "batch":
        x = torch.stack([x, -x.flip(1)], 1).transpose(0, 1)
    weight = None
    if case.layout in WEIGHTED:
        if case.layout != "weighted":
            x = torch.stack([x, x.flip(1), -x.roll(1, 1), x * 2, x / 2, x.abs()]).unflatten(0, (2, 3))
        shape = {"weighted": (d,), "weighted_heads": (3, d)}.get(case.layout, (2, 3, d))
        weight = torch.rand(shape, generator=g)
        if case.layout == "weighted_wild":  # few magnitudes, products that are no numbers, either sign
            weight = (weight * 3).round() - 1
            weight[torch.rand(shape, generator=g) < 0.1] = float("inf")
            weight[torch.rand(shape, generator=g) < 0.1] = float("nan")
            x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x * 0, (x * 2).round())
    return {"x": x, "keep": keep(case), "weight": weight}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    rows = inputs["x"].flatten(0, -2)
    arrays = {"x": torch.nn.functional.pad(rows, (0, 3), value=float("nan"))}
    if inputs["weight"] is not None:
        arrays["weight"] = inputs["weight"]
    tokens = inputs["x"].shape[-2]
    return arrays, ("bitmask", "values"), {"head_dim": rows.shape[1], "tokens": tokens}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    x = inputs["x"]
    for wrong in (x.double(), x.int(), x.bool(), x.to(torch.complex64), x[0, 0], x[:, :-1], x[:, :24]):
        yield "x", {**inputs, "x": wrong}
    for d in (0, 264, 2**31):
        yield "x", {**inputs, "x": torch.empty(0, d)}
    for keep in (-1, x.shape[1] + 1, 2**62):
        yield "keep", {**inputs, "keep": keep}
    heads, weight = x.expand(2, 3, *x.shape), torch.rand(3, x.shape[1])
    for w in (weight.double(), weight.half(), weight[:, :-8].contiguous(), weight[:2], strided(weight)):
        yield "weight", {**inputs, "x": heads, "weight": w}
    for w in (weight[0, 0], weight[None, None].expand(2, 2, 3, -1).contiguous(), weight.T.contiguous()):
        yield "weight", {**inputs, "x": heads, "weight": w}
    yield "weight", {**inputs, "weight": weight}
