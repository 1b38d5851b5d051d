# SPDX-License-Identifier: Apache-2.0
"""Samples of nm_to_dense."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from . import EDGES, Case, conversion_cases, f32, spmm_nm

CASES = (
    *conversion_cases(spmm_nm.VALUES),
    *(
        spmm_nm.with_kind(Case(0, 9 + j, EDGES[(7 * i + 3 * j) % len(EDGES)], value=value), *kind)
        for (i, kind), (j, value) in product(enumerate(spmm_nm.KINDS), enumerate(spmm_nm.VALUES))
    ),
    *(
        spmm_nm.with_kind(Case(0, 5, 321, value=v), *kind)
        for kind, v in product(spmm_nm.KINDS, spmm_nm.VALUES)
    ),
)


def inputs(case: Case) -> dict:
    arrays = spmm_nm.inputs(replace(case, m=1))
    return {**{n: arrays[n] for n in ("values", "positions", "scales")}, "k": case.k}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    arrays = {n: t for n, t in inputs.items() if isinstance(t, torch.Tensor)}
    return arrays, ("dense",), {"k": inputs["k"]}


def as_weight(inputs: dict) -> dict:
    """The same arrays as spmm_nm takes them."""
    return {"x": torch.zeros(1, inputs["k"]), **{n: t for n, t in inputs.items() if n != "k"}}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    values = inputs["values"]
    for name, wrong in spmm_nm.misfits(as_weight(inputs)):
        yield name, {n: wrong[n] for n in inputs if n != "k"} | {"k": inputs["k"]}
    for wrong in (values.double(), values.int(), values[:, None], values.repeat_interleave(2, 2)[..., ::2]):
        yield "values", {**inputs, "values": wrong}
    for k in (-1, 2**31, 2**62):
        yield "k", {**inputs, "k": k}
    for k in (0, inputs["k"] + 64):
        yield "values|positions", {**inputs, "k": k}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, broken in spmm_nm.damage(as_weight(inputs)):
        if broken["values"].dtype is f32:
            yield name, {n: broken[n] for n in inputs if n != "k"} | {"k": inputs["k"]}


def broken_rows(inputs: dict) -> set[int]:
    return spmm_nm.broken_rows(as_weight(inputs))
