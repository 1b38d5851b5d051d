# SPDX-License-Identifier: Apache-2.0
"""Samples of every op, read by the generic suites and by bench.

cases/<op>.py of a weight op, y = x @ W.T + bias, offers:

    CASES              tuple[Case]      small, for tests; BENCH: of the sizes that models have
    inputs(case)       the keyword arguments of sparsecore.ops.<op>: same case, same tensors
    rows(inputs)       n
    weight(inputs)     W [n, k] in float64, exact: what the error bound needs
    roundings(inputs)  roundings in float32 beside one a stored element
    native(inputs)     (arrays, integers) for native.call, without x, y, k and bias
    misfits(inputs)    (argument, inputs in which it alone is of a wrong dtype or shape), for the format's
    damage(inputs)     (name of the argument at fault, inputs that break one of the format's invariants)
    broken_rows(inputs)  the rows that the damage shows in, where the op has a CUDA kernel
    flops(inputs), nbytes(inputs)       multiply-adds count two; bytes that must move at least once

That of a conversion, whose answer is its reference's bit for bit, offers CASES and inputs(case), the latter
in the order of the op's arguments, and

    native(inputs)     (arrays, names of outputs in the order of the reference's, integers) for native.call
    misfits(inputs)    as above; damage(inputs) as above, where an argument has invariants
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType

import torch
from sparsecore import testing

f32, bf16, f16, i8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
f8 = torch.float8_e4m3fn
i32, i64 = torch.int32, torch.int64
FLOATS = (f32, bf16, f16)


@dataclass(frozen=True)
class Case:
    """One shape, pattern and choice of dtypes. Its tensors are a function of its fields alone."""

    m: int
    n: int
    k: int
    density: float = 0.3
    pattern: str = "uniform"  # as testing.random_weight has it
    dtype: torch.dtype = f32  # of x, bias and y
    value: torch.dtype = f32
    index: torch.dtype = i64  # formats that have a choice
    bias: bool = False
    layout: str = "plain"  # of x: see `x`

    @property
    def name(self) -> str:
        short = {f32: "f32", bf16: "bf16", f16: "f16", i8: "i8", f8: "f8", i32: "i32", i64: "i64"}
        short |= {torch.float64: "f64", torch.complex64: "c64", torch.complex128: "c128"}
        words = [f"m{self.m}-n{self.n}-k{self.k}-{self.density:g}", short[self.dtype], short[self.value]]
        words += [short[self.index]] * (self.index is not i64) + ["bias"] * self.bias
        words += [w for w in (self.pattern, self.layout) if w not in ("uniform", "plain")]
        return "-".join(words)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.m * 1_000_003 + self.n * 1009 + self.k)

    def dense(self) -> torch.Tensor:
        """W [n, k], float32, with zeros."""
        return testing.random_weight(
            self.n, self.k, self.density, pattern=self.pattern, seed=self.n * 1009 + self.k
        )

    def x(self) -> torch.Tensor:
        """x of m rows; `layout` says with which strides or leading dimensions."""
        g, m, k = self.generator(), self.m, self.k
        make = lambda *shape: torch.randn(*shape, generator=g).to(self.dtype)
        match self.layout:
            case "plain":
                return make(m, k)
            case "wide":  # rows apart, and not aligned to more than an element
                return make(m, k + 5)[:, 3 : 3 + k]
            case "transposed":
                return make(k, m).T
            case "every_other":
                return make(m, 2 * k)[:, ::2]
            case "expanded":
                return make(1, k).expand(m, k)
            case "batch":
                return make(2, (m + 1) // 2, k)
            case "batch_swapped":
                return make((m + 1) // 2, 2, k).transpose(0, 1)
            case "batch_wide":
                return make(2, (m + 1) // 2, k + 3)[:, :, :k]
            case "empty_batch":
                return make(3, 0, k)
            case "vector":
                return make(k)
            case "vector_strided":
                return make(3 * k)[::3]
        raise ValueError(self.layout)

    def bias_or_none(self) -> torch.Tensor | None:
        g = torch.Generator().manual_seed(self.n)
        return torch.randn(self.n, generator=g).to(self.dtype) if self.bias else None


LAYOUTS = ("wide", "transposed", "every_other", "expanded", "batch", "batch_swapped", "batch_wide")
LAYOUTS += ("empty_batch", "vector", "vector_strided")
EDGES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129)
ROWS_OF_X = (0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65, 130)


def weight_cases(values: Sequence[torch.dtype], indices: Sequence[torch.dtype] = (i64,)) -> tuple[Case, ...]:
    """Every kind of sample for a weight op whose format stores these dtypes. About 300, nearly all small."""

    def every() -> Iterator[Case]:
        types = list(product(FLOATS, values, indices))
        for i, (d, v, x) in enumerate(types):  # every choice of dtypes; one row of x, a few, two panels
            yield from (Case(m, 13, 70, 0.4, dtype=d, value=v, index=x, bias=i % 2 == 0) for m in (1, 5, 66))
        for i, e in enumerate(EDGES):  # sizes one off the widths that kernels like
            d, v, x = types[(7 * i) % len(types)]
            for m in (1, 6):
                yield Case(m, 3, e, 0.5, dtype=d, value=v, index=x, bias=m == 6)
                yield Case(m, e, 67, 0.2, dtype=d, value=v, index=x, bias=m == 1)
        for i, m in enumerate(ROWS_OF_X):
            for j in (i, i + 5):
                d, v, x = types[(5 * j) % len(types)]
                yield Case(m, 9 + j, 40 + j, 0.3, dtype=d, value=v, index=x, bias=bool(j % 2))
        for i, pattern in enumerate(("banded", "power_law", "one_dense_row", "empty_rows")):
            for j, m in enumerate((1, 3, 40)):
                d, v, x = types[(3 * i + j) % len(types)]
                yield Case(m, 70, 90, 0.1, pattern, dtype=d, value=v, index=x, bias=j == 1)
        for m in (1, 7):
            yield Case(m, 50, 50, 0.0, "banded")  # the diagonal
            for v, density in product(values, (0.0, 0.01, 0.5, 0.97, 1.0)):
                yield Case(m, 37, 150, density, value=v)
        for i, layout in enumerate(LAYOUTS):
            d, v, x = types[(5 * i) % len(types)]
            yield Case(
                1 if "vector" in layout else 6, 20, 37, dtype=d, value=v, index=x, layout=layout, bias=True
            )
            yield Case(1 if "vector" in layout else 4, 20, 37, layout=layout)
        # Columns in several blocks, more rows than a chunk, more nonzeros than a list holds, more rows of
        # x than are met at once, rows past 2^15 columns.
        for v, x in dict.fromkeys([*((values[0], x) for x in indices), (values[-1], indices[0])]):
            for m, n, k, density in (
                *((2, 257, 300, 0.5), (5, 513, 40, 0.2), (3, 300, 513, 0.1), (1, 300, 1000, 0.2)),
                *((257, 5, 30, 0.5), (300, 33, 280, 0.1), (515, 3, 9, 0.9), (64, 40, 700, 0.5)),
                *((3, 40, 2000, 1.0), (33, 70, 1200, 0.9)),
            ):
                yield Case(m, n, k, density, dtype=bf16 if m == 33 else f32, value=v, index=x, bias=n == 300)
            for m in (1, 2):
                yield Case(m, 3, 40000, 0.6, "one_dense_row", value=v, index=x)

    return tuple(dict.fromkeys(every()))


def conversion_cases(
    values: Sequence[torch.dtype], indices: Sequence[torch.dtype] = (i64,)
) -> tuple[Case, ...]:
    """Every kind of sample for a conversion of [n, k] between formats that store these dtypes."""

    def every() -> Iterator[Case]:
        types = list(product(values, indices))
        for i, e in enumerate(EDGES):  # sizes one off the widths that kernels like
            v, x = types[i % len(types)]
            yield Case(0, 5, e, 0.5, value=v, index=x)
            yield Case(0, e, 70, 0.4, value=v, index=x)
        for (v, x), density in product(types, (0.0, 0.01, 0.5, 0.97, 1.0)):
            yield Case(0, 21, 150, density, value=v, index=x)
        for i, pattern in enumerate(("banded", "power_law", "one_dense_row", "empty_rows")):
            v, x = types[i % len(types)]
            yield Case(0, 70, 90, 0.1, pattern, value=v, index=x)
        for v, x in types:
            yield Case(0, 130, 700, 0.3, value=v, index=x)
            yield Case(0, 3, 40000, 0.6, "one_dense_row", value=v, index=x)

    return tuple(dict.fromkeys(every()))


# (out_features, in_features): SmolLM2-135M's mlp, a 1 B model's attention, a 7 B model's mlp
MODEL_SHAPES = ((1536, 576), (2048, 2048), (11008, 4096))


def bench_cases(types: Iterable[tuple[torch.dtype, torch.dtype]], **fields) -> tuple[Case, ...]:
    """(dtype of x, dtype of values) by model shapes, densities and rows of x."""
    return tuple(
        Case(m, n, k, density, dtype=d, value=v, **fields)
        for (n, k), density, m, (d, v) in product(MODEL_SHAPES, (0.5, 0.3, 0.1, 0.02), (1, 8, 64), types)
    )


def every_op() -> list[str]:
    """Ops that have samples: the files of this folder."""
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")


def ops() -> list[str]:
    """Weight ops, y = x @ W.T + bias."""
    return [op for op in every_op() if hasattr(of(op), "weight")]


def products() -> list[str]:
    """Sparse times sparse: see cases/spgemm.py, which test_spgemm.py reads."""
    return [op for op in every_op() if hasattr(of(op), "PRODUCT")]


def attentions() -> list[str]:
    """Attention to pages of K and V: see cases/kv_attention.py, which test_kv_attention.py reads."""
    return [op for op in every_op() if hasattr(of(op), "ATTENTION")]


def in_place() -> list[str]:
    """Ops that change their arguments: see cases/kv_append.py, which test_kv_append.py reads."""
    return [op for op in every_op() if hasattr(of(op), "IN_PLACE")]


def conversions() -> list[str]:
    return [op for op in every_op() if op not in (*ops(), *products(), *attentions(), *in_place())]


def of(op: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{op}")


def function(op: str):
    """sparsecore.ops.<op>, the public function."""
    return getattr(importlib.import_module(f"sparsecore.ops.{op}"), op)


def reference(op: str, inputs: dict) -> torch.Tensor:
    return importlib.import_module(f"sparsecore.ops.{op}").reference(**inputs)


def strided(t: torch.Tensor) -> torch.Tensor:
    """t with a gap after every element of its last dimension."""
    return t.repeat_interleave(2, -1)[..., ::2]


def tensor_bytes(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
