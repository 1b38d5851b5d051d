# SPDX-License-Identifier: Apache-2.0
"""Samples of bitmap_to_csr."""

from collections.abc import Iterator

import torch

from . import Case, bitmap_to_dense, conversion_cases, f32, i32, i64

CASES = conversion_cases((f32,), (i32, i64))
NAMES = ("bitmask", "row_offsets", "k")


def inputs(case: Case) -> dict:
    arrays = bitmap_to_dense.inputs(case)
    return {**{n: arrays[n] for n in NAMES}, "int64": case.index is i64}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    return {n: inputs[n] for n in ("bitmask", "row_offsets")}, ("col_indices",), {"k": inputs["k"]}


def as_dense(inputs: dict) -> dict:
    """The same arrays as bitmap_to_dense takes them, with as many values as the last offset says."""
    return {
        **{n: inputs[n] for n in NAMES[:2]},
        "values": torch.zeros(int(inputs["row_offsets"][-1])),
        "scales": None,
    }


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, wrong in bitmap_to_dense.misfits({**as_dense(inputs), "k": inputs["k"]}):
        if name in NAMES:
            yield name, {**inputs, **{n: wrong[n] for n in NAMES}}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    for name, broken in bitmap_to_dense.damage({**as_dense(inputs), "k": inputs["k"]}):
        yield name, {**inputs, **{n: broken[n] for n in NAMES}}
