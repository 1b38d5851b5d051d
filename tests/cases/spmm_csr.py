# SPDX-License-Identifier: Apache-2.0
"""Samples of spmm_csr."""

from collections.abc import Iterator

import torch

from . import FLOATS, Case, bench_cases, bf16, f32, i32, i64, strided, tensor_bytes, weight_cases

CASES = weight_cases(FLOATS, (i64, i32))
BENCH = bench_cases([(f32, f32), (bf16, bf16)], index=i32)


def inputs(case: Case) -> dict:
    w = case.dense()
    rows, cols = w.nonzero(as_tuple=True)
    crow = torch.zeros(case.n + 1, dtype=case.index)
    crow[1:] = torch.bincount(rows, minlength=case.n).cumsum(0)
    return {
        "x": case.x(),
        "crow_indices": crow,
        "col_indices": cols.to(case.index),
        "values": w[rows, cols].to(case.value),
        "bias": case.bias_or_none(),
    }


def rows(inputs: dict) -> int:
    return inputs["crow_indices"].numel() - 1


def weight(inputs: dict) -> torch.Tensor:
    crow, cols, values = inputs["crow_indices"], inputs["col_indices"], inputs["values"]
    w = torch.zeros(rows(inputs), inputs["x"].shape[-1], dtype=torch.float64)
    w[torch.arange(rows(inputs)).repeat_interleave(crow.diff()), cols.long()] = values.double()
    return w


def roundings(inputs: dict) -> int:
    return 1


def native(inputs: dict) -> tuple[dict, dict]:
    return {name: inputs[name] for name in ("crow_indices", "col_indices", "values")}, {}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    crow, col, values = inputs["crow_indices"], inputs["col_indices"], inputs["values"]
    wrong = {
        "crow_indices": [crow.float(), crow.short(), crow[None], crow[:0], strided(crow)],
        "col_indices": [col.to(i32), col.float(), col[None], strided(col)],
        "values": [values[:-1], torch.cat([values, values[:1]])],
    }
    yield from ((name, {**inputs, name: t}) for name, tensors in wrong.items() for t in tensors)


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    crow, col = inputs["crow_indices"], inputs["col_indices"]
    n, nnz, k = crow.numel() - 1, col.numel(), inputs["x"].shape[-1]

    def broken(name: str, at: int, value: int) -> tuple[str, dict]:
        t = inputs[name].clone()
        t[at] = value
        return name, {**inputs, name: t}

    extremes = [torch.iinfo(crow.dtype).min, torch.iinfo(crow.dtype).max, -1]
    yield from (broken("crow_indices", 0, v) for v in (1, *extremes))
    yield from (broken("crow_indices", n, v) for v in (nnz - 1, nnz + 1, *extremes))
    yield from (broken("crow_indices", n // 2, v) for v in (nnz + 1, *extremes))
    long = int(crow.diff().argmax())
    first, last = int(crow[long]), int(crow[long + 1]) - 1
    yield broken("crow_indices", long + 1, first - 1)  # falls, as first >= 1
    yield from (broken("col_indices", last, v) for v in (k, k + 1, *extremes))
    yield broken("col_indices", first, -1)
    yield broken("col_indices", first + 1, int(col[first]))  # duplicated
    swapped = col.clone()
    swapped[first], swapped[last] = col[last], col[first]
    yield "col_indices", {**inputs, "col_indices": swapped}


def flops(inputs: dict) -> int:
    return 2 * inputs["x"].numel() // max(inputs["x"].shape[-1], 1) * inputs["values"].numel()


def nbytes(inputs: dict) -> int:
    x = inputs["x"]
    y = x.numel() // max(x.shape[-1], 1) * rows(inputs) * x.element_size()
    return tensor_bytes(*inputs.values()) + y
