# SPDX-License-Identifier: Apache-2.0
"""Samples of bitmap_from_dense."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from . import FLOATS, Case, bf16, conversion_cases, f16, f32, i8

# Layouts beside those of strides: bits of any kind (NaN, infinity, subnormals, -0), rows ever closer to 0.
KINDS = ("wide", "transposed", "every_other", "expanded", "wild", "tiny")
CASES = (
    *conversion_cases((*FLOATS, i8)),
    *(
        replace(case, dtype=d, value=v)
        for d, v, case in product(FLOATS, (*FLOATS, i8), conversion_cases((f32,))[::9])
    ),
    *(
        Case(0, n, k, 0.6, dtype=d, value=v, layout=kind)
        for kind, d, v, (n, k) in product(KINDS, FLOATS, (*FLOATS, i8), ((40, 130), (9, 64), (150, 7)))
    ),
)


def inputs(case: Case) -> dict:
    w = case.dense()
    g, (n, k) = case.generator(), w.shape
    if case.layout == "wild":
        number = torch.randint(-(2**31), 2**31, (n, k), generator=g).int()
        number[torch.rand(n, generator=g) < 0.5] &= ~(1 << 30)  # these rows hold magnitudes below 2 alone
        w = torch.where(w != 0, number.view(torch.float32), w.sign() * 0.0)
        w[::3, 1:2] = torch.tensor([[-0.0]])
        w[1::5, 2:3], w[2::5, :1] = float("nan"), float("-inf")
    if case.layout == "tiny":  # down to a subnormal or two, of whichever dtype
        least = {f32: -149, bf16: -133, f16: -24}[case.dtype]
        w = (w.sign() * (1 + w.abs() * 100)).double() * 2.0 ** (least + torch.arange(n).double()[:, None] / 2)
    w = w.to(case.dtype)
    if case.layout == "wide":  # rows apart, and not aligned to more than an element
        w = torch.nn.functional.pad(w, (3, 2), value=1.0)[:, 3 : 3 + k]
    elif case.layout == "transposed":
        w = w.T.contiguous().T
    elif case.layout == "every_other":
        w = w.repeat_interleave(2, 1)[:, ::2]
    elif case.layout == "expanded":
        w = w[:1].expand(n, k)
    return {"w": w, "dtype": case.value}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    w = inputs["w"]
    gap = torch.nn.functional.pad(w, (0, 3), value=float("nan"))
    return {"w": gap}, ("bitmask", "row_offsets", "values", "scales"), {"k": w.shape[1]}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    w = inputs["w"]
    for wrong in (w.double(), w.int(), w.bool(), w.to(torch.complex64), w[0], w[None], torch.empty(0, 2**31)):
        yield "w", {**inputs, "w": wrong}
    for dtype in (torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool):
        yield "dtype", {**inputs, "dtype": dtype}
