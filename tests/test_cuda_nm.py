# SPDX-License-Identifier: Apache-2.0
"""spmm_nm on tensor cores: every pattern of positions, absent elements, broken rows in each of its tiles."""

from itertools import combinations, pairwise

import cases
import native
import pytest
import torch
import verify
from cases import bf16, f8, f16, f32, i8
from sparsecore.ops import nm_compress, nm_to_dense
from test_native import run

ROWS_OF_X = (5, 40, 70)  # a tile each of the kernel's: up to 8, up to 64, more
KINDS = nm_to_dense.PACKED


def variant() -> native.Variant:
    (found,) = native.cuda_variants("spmm_nm")
    return found


def every_pattern(n: int, m: int) -> torch.Tensor:
    """bool ``[rows, 64]``: every pattern in each group of a word, in each of 16 rows; beside each of its
    neighbours in 2:4."""
    patterns = torch.zeros(0, m, dtype=torch.bool)
    for columns in combinations(range(m), n):
        row = torch.zeros(1, m, dtype=torch.bool)
        row[0, list(columns)] = True
        patterns = torch.cat([patterns, row])
    count = len(patterns)
    r = torch.arange(16 * count * (count if (n, m) == (2, 4) else 1))[:, None]
    which = (r // 16 + (r // (16 * count) + 1) * torch.arange(64 // m)) % count
    return patterns[which].flatten(1)


@pytest.mark.parametrize("n, m", KINDS, ids=lambda v: str(v))
def test_every_pattern(n, m):
    """Products with an identity show each stored element where it lies, and zeros elsewhere."""
    mask = every_pattern(n, m)
    groups = mask.view(len(mask), -1, m)
    assert len({(g, *groups[r, g].tolist()) for r in range(0, len(mask), 16) for g in range(64 // m)}) == (
        64 // m
    ) * len(list(combinations(range(m), n)))
    w = torch.randint(1, 16, mask.shape, generator=torch.Generator().manual_seed(n + m)).float()
    w = w * torch.where(mask.cumsum(1) % 2 == 0, 1, -1) * mask
    for x_dtype, value in (
        (bf16, bf16),
        (f16, f16),
        (bf16, i8),
        (f16, i8),
        (bf16, f8),
        (f16, f8),
        (f32, f32),
    ):
        values, positions, _ = nm_compress.reference(w, n, m, f32, mask)
        scales = torch.ones(len(w)) if value in (i8, f8) else None
        inputs = {"values": values.to(value), "positions": positions, "scales": scales, "bias": None}
        for rows in (slice(0, 8), slice(8, 64), slice(0, 70)) if len(mask) < 700 else (slice(0, 70),):
            x = torch.eye(64).repeat(2, 1)[rows].to(x_dtype)
            y, _ = run(variant(), "spmm_nm", {"x": x, **inputs})
            assert torch.equal(y.float(), (w @ x.float().T).T), f"{x_dtype}, {value}, rows {rows}"


@pytest.mark.parametrize("n, m", KINDS, ids=lambda v: str(v))
def test_an_absent_element_takes_no_part(n, m):
    """NaN in x where a row stores nothing does not reach y; stored infinities act per IEEE."""
    for rows, dtype in zip(ROWS_OF_X, (bf16, f16, bf16), strict=True):
        case = cases.Case(rows, 40, 150, n / m, f"{n}:{m}", dtype=dtype, value=dtype)
        expected = verify.expected("spmm_nm", case)
        weight = cases.of("spmm_nm").weight(expected.inputs)
        storing = (weight != 0).sum(0)
        column = int(storing.masked_fill(storing == 0, len(weight)).argmin())
        absent = weight[:, column] == 0
        assert absent.any() and not absent.all()
        x = expected.inputs["x"].clone()
        for poison in (float("nan"), float("inf")):
            x[:, column] = poison
            y, _ = run(variant(), "spmm_nm", {**expected.inputs, "x": x})
            error = (y[:, absent].double() - expected.y[:, absent]).abs()
            assert (error <= expected.bound[:, absent]).all(), f"{poison} reached a row that doesn't store it"
            hit = (weight[~absent, column].sign().float() * poison).expand(rows, -1)
            torch.testing.assert_close(y[:, ~absent].float(), hit, rtol=0, atol=0, equal_nan=True)


def test_padding_is_not_read():
    """A value whose column is k or more takes no part, whatever it is."""
    for (n, m), rows, (dtype, value) in (
        (kind, rows, types) for kind in KINDS for rows in ROWS_OF_X for types in ((bf16, bf16), (f32, f16))
    ):
        case = cases.Case(rows, 20, 70, n / m, f"{n}:{m}", dtype=dtype, value=value)
        inputs = cases.of("spmm_nm").inputs(case)
        right, _ = run(variant(), "spmm_nm", inputs)
        columns = nm_to_dense.columns(inputs["values"], inputs["positions"], 70).view(inputs["values"].shape)
        inputs["values"] = inputs["values"].masked_fill(columns >= 70, float("nan"))
        y, _ = run(variant(), "spmm_nm", inputs)
        assert torch.equal(y, right) and not y.isnan().any(), f"{n}:{m}, {rows} rows, {dtype}"


@pytest.mark.parametrize("rows", ROWS_OF_X)
def test_a_broken_row_is_nan_and_no_other(rows):
    sample, broken = cases.of("spmm_nm"), 0
    inputs = sample.inputs(cases.Case(rows, 50, 120, 0.5, "2:4", dtype=bf16, value=bf16))
    for name, damaged in sample.damage(inputs):
        faulty = sample.broken_rows(damaged)
        y, _ = run(variant(), "spmm_nm", damaged)
        nan = {i for i in range(50) if y[:, i].isnan().all()}
        assert nan == faulty, f"{name}: NaN at {nan}, broken {faulty}"
        assert not y[:, [i for i in range(50) if i not in nan]].isnan().any()
        broken += bool(nan)
    assert broken > 5


@pytest.mark.parametrize("rows", ROWS_OF_X)
def test_the_order_of_threads_does_not_change_the_answer(rows):
    for n, m in ((2, 4), (4, 8)):
        case = cases.Case(rows, 40, 1100, n / m, f"{n}:{m}", dtype=bf16, value=i8)
        inputs = cases.of("spmm_nm").inputs(case)
        answers = [run(variant(), "spmm_nm", inputs, seed=seed)[0] for seed in range(3)]
        assert all(torch.equal(a, b) for a, b in pairwise(answers))


def test_x_that_is_not_aligned_gives_the_same_bits():
    for rows in ROWS_OF_X:
        case = cases.Case(rows, 40, 200, 0.5, "2:4", dtype=f16, value=f16, bias=True)
        inputs = cases.of("spmm_nm").inputs(case)
        plain, _ = run(variant(), "spmm_nm", inputs)
        for gap in (1, 2, 4):
            assert torch.equal(run(variant(), "spmm_nm", inputs, gap=gap)[0], plain)
