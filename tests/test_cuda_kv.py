# SPDX-License-Identifier: Apache-2.0
"""kv_attention's CUDA kernels, on the emulated grid or, when SPARSECORE_CUDA_ON=hardware, on the GPU: every
case within its bound; broken pages, what is not seen, splits, the order of threads."""

import os
from dataclasses import replace
from itertools import pairwise, product

import native
import pytest
import torch
import verify
from cases import bf16, f16, f32
from cases import kv_attention as samples
from cases.kv_attention import Cache
from sparsecore.ops.kv_attention import reference
from test_kv_attention import expected, fault

OP = "kv_attention"
ALWAYS = pytest.mark.parametrize("op", [OP])
# Tensor cores' dtypes and the others'.
KINDS = [(bf16, bf16), (f16, f16), (f32, f32), (bf16, f32), (f32, f16)]


def variant() -> native.Variant:
    (found,) = native.cuda_variants(OP)
    return found


def run(inputs: dict, **more: int):
    arrays, integers = samples.native(inputs)
    out = torch.full_like(inputs["q"], float("nan"))
    lse = torch.full(inputs["q"].shape[:3], float("nan"))
    outcome = native.call(variant(), arrays, {"out": out, "lse": lse}, **integers, **more)
    assert outcome["intact"], "wrote outside its arrays"
    return (out, lse), outcome["bad_row"]


def cases_to_run() -> list[Cache]:
    few = os.environ.get("SPARSECORE_FEW_CASES")
    every = [c for c in samples.CUDA_CASES if c.lengths]
    return [c for c in every[::5] if sum(c.lengths) < 300] if few else every


@ALWAYS
def test_every_case(op):
    faults = []
    for seed, case in enumerate(cases_to_run()):
        inputs, exact, bounds = expected(case)
        try:
            answer, bad = run(inputs, seed=seed)
            wrong = f"NaN at {bad}" if bad >= 0 else fault(answer, exact, bounds, case.dtype)
        except (AssertionError, ValueError) as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(cases_to_run()))


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@ALWAYS
def test_splits_and_the_order_of_threads(op, kinds):
    """However a sequence is cut the answer is right; for one way to cut it its bits are the same."""
    every = Cache((700, 0, 31, 260), 1, 3, 2, page=64, dtype=kinds[0], value=kinds[1], window=300)
    for case, splits in (*product((every,), (1, 2, 3, 8)), (replace(every, window=0, selected=0.7), 3)):
        inputs, exact, bounds = expected(case)
        answers = [run(inputs, seed=seed, splits=splits)[0] for seed in range(2)]
        assert not fault(answers[0], exact, bounds, case.dtype), f"{splits} splits"
        assert all(torch.equal(a, b) for pair in pairwise(answers) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("kinds", KINDS[:3], ids=str)
@ALWAYS
def test_broken_pages_are_nan(op, kinds):
    """Of a sequence whose length is wrong all, of one that meets a wrong entry or bits all that read them."""
    every, ran = Cache((40, 300), 2, 2, head_dim=72, dtype=kinds[0], value=kinds[1]), 0
    for case in (every, replace(every, selected=0.9)):
        inputs, exact, bounds = expected(case)
        for name, damaged in samples.damage(inputs):
            faulty = samples.broken_heads(damaged)
            (out, lse), _ = run(damaged)
            assert (lse.isnan() == faulty.repeat_interleave(case.group, 1)[..., None]).all(), name
            assert (out.isnan() == lse.isnan()[..., None]).all(), name
            good = ~lse.isnan()
            for made, right, bound in zip((out, lse), exact, bounds, strict=True):
                assert ((made.double() - right).abs() <= bound)[good].all(), name
            ran += bool(faulty.any())
    assert ran > 40


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@ALWAYS
def test_a_broken_token_that_no_query_sees_is_none(op, kinds):
    """NaN, wild bits and wrong entries beyond a length and before a window take no part; a NaN that is seen
    does, and so does an infinity."""
    case = Cache((40,), 1, 2, dense=2, window=20, dtype=kinds[0], value=kinds[1])
    inputs, exact, bounds = expected(case)
    table = inputs["page_table"][0].clone()
    poisoned = {n: t.clone() for n, t in inputs.items() if n in samples.POOLS}
    for half in "kv":
        for position in [*range(20), *range(40, 48)]:
            entry, slot = int(table[position // 16]), position % 16
            page, kind = (-2 - entry, "dense") if entry < 0 else (entry, "values")
            poisoned[f"{half}_{kind}"][page, :, slot] = float("nan")
            if entry >= 0:
                poisoned[f"{half}_bitmask"][page, :, slot] = 255
    poisoned["page_table"] = inputs["page_table"].clone()
    poisoned["page_table"][0, 0], poisoned["page_table"][0, 3:] = 2**31 - 1, -(2**31)
    assert not fault(run({**inputs, **poisoned})[0], exact, bounds, case.dtype)
    entry = int(table[1])
    kind, page = ("dense", -2 - entry) if entry < 0 else ("values", entry)
    nan = {**poisoned, f"k_{kind}": poisoned[f"k_{kind}"].clone()}
    nan[f"k_{kind}"][page, :, 10] = float("nan")
    assert run({**inputs, **nan})[0][0].isnan().all()
    for value in (float("inf"), -float("inf")):
        infinite = {**inputs, "v_dense": inputs["v_dense"].clone()}
        infinite["v_dense"][-2 - int(table[2]), 0, 0, 7] = value
        (out, _), _ = run({**inputs, **infinite})
        assert (
            (out[..., 7] == value).all() and out[..., :7].isfinite().all() and out[..., 8:].isfinite().all()
        )


@ALWAYS
def test_weights_of_16_bits_lose_nothing(op):
    """Long sequences of equal and of very unequal weights."""
    for pattern, dtype in (("ties", bf16), ("far", bf16), ("ties", f16), ("far", f16)):
        case = Cache((1500,), 1, 1, 1, 32, (20, 20), 128, 0, dtype, dtype, pattern=pattern)
        inputs, exact, bounds = expected(case)
        assert not fault(run(inputs, splits=2)[0], exact, bounds, case.dtype)


@ALWAYS
def test_a_length_past_the_bias_is_nan(op):
    case = Cache((40, 20), 2, 2, bias=(0, 1, 1))
    inputs, _, _ = expected(case)
    shorter = {**inputs, "bias": inputs["bias"][..., :30].contiguous()}
    (out, lse), _ = run(shorter)
    assert lse[0].isnan().all() and out[0].isnan().all() and not lse[1].isnan().any()


@ALWAYS
def test_the_bound_catches_a_lost_channel(op):
    case = Cache((40, 60), 2, 2, dtype=f16, value=f16)
    inputs, exact, bounds = expected(case)
    lost = inputs["v_values"].clone()
    first = inputs["page_table"][0][inputs["page_table"][0] >= 0][0]
    lost[first, 0, 3, 5] += 8
    assert fault(run({**inputs, "v_values": lost})[0], exact, bounds, case.dtype)
    assert not fault(run(inputs)[0], exact, bounds, case.dtype)


@ALWAYS
def test_every_head_dim_on_tensor_cores(op):
    """Of both dtypes, keep from none to all, dense pages between."""
    faults, ran = [], 0
    for i, d in enumerate(range(32, 257, 8)):
        keeps = (0, d // 8 * 4, d, round(0.3 * d), d - 1)
        dtype = (bf16, f16)[i % 2]
        case = Cache(
            (50, 3),
            1,
            1 + i % 11,
            1 + i % 2,
            d,
            (keeps[i % 5], keeps[(i + 2) % 5]),
            16,
            2 + i % 3,
            dtype,
            dtype,
        )
        inputs, exact, bounds = expected(case)
        ran += 1
        if wrong := fault(run(inputs, seed=i)[0], exact, bounds, case.dtype):
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, ran)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@ALWAYS
def test_a_threshold_drops_v_and_no_more_than_it_says(op, kinds):
    """V of tokens whose scores lie far below those before them is not read; p < threshold * n of all weight
    is lost."""
    case = Cache((700,), 1, 3, dense=1, page=128, dtype=kinds[0], value=kinds[1])
    inputs = samples.inputs(case)
    inputs |= {"q": torch.ones_like(inputs["q"]), "scale": 1.0}
    keys = torch.randn(inputs["k_dense"].shape) / 100
    keys[-2 - int(inputs["page_table"][0, 1])] += 20 / 64
    inputs["k_dense"] = keys.to(kinds[1])
    exact = reference(**inputs)
    bounds = samples.bound(inputs, *exact)
    whole, _ = run(inputs, splits=1)
    assert not fault(whole, exact, bounds, case.dtype)
    poisoned = inputs["v_dense"].clone()
    for column in range(2, 6):
        poisoned[-2 - int(inputs["page_table"][0, column])] = float("nan")
    (out, lse), _ = run({**inputs, "v_dense": poisoned, "threshold": 1e-6}, splits=1)
    most = inputs["v_dense"].float().abs().max()
    assert ((out.double() - exact[0]).abs() <= bounds[0] + 2 * 700e-6 * most).all()
    assert ((lse.double() - exact[1]).abs() <= bounds[1] + 701e-6).all()
    poisoned[-2 - int(inputs["page_table"][0, 1])] = float("inf")
    assert run({**inputs, "v_dense": poisoned, "threshold": 1e-6}, splits=1)[0][0].isposinf().all()
    keys = inputs["k_dense"].clone()
    keys[-2 - int(inputs["page_table"][0, 4]), :, 70] = float("nan")  # no score is low that is none
    assert run({**inputs, "k_dense": keys, "threshold": 1e-6}, splits=1)[0][0].isnan().all()


@pytest.mark.parametrize("kinds", KINDS[:3], ids=str)
@ALWAYS
def test_thresholds_of_chance(op, kinds):
    case = Cache((900, 70), 2, 9, 2, page=48, dtype=kinds[0], value=kinds[1], pattern="far", selected=0.8)
    case = replace(case, scale=0.02)
    inputs, exact, bounds = expected(case)
    whole, moved = run(inputs, splits=1)[0], 0
    for threshold in (1e-9, 1e-4):
        share, most = threshold * 900, max(inputs[f"v_{k}"].float().abs().max() for k in ("dense", "values"))
        out, lse = run({**inputs, "threshold": threshold}, splits=1)[0]
        assert ((out.double() - exact[0]).abs() <= bounds[0] + 2 * share * most).all()
        assert (
            (lse.double() - exact[1]).abs()[lse > -torch.inf] <= bounds[1][lse > -torch.inf] + 1.1 * share
        ).all()
        moved += not torch.equal(out, whole[0])
    assert moved


@pytest.mark.parametrize("kinds", KINDS[:3], ids=str)
@ALWAYS
def test_pages_that_are_not_selected_are_not_read(op, kinds):
    """Their entries name no page."""
    case = Cache((300, 90), 2, 3, dtype=kinds[0], value=kinds[1], page=48, selected=0.5)
    inputs, exact, bounds = expected(case)
    table = inputs["page_table"].clone()
    for i, chosen in enumerate(inputs["selected"].flatten(1)):
        others = torch.ones(table.shape[1], dtype=torch.bool)
        others[chosen[chosen >= 0].long()] = False
        assert others.any()
        table[i, others] = 2**31 - 1
    assert not fault(run({**inputs, "page_table": table})[0], exact, bounds, case.dtype)
