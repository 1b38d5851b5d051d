# SPDX-License-Identifier: Apache-2.0
"""Samples of bitmap_to_dense."""

from collections.abc import Iterator

import torch

from . import FLOATS, Case, conversion_cases, i8, spmm_bitmap

CASES = conversion_cases((*FLOATS, i8))


def inputs(case: Case) -> dict:
    arrays = spmm_bitmap.inputs(case)
    return {**{n: arrays[n] for n in ("bitmask", "row_offsets", "values", "scales")}, "k": case.k}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    arrays = {n: t for n, t in inputs.items() if isinstance(t, torch.Tensor)}
    return arrays, ("dense",), {"k": inputs["k"]}


def as_weight(inputs: dict) -> dict:
    """The same arrays as spmm_bitmap takes them."""
    return {"x": torch.zeros(1, inputs["k"]), **{n: t for n, t in inputs.items() if n != "k"}}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    values = inputs["values"]
    for name, wrong in spmm_bitmap.misfits(as_weight(inputs)):
        yield name, {n: wrong[n] for n in inputs if n != "k"} | {"k": inputs["k"]}
    for wrong in (values.double(), values.int(), values[:, None], values.repeat_interleave(2)[::2]):
        yield "values", {**inputs, "values": wrong}
    for k in (-1, 2**31, 2**62):
        yield "k", {**inputs, "k": k}
    for k in (0, inputs["k"] + 64):
        yield "bitmask", {**inputs, "k": k}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, broken in spmm_bitmap.damage(as_weight(inputs)):
        yield name, {n: broken[n] for n in inputs if n != "k"} | {"k": inputs["k"]}


def broken_rows(inputs: dict) -> set[int]:
    return spmm_bitmap.broken_rows(as_weight(inputs))
