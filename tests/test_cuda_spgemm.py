# SPDX-License-Identifier: Apache-2.0
"""spgemm's CUDA kernels on every case: on the emulated grid, with a random order of threads, or on the GPU
when SPARSECORE_CUDA_ON=hardware. tests/native/spgemm_cuda.cpp runs the phases and says what it takes."""

import os
from itertools import pairwise

import cases
import native
import pytest
import torch
import verify
from cases import spgemm as samples
from sparsecore.ops import spgemm as op
from test_cuda_kernels import cases_of, variant_of
from test_spgemm import expected, fault
from test_spgemm_bad_input import hostile_plans

OPS = [name for name in cases.products() if name == "spgemm"]  # "[spgemm" in a test's id: for the ledger
KINDS = ("plain", "unsorted", "repeated")
NAMES = ("crow_indices", "col_indices", "values")
SKIP = 6 if os.environ.get("SPARSECORE_FEW_CASES") else 1  # one of so many damages
HEAVY = [cases.Case(2, 9000, 15, 0.3, layout=layout) for layout in KINDS]


def multiply(inputs: dict, nonzeros: int, grads: bool = False, **integers: int) -> tuple[dict, dict]:
    """Outputs, begun as NaN and -1 and of the right size, and the outcome."""
    values = inputs["a_values"]
    like = {
        "crow_indices": inputs["a_crow_indices"],
        "col_indices": inputs["a_col_indices"].new_empty(nonzeros),
    }
    outputs = {n: torch.full_like(t, -1) for n, t in like.items()}
    outputs["values"] = values.new_full((nonzeros,), float("nan"))
    if grads:
        outputs |= {f"grad_{s}": torch.full_like(inputs[f"{s}_values"], float("nan")) for s in "ab"}
    arrays = {n: inputs[n] for n in samples.NAMES}
    return outputs, native.call(variant_of("spgemm"), arrays, outputs, n=inputs["n"], **integers)


def product(case: cases.Case, **integers: int) -> tuple[list[torch.Tensor], dict]:
    inputs, reference, _ = expected(case)
    outputs, outcome = multiply(inputs, reference[2].numel(), **integers)
    assert outcome["intact"] and outcome["bad_row"] == -1 and outcome["nnz"] == reference[2].numel()
    return [outputs[n] for n in NAMES], outcome


@pytest.mark.parametrize("name", OPS)
def test_every_case(name):
    """Both phases, and the second once more for the first's columns as a caller's: the same bits."""
    faults, levels = [], set()
    every = cases_of(name)
    for seed, case in enumerate(every):
        try:
            answer, outcome = product(case, seed=seed, tables=seed % 3, blocks=1 + seed % 4)
            levels |= {k for k, v in outcome.items() if v and k[-1].isdigit()}
            wrong = fault(answer, case)
        except (AssertionError, ValueError) as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(every))
    if len(every) == len(samples.CUDA_CASES):
        assert levels == {f"{n}{level}" for n in ("products", "nonzeros") for level in range(4)}


@pytest.mark.parametrize("name", OPS)
def test_neither_threads_nor_tables_change_the_answer(name):
    for case in (cases.Case(20, 130, 30, 0.2, layout="repeated"), *HEAVY[:1], cases.Case(5, 700, 90, 0.3)):
        answers = [
            product(case, seed=seed, blocks=1 + seed, tables=tables, slots=slots)[0][2]
            for seed, (tables, slots) in enumerate([(0, 0), (1, 16384), (2, 4096)])
        ]
        assert all(torch.equal(a, b) for a, b in pairwise(answers)), case.name


@pytest.mark.parametrize("name", OPS)
def test_a_sum_has_the_order_of_a_s_row(name):
    """1, 2^24, 1, -2^24 in float32: each order gives another sum; then a column of B's row thrice."""
    a = torch.tensor([0, 4]), torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2.0**24, 1.0, -(2.0**24)])
    for columns in (7, 40):  # a step of a warp, and several
        b = torch.arange(4) * columns, torch.arange(columns).repeat(3), torch.ones(3 * columns)
        inputs = {"n": columns} | dict(zip(samples.NAMES, (*a, *b), strict=True))
        outputs, _ = multiply(inputs, columns)
        assert (
            outputs["values"].tolist() == [0.0] * columns
        )  # ((1 + 2^24) + 1) - 2^24, where 1 + 2^24 is 2^24
        late = {**inputs, "a_values": torch.tensor([2.0**24, 1.0, -(2.0**24), 1.0])}
        assert multiply(late, columns)[0]["values"].tolist() == [1.0] * columns
    twice = torch.tensor([0, 3]), torch.tensor([5, 5, 5]), torch.tensor([2.0**24, 1.0, -(2.0**24)])
    one = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
    outputs, _ = multiply({"n": 9} | dict(zip(samples.NAMES, (*one, *twice), strict=True)), 1)
    assert outputs["values"].tolist() == [0.0] and outputs["col_indices"].tolist() == [5]


@pytest.mark.parametrize("name", OPS)
def test_sums_by_atomics_and_unsorted_rows(name):
    unsorted = 0
    chosen = [c for c in cases_of(name)[::7] if c.m * c.n * c.k < 400_000]
    hashed = cases.Case(4, 300_000, 5, 0.0002, index=torch.int32)
    for seed, case in enumerate([*chosen, hashed, HEAVY[0]]):
        answer, _ = product(case, seed=seed, unordered=1, tables=seed % 2, slots=16384)
        assert not fault(answer, case), case.name
        (crow, col, values), _ = product(case, seed=seed, unordered=1, unsorted=1)
        rows = torch.arange(case.m).repeat_interleave(crow.diff())
        order = (rows * max(case.n, 1) + col).argsort()
        unsorted += not torch.equal(order, torch.arange(order.numel()))
        assert not fault((crow, col[order], values[order]), case), case.name
    assert unsorted, "no row was left unsorted"


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_the_cpu(name):
    ran = 0
    for seed, layout in enumerate(samples.LAYOUTS):
        for value in (torch.float32, torch.float64):
            case = cases.Case(
                14, 90, 33, 0.2, value=value, index=(cases.i32, cases.i64)[seed % 2], layout=layout
            )
            inputs, reference, _ = expected(case)
            outputs, outcome = multiply(inputs, reference[2].numel(), grads=True, seed=seed)
            assert outcome["intact"]
            a, b = (inputs[f"{s}_values"].clone().requires_grad_() for s in "ab")
            _, _, c = op.spgemm(**{**inputs, "a_values": a, "b_values": b})
            c.backward(outputs["values"])
            for mine, theirs in ((outputs["grad_a"], a.grad), (outputs["grad_b"], b.grad)):
                tolerance = 100 * torch.finfo(value).eps
                torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
                ran += mine.numel()
    assert ran > 1000


def test_the_transpose_that_gradients_are_made_of():
    for layout in samples.LAYOUTS:
        for index in (torch.int32, torch.int64):
            crow, col, values = samples.csr(12, 17, cases.Case(0, 0, 0, 0.3, index=index, layout=layout), 3)
            made = op._transposed(crow, col, values, 17)
            assert made[0].dtype is made[1].dtype is index and made[0].numel() == 18
            dense = torch.zeros(12, 17).index_put_(
                (torch.arange(12).repeat_interleave(crow.diff()), col.long()), values, accumulate=True
            )
            other = torch.zeros(17, 12).index_put_(
                (torch.arange(17).repeat_interleave(made[0].diff()), made[1].long()), made[2], accumulate=True
            )
            torch.testing.assert_close(other, dense.T)
    empty = op._transposed(
        torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.ones(0), 3
    )
    assert empty[0].tolist() == [0] * 4


@pytest.mark.parametrize("name", OPS)
def test_a_pattern_alone(name):
    for case in (
        cases.Case(20, 130, 30, 0.2),
        cases.Case(5, 9, 7, 0.5, index=cases.i32),
        cases.Case(3, 0, 4),
    ):
        inputs, reference, _ = expected(case)
        outputs = {n: torch.full_like(t, -1) for n, t in zip(NAMES[:2], reference, strict=False)}
        arrays = {n: inputs[n] for n in samples.NAMES if "values" not in n}
        outcome = native.call(variant_of(name), arrays, outputs, n=case.n)
        assert outcome["intact"] and torch.equal(outputs["crow_indices"], reference[0])
        assert torch.equal(outputs["col_indices"], reference[1])


@pytest.mark.parametrize("name", OPS)
def test_broken_indices_are_found_before_anything_is_made(name):
    """All damage that the CPU refuses but wrong ends, which the binding reads of the same facts."""
    inputs = samples.inputs(cases.Case(20, 90, 30, 0.3))
    crows, found = {s: inputs[f"{s}_crow_indices"] for s in "ab"}, 0
    for seed, (at_fault, damaged) in enumerate([*samples.damage(inputs)][::SKIP]):
        _, outcome = multiply(damaged, 20 * 90, seed=seed)
        side = at_fault[0]
        crow, col = (damaged[f"{side}_{n}"].tolist() for n in ("crow_indices", "col_indices"))
        width = 30 if side == "a" else 90
        falls = [r for r in range(len(crow) - 1) if not 0 <= crow[r] <= crow[r + 1] <= len(col)]
        outside = [
            r for r in range(len(crow) - 1) if any(not 0 <= c < width for c in col[crow[r] : crow[r + 1]])
        ]
        bad = falls or outside
        first = bad[0] + (len(crows["a"]) - 1) * (side == "b") if bad else -1
        assert outcome["bad_row"] == first, f"{at_fault}: {outcome['bad_row']}, expected {first}"
        found += bool(bad)
    assert found > 20 // SKIP


def values_of(inputs: dict, crow: torch.Tensor, col: torch.Tensor, **integers: int) -> torch.Tensor:
    out = inputs["a_values"].new_full((col.numel(),), 7.0)
    arrays = {n: inputs[n] for n in samples.NAMES} | {"crow_indices": crow, "col_indices": col}
    outcome = native.call(variant_of("spgemm"), arrays, {"values": out}, n=inputs["n"], given=1, **integers)
    assert outcome["intact"]
    return out


def spoiled(inputs: dict, crow: torch.Tensor, col: torch.Tensor) -> set[int]:
    """Elements of C that are NaN: all where offsets fall, of no row, of rows that meet what is broken."""

    def rows(crow: torch.Tensor, col: torch.Tensor) -> list[list[int]] | None:
        at, columns = crow.tolist(), col.tolist()
        if any(not 0 <= x <= y <= len(columns) for x, y in pairwise(at)):
            return None
        return [columns[x:y] for x, y in pairwise(at)]

    a, b = (rows(inputs[f"{s}_crow_indices"], inputs[f"{s}_col_indices"]) for s in "ab")
    c, n = rows(crow, col), inputs["n"]
    if a is None or b is None or c is None:
        return set(range(col.numel()))
    at, bad = crow.tolist(), {i for i in range(col.numel()) if not crow[0] <= i < crow[-1]}
    for row, columns in enumerate(c):
        wrong = any(x >= y for x, y in pairwise(columns)) or any(not 0 <= x < n for x in columns)
        for k in a[row]:
            wrong = wrong or not 0 <= k < len(b) or not set(b[k]) <= set(columns)
        if wrong:
            bad |= set(range(at[row], at[row + 1]))
    return bad


@pytest.mark.parametrize("name", OPS)
def test_broken_rows_of_a_given_pattern_are_nan_and_no_other(name):
    """Nothing outside the arrays is touched either: the grid or the guard pages would say so."""
    nan_seen = whole = 0
    for case in (cases.Case(12, 90, 30, 0.3), cases.Case(9, 40_000, 30, 0.0005)):
        inputs, reference, _ = expected(case)
        crow, col, _ = reference
        right = values_of(inputs, crow, col)
        assert not right.isnan().any()
        broken = [(inputs, *plan) for plan in hostile_plans(crow, col, case.n)]
        broken += [(damaged, crow, col) for _, damaged in samples.damage(inputs)] if case.n < 100 else []
        for seed, (damaged, some_crow, some_col) in enumerate(broken[::SKIP]):
            made = values_of(damaged, some_crow, some_col, seed=seed)
            nan = set(made.isnan().nonzero().flatten().tolist())
            assert nan == spoiled(damaged, some_crow, some_col), f"damage number {seed}"
            nan_seen += bool(nan)
            whole += len(nan) == col.numel()
    assert nan_seen > 30 // SKIP and whole < nan_seen - 10 // SKIP


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("layout", KINDS[:2])
def test_broken_rows_past_shared_memory_are_nan(name, layout):
    """A column that is lacking, in each part that the row of C is made in."""
    case = cases.Case(2, 9000, 15, 0.3, layout=layout)
    inputs, reference, _ = expected(case)
    crow, col, _ = reference
    for tables, at in ((0, 5), (0, 3500), (1, 3500)):
        fewer = crow.clone()
        fewer[1:] -= 1
        kept = torch.arange(col.numel()) != at
        made = values_of(inputs, fewer, col[kept], tables=tables, slots=16384)
        first = int(fewer[1])
        assert made[:first].isnan().all() and not made[first:].isnan().any()


@pytest.mark.parametrize("name", OPS)
def test_nan_and_infinity_reach_what_they_are_multiplied_with(name):
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([0, 2, 3, 4]), torch.tensor([0, 1, 1, 2]), torch.tensor([1.0, 2.0, inf, nan])
    b = torch.tensor([0, 1, 3, 4]), torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, -0.5, 3.0, 1.0])
    outputs, outcome = multiply({"n": 2} | dict(zip(samples.NAMES, (*a, *b), strict=True)), 5)
    assert outcome["intact"] and outputs["col_indices"].tolist() == [0, 1, 0, 1, 1]
    want = torch.tensor([0.0, 6.0, -inf, inf, nan])
    torch.testing.assert_close(outputs["values"], want, rtol=0, atol=0, equal_nan=True)


def test_tables_are_asked_for_where_rows_need_them():
    slots = lambda n: native.call(variant_of("spgemm"), {}, {}, small=1, nonzeros=n)["slots"]
    assert slots(0) == slots(3072) == 0
    assert [slots(n) for n in (3073, 6144, 6145, 2**40)] == [8192, 8192, 16384, 2**31]
