# SPDX-License-Identifier: Apache-2.0
"""Samples of bitmap_from_csr."""

from collections.abc import Iterator

import torch

from . import Case, conversion_cases, f32, i32, i64, spmm_csr

CASES = conversion_cases((f32,), (i64, i32))


def inputs(case: Case) -> dict:
    arrays = spmm_csr.inputs(case)
    return {**{n: arrays[n] for n in ("crow_indices", "col_indices")}, "k": case.k}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    return {n: t for n, t in inputs.items() if n != "k"}, ("bitmask",), {"k": inputs["k"]}


def as_weight(inputs: dict) -> dict:
    """The same arrays as spmm_csr takes them."""
    arrays = {n: t for n, t in inputs.items() if n != "k"}
    return {"x": torch.zeros(1, inputs["k"]), **arrays, "values": torch.zeros(inputs["col_indices"].numel())}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, wrong in spmm_csr.misfits(as_weight(inputs)):
        if name in inputs:
            yield name, {n: wrong[n] for n in inputs if n != "k"} | {"k": inputs["k"]}
    for k in (-1, 2**31, 2**62):
        yield "k", {**inputs, "k": k}
    yield "col_indices", {**inputs, "k": 0}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, broken in spmm_csr.damage(as_weight(inputs)):
        yield name, {n: broken[n] for n in inputs if n != "k"} | {"k": inputs["k"]}
