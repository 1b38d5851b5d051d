# SPDX-License-Identifier: Apache-2.0
"""kv_append's CUDA kernels, on the emulated grid or, when SPARSECORE_CUDA_ON=hardware, on the GPU: every case
to the CPU's bits; a sequence with a fault stays as it is but for its length, and no other does."""

import os
from dataclasses import replace

import native
import pytest
import test_kv_append
import torch
import verify
from cases import FLOATS
from cases import kv_append as samples
from cases.kv_append import Append
from sparsecore.ops.kv_append import CHANGED, reference
from test_kv_append import BROKEN, difference, expected, fresh, state

OP = "kv_append"
ALWAYS = pytest.mark.parametrize("op", [OP])


def run(inputs: dict, **more: int):
    (variant,) = native.cuda_variants(OP)
    return test_kv_append.run(variant, inputs, **more)


def cases_to_run() -> list[Append]:
    few = os.environ.get("SPARSECORE_FEW_CASES")
    return [c for c in samples.CASES[::5] if sum(c.lengths) < 200] if few else list(samples.CASES)


@ALWAYS
def test_every_case(op):
    """Rows of k and v at multiples of 16 bytes, and not."""
    faults = []
    for seed, case in enumerate(cases_to_run()):
        inputs, exact = expected(case)
        try:
            answer, bad = run(inputs, seed=seed, gap=seed % 2 * 3)
            wrong = f"sequence {bad} refused" if bad >= 0 else difference(answer, exact)
        except (AssertionError, ValueError) as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(cases_to_run()))


@pytest.mark.parametrize("value", FLOATS, ids=str)
@ALWAYS
def test_the_order_of_threads_does_not_change_the_answer(op, value):
    """Also where a ring's pages are filled several times, the last time in part."""
    case = Append((40, 7), 100, 2, head_dim=40, recent=2, value=value)
    inputs, exact = expected(case)
    for seed in range(6):
        assert not difference(run(inputs, seed=seed)[0], exact)


def sound(inputs: dict) -> torch.Tensor:
    """Sequences without a fault, as the CPU's check has them."""
    (scalar,) = (v for v in native.variants(OP) if v.isa == "scalar")
    batch = range(len(inputs["lengths"]))
    return torch.tensor([test_kv_append.run(scalar, inputs, row=s)[1] < 0 for s in batch])


def without_faults(inputs: dict) -> tuple[torch.Tensor, ...]:
    """What a device leaves: the sound sequences are appended to, the others' lengths are -1."""
    good = sound(inputs)
    rows = ("k", "v", "page_table", "lengths", "targets")
    made = reference(**{n: t[good] if n in rows else t for n, t in inputs.items()})
    whole = list(state(fresh(inputs)))
    for i, (name, t) in enumerate(zip(CHANGED, made, strict=True)):
        if name in rows:
            whole[i][good] = t
        else:
            whole[i] = t
    whole[CHANGED.index("lengths")][~good] = -1
    return tuple(whole)


@pytest.mark.parametrize("case", [BROKEN, replace(BROKEN, value=torch.bfloat16, sinks=0)], ids=str)
@ALWAYS
def test_a_sequence_with_a_fault_stays_and_its_length_is_none(op, case):
    ran, broken = 0, list(samples.damage(samples.inputs(case)))
    for seed, (name, damaged) in enumerate(broken[:-2]):  # the last two are no one sequence's
        answer, bad = run(damaged, seed=seed)
        assert bad >= 0, name
        assert not difference(answer, without_faults(damaged)), name
        ran += 1
        if ran % 8 == 0:  # a length that is none stays so
            again = {**damaged, **dict(zip(CHANGED, answer, strict=True))}
            assert not difference(run(again)[0], without_faults(again)), name
    assert ran > 40


@ALWAYS
def test_a_page_that_two_sequences_change_harms_no_other(op):
    """What it holds is not said."""
    inputs = samples.inputs(BROKEN)
    end = (int(inputs["lengths"][0]) + BROKEN.tokens - 1) // BROKEN.page
    dense, packed = -2 - int(inputs["page_table"][0, end]), int(inputs["targets"][0, end - BROKEN.recent])
    for name, damaged in list(samples.damage(inputs))[-2:]:
        answer, bad = run(damaged)
        exact = reference(**damaged)
        assert bad < 0 and difference(answer, state(damaged))
        for i, changed in enumerate(CHANGED):
            if name == "page_table" and changed.endswith("dense"):
                answer[i][dense] = exact[i][dense]
            elif name == "targets" and changed.endswith(("bitmask", "values")):
                answer[i][packed] = exact[i][packed]
        assert not difference(answer, exact), name


@ALWAYS
def test_many_appends_are_as_one(op):
    for seed, recent in enumerate((1, 3)):
        case = Append((0, 0), 150, 1, 32, (9, 20), recent=recent, value=FLOATS[seed])
        whole = samples.inputs(case)
        parts, at = fresh(whole), 0
        for step in (1, 16, 40, 1, 31, 1, 60):
            now = {**parts, "k": whole["k"][:, :, at : at + step], "v": whole["v"][:, :, at : at + step]}
            parts = {**parts, **dict(zip(CHANGED, run(now)[0], strict=True))}
            at += step
        assert at == case.tokens
        assert not difference(state(parts), reference(**whole))
        assert not difference(run(whole)[0], reference(**whole))
