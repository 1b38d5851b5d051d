# SPDX-License-Identifier: Apache-2.0
"""Samples of spgemm. Of a Case, A is [m, k] and B [k, n]; `layout` names what is odd about their rows."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from sparsecore import testing

from . import EDGES, Case, bf16, f16, f32, i32, i64, strided, tensor_bytes

f64, c64, c128 = torch.float64, torch.complex64, torch.complex128
NUMBERS = (f32, f64, c64, c128)
NAMES = tuple(f"{side}_{name}" for side in "ab" for name in ("crow_indices", "col_indices", "values"))
PRODUCT = True  # neither a weight op nor a conversion

LAYOUTS = ("plain", "unsorted", "repeated", "one_a_row")


def _every() -> Iterator[Case]:
    types = list(product(NUMBERS, (i64, i32)))
    for v, x in types:
        for layout in LAYOUTS:
            yield Case(20, 130, 30, 0.2, value=v, index=x, layout=layout)
    for i, e in enumerate(EDGES):  # sizes one off a word's 64 columns
        v, x = types[i % len(types)]
        yield Case(5, e, 9, 0.4, value=v, index=x)
        yield Case(e, 40, 6, 0.5, value=v, index=x)
        yield Case(6, 70, e, 0.3, value=v, index=x)
    for i, pattern in enumerate(("banded", "power_law", "one_dense_row", "empty_rows")):
        for j, density in enumerate((0.05, 0.3)):
            v, x = types[(2 * i + j) % len(types)]
            yield Case(90, 300, 120, density, pattern, value=v, index=x)
    for (v, x), density in product(types, (0.0, 0.01, 0.6, 1.0)):  # by words of one bit, of many, of all
        yield Case(21, 150, 70, density, value=v, index=x)
    for v in NUMBERS:  # wider than a scan of all words pays; more products than are staged at once
        yield Case(9, 40_000, 30, 0.0005, value=v)
        yield Case(9, 40_000, 30, 0.0005, value=v, layout="repeated", index=i32)
        yield Case(3, 70_000, 40, 0.01, value=v)
        yield Case(4, 300_000, 5, 0.0002, value=v, index=i32)
        yield Case(8, 1000, 400, 0.1, value=v)
    yield Case(60, 5000, 2000, 0.01, value=f32, index=i32)


CASES = tuple(dict.fromkeys(_every()))


def _cuda() -> Iterator[Case]:
    for c in CASES:  # with few rows where there are many products: each takes the emulated grid microseconds
        if not c.value.is_complex:
            yield replace(c, m=min(c.m, 5)) if c.m * c.k * c.n * c.density**2 > 10_000 else c
    for v, x in product((bf16, f16), (i64, i32)):
        for layout in LAYOUTS:
            yield Case(20, 130, 30, 0.2, value=v, index=x, layout=layout)
        yield Case(8, 700, 90, 0.1, value=v, index=x)
    for layout, x in product(("plain", "unsorted"), (i64, i32)):  # by level and table; see spgemm.cu
        yield Case(5, 300_000, 30, 0.0005, index=x, layout=layout)  # columns hashed by a block
        # sums past shared memory
        yield Case(2, 9000, 15, 0.3, value=f64 if x is i32 else f32, index=x, layout=layout)
    yield Case(2, 1_200_000, 40, 0.0015)  # bits in several parts
    yield Case(2, 1_200_000, 40, 0.0015, layout="repeated", index=i32)


CUDA_CASES = tuple(dict.fromkeys(_cuda()))


def numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    wide = f32 if dtype in (bf16, f16) else dtype
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def csr(rows: int, columns: int, case: Case, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pattern as testing.random_weight has it (thin ones drawn directly), rows as case.layout says."""
    g = torch.Generator().manual_seed(seed)
    if case.layout == "one_a_row" and columns:
        r, c = torch.arange(rows), torch.randint(columns, (rows,), generator=g)
    elif rows * columns > 1 << 20:
        places = torch.randint(rows * columns, (int(rows * columns * case.density),), generator=g).unique()
        r, c = places // columns, places % columns
    else:
        r, c = testing.random_weight(rows, columns, case.density, pattern=case.pattern, seed=seed).nonzero(
            as_tuple=True
        )
    if case.layout == "repeated":
        r, c = r.repeat_interleave(2), c.repeat_interleave(2)
        c[1::2] = c[1::2].roll(1) if len(set(r.tolist())) < 2 else c[1::2]
    if case.layout in ("unsorted", "repeated"):
        mixed = torch.randperm(r.numel(), generator=g)
        order = r[mixed].argsort(stable=True)
        r, c = r[mixed][order], c[mixed][order]
    crow = torch.zeros(rows + 1, dtype=case.index)
    if r.numel():
        crow[1:] = torch.bincount(r, minlength=rows).cumsum(0)
    return crow, c.to(case.index), numbers(r.numel(), case.value, seed)


def inputs(case: Case) -> dict:
    seed = case.m * 1_000_003 + case.n * 1009 + case.k
    # A of three a row beside a B that is too wide for as thin a one.
    of_a = case if case.n * case.k <= 1 << 20 else replace(case, density=3 / case.k)
    arrays = (*csr(case.m, case.k, of_a, seed), *csr(case.k, case.n, case, seed + 1))
    return {**dict(zip(NAMES, arrays, strict=True)), "n": case.n}


def bound(inputs: dict, reference: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """How far each value may lie from the reference's: gamma(2 + 4 per product, complex, else 1) * |A||B|,
    and the rounding of 16-bit results."""
    from sparsecore.ops import spgemm

    names = [n for n in NAMES if n.endswith("values")]
    sizes = spgemm.reference(**{**inputs, **{n: inputs[n].abs() for n in names}})[2].real
    ones = spgemm.reference(**{**inputs, **{n: torch.ones_like(inputs[n].abs()) for n in names}})[2].real
    real = inputs["a_values"].real.dtype
    half = torch.finfo(real).bits == 16  # sums in float32, rounded once
    u = torch.finfo(f32 if half else real).eps / 2
    count = ones * (4 if inputs["a_values"].is_complex() else 1) + 2
    rounded = reference[2].abs() * (torch.finfo(real).eps / 2 if half else 0)
    # The reference itself is in float64.
    return (
        rounded
        + (count * u / (1 - count * u) + count * 2.0**-53)
        * sizes
        * (2 if inputs["a_values"].is_complex() else 1)
        + torch.finfo(real).smallest_normal * torch.finfo(real).eps
    )


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    """Arrays, outputs as reference orders them, integers."""
    return {n: inputs[n] for n in NAMES}, ("crow_indices", "col_indices", "values"), {"n": inputs["n"]}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    for side in "ab":
        crow, col, values = (inputs[f"{side}_{name}"] for name in ("crow_indices", "col_indices", "values"))
        wrong = {
            "crow_indices": [crow.float(), crow.short(), crow[None], crow[:0], strided(crow)],
            "col_indices": [col.float(), col.short(), col[None], strided(col)],
            "values": [values[:-1], torch.cat([values, values[:1]]), values.to(torch.int8), values.int(),
                       values[None], strided(values)],
        }  # fmt: skip
        for name, tensors in wrong.items():
            yield from ((f"{side}_{name}", {**inputs, f"{side}_{name}": t}) for t in tensors)
    yield (
        "b_values",
        {**inputs, "b_values": inputs["b_values"].to(c64 if inputs["b_values"].dtype is f64 else f64)},
    )
    yield from (("n", {**inputs, "n": n}) for n in (-1, 2**31, 2**62))
    yield "memory", {**inputs, "memory": -1}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    """(name of the argument at fault, inputs); indices that no CSR of these shapes has."""
    height = inputs["b_crow_indices"].numel() - 1
    for side, width in (("a", height), ("b", inputs["n"])):
        crow_name, col_name = f"{side}_crow_indices", f"{side}_col_indices"
        crow, col = inputs[crow_name], inputs[col_name]
        n, nnz = crow.numel() - 1, col.numel()

        def broken(name: str, at: int, value: int) -> tuple[str, dict]:
            t = inputs[name].clone()
            t[at] = value
            return name, {**inputs, name: t}

        extremes = [torch.iinfo(crow.dtype).min, torch.iinfo(crow.dtype).max, -1]
        yield from (broken(crow_name, 0, v) for v in (1, *extremes))
        yield from (broken(crow_name, n, v) for v in (nnz - 1, nnz + 1, *extremes))
        yield from (broken(crow_name, n // 2, v) for v in (nnz + 1, *extremes))
        long = int(crow.diff().argmax())
        yield broken(crow_name, long + 1, int(crow[long]) - 1)
        yield from (
            broken(col_name, at, v) for at in (0, nnz // 2, nnz - 1) for v in (width, width + 1, *extremes)
        )


def products(inputs: dict) -> int:
    lengths = inputs["b_crow_indices"].diff()
    return int(lengths[inputs["a_col_indices"].long()].sum())


def flops(inputs: dict) -> int:
    return (8 if inputs["a_values"].is_complex() else 2) * products(inputs)


def nbytes(inputs: dict, result: tuple[torch.Tensor, ...]) -> int:
    return tensor_bytes(*(inputs[n] for n in NAMES), *result)
