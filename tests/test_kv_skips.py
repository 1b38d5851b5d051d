# SPDX-License-Identifier: Apache-2.0
"""kv_attention over selected pages, and with a threshold: what is left out is not read, all else is."""

from dataclasses import replace

import pytest
import torch
from cases import bf16, f16
from cases import kv_attention as samples
from cases.kv_attention import Cache
from sparsecore import testing
from sparsecore.ops.kv_attention import kv_attention, reference
from test_kv_attention import OP, expected, fault, refused, usable

ISAS = pytest.mark.parametrize("isa", usable())
CHOSEN = Cache((700, 1300, 0, 5), 2, 3, 2, dense=3, page=48, selected=0.4, value=bf16)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@ISAS
def test_pages_that_are_not_selected_are_not_read(isa):
    """Their entries name no page; what no KV head selected holds NaN and wild bits."""
    case = replace(CHOSEN, pattern="uniform")
    inputs, exact, bounds = expected(case)
    table, used = inputs["page_table"].clone(), torch.zeros(len(inputs["k_values"]), dtype=torch.bool)
    for i, chosen in enumerate(inputs["selected"].flatten(1)):
        mine = torch.zeros(table.shape[1], dtype=torch.bool)
        mine[chosen[chosen >= 0].long()] = True
        live = torch.where(table[i] < -1, -2 - table[i], table[i])[mine & (table[i] != -1)]
        used[live.long()] = True
        table[i, ~mine] = 2**31 - 1
    assert 0 < used.sum() < len(used)
    wild = {"page_table": table}
    for name in samples.POOLS:
        wild[name] = inputs[name].clone()
        wild[name][~used] = 255 if "bitmask" in name else float("nan")
    with testing.force_isa(isa):
        assert not fault(kv_attention(**{**inputs, **wild}), exact, bounds, case.dtype)
        one = wild["k_dense"].clone()
        one[used] = float("nan")
        assert fault(kv_attention(**{**inputs, **wild, "k_dense": one}), exact, bounds, case.dtype)


@ISAS
def test_lists_and_their_order(isa):
    inputs, exact, bounds = expected(CHOSEN)
    columns, shape = inputs["page_table"].shape[1], inputs["selected"].shape[:2]
    every = torch.arange(columns, dtype=torch.int32).expand(*shape, -1).contiguous()
    with testing.force_isa(isa):
        for order in (inputs["selected"].sort(-1)[0], inputs["selected"].flip(-1)):
            answer = kv_attention(**{**inputs, "selected": order.contiguous()})
            assert not fault(answer, exact, bounds, CHOSEN.dtype)
        whole = kv_attention(**{**inputs, "selected": None})
        assert same(kv_attention(**{**inputs, "selected": every}), whole)
        assert fault(whole, exact, bounds, CHOSEN.dtype)
        for nothing in (every[..., :0].contiguous(), torch.full_like(every, -1)):
            out, lse = kv_attention(**{**inputs, "selected": nothing})
            assert not out.any() and (lse == -torch.inf).all()


@pytest.mark.parametrize(
    "skips", [{"selected": 0.5}, {"threshold": 0.1}, {"selected": 0.5, "threshold": 0.1}]
)
def test_threads_do_not_change_the_answer(skips):
    before = torch.get_num_threads()
    inputs = samples.inputs(Cache((3000, 70, 1500), 2, 3, 2, page=64, value=bf16, pattern="far", **skips))
    try:
        answers = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            answers.append(kv_attention(**inputs))
    finally:
        torch.set_num_threads(before)
    assert all(same(answers[0], other) for other in answers[1:])


def peaks(case: Cache, blocks: tuple[int, ...]) -> dict:
    """Inputs whose tokens have scores near 0 but for those of some blocks of 64, near 20."""
    inputs = samples.inputs(case)
    inputs["q"] = torch.ones_like(inputs["q"])
    inputs["k_dense"] = torch.randn(inputs["k_dense"].shape) / 100
    for block in blocks:
        column, slot = block * 64 // case.page, block * 64 % case.page
        inputs["k_dense"][-2 - inputs["page_table"][:, column], :, slot : slot + 64] += 20 / case.head_dim
    return inputs | {"scale": 1.0}


@ISAS
@pytest.mark.parametrize("page", [16, 64, 256])
def test_v_of_a_dropped_block_is_not_read(isa, page):
    """Blocks of low scores are dropped after the peak of their split of 512 tokens, not before it."""
    case = Cache((1500,), 2, 3, dense=1, page=page)
    inputs = peaks(case, (2, 13)) if page > 16 else peaks(replace(case, page=64), (2, 13))
    if page == 16:  # the same tokens in pages of 16: a block is a page
        inputs |= {n: inputs[n].unflatten(2, (4, 16)).transpose(1, 2).flatten(0, 1) for n in samples.POOLS}
        inputs |= {n: inputs[n].contiguous() for n in samples.POOLS}
        table = inputs["page_table"][:, :-1]
        inputs["page_table"] = -2 - ((-2 - table)[..., None] * 4 + torch.arange(4)).flatten(1).int()
    dropped = [t for t in range(1500) if t // 512 < 2 and t // 64 not in (0, 1, 2, 8, 9, 10, 11, 12, 13)]
    poisoned = inputs["v_dense"].clone()
    pages = -2 - inputs["page_table"][0]
    for t in dropped:
        poisoned[pages[t // page], :, t % page] = float("nan")
    with testing.force_isa(isa):
        out, lse = kv_attention(**{**inputs, "v_dense": poisoned, "threshold": 1e-6})
        exact = reference(**{**inputs, "threshold": 1e-6})
        torch.testing.assert_close(out.double(), exact[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-6)
        assert kv_attention(**{**inputs, "v_dense": poisoned})[0].isnan().all()
        poisoned[pages[130 // page], :, 130 % page] = float("nan")
        assert kv_attention(**{**inputs, "v_dense": poisoned, "threshold": 1e-6})[0].isnan().all()
        keys = inputs["k_dense"].clone()
        keys[pages[500 // page], :, 500 % page] = float("nan")  # no score is low that is none
        assert kv_attention(**{**inputs, "k_dense": keys, "threshold": 1e-6})[0].isnan().all()


@pytest.mark.parametrize("threshold", [1e-6, 1e-3, 0.1])
def test_what_a_threshold_costs_is_bounded(threshold):
    """p < threshold * n of all weight is lost; see kv_attention."""
    case, moved = Cache((3000,), 2, 3, 2, dense=4, page=128, value=f16, pattern="far"), 0
    inputs, exact, bounds = expected(case)
    out, lse = kv_attention(**{**inputs, "threshold": threshold})
    share = min(1.0, threshold * 3000)
    most = max(inputs[f"v_{kind}"].float().abs().max() for kind in ("dense", "values"))
    assert ((out.double() - exact[0]).abs() <= bounds[0] + 2 * share * most).all()
    assert (lse.double() <= exact[1] + bounds[1]).all()
    if share < 1:
        assert (lse.double() >= exact[1] - bounds[1] + torch.log1p(torch.tensor(-share))).all()
    moved += not same((out, lse), kv_attention(**inputs))
    assert moved


@pytest.mark.parametrize("threads", [1, 3])
def test_broken_lists(threads):
    before, ran = torch.get_num_threads(), 0
    torch.set_num_threads(threads)
    try:
        for name, damaged in samples.damage_selected(samples.inputs(replace(CHOSEN, selected=1.0))):
            assert "sequence" in refused(name, damaged)
            ran += 1
    finally:
        torch.set_num_threads(before)
    assert ran == 10
    text = refused("selected", {**samples.inputs(CHOSEN), "selected": torch.full((4, 2, 3), 7).int()})
    assert "sequence 0, KV head 0 has 7 twice" in text, f"{OP}: {text}"
