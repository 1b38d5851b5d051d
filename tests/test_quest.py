# SPDX-License-Identifier: Apache-2.0
"""Quest's pages: the bounds hold, the best pages are chosen, and what they give is close to the whole."""

import pytest
import torch
from cases import FLOATS, bf16
from cases import kv_attention as samples
from cases.kv_attention import Cache
from sparsecore import quest
from sparsecore.ops.kv_attention import kv_attention, scores, tokens

K = ("k_bitmask", "k_values", "k_dense")


@pytest.mark.parametrize("value", FLOATS, ids=str)
def test_no_key_passes_its_page_s_bound(value):
    inputs = samples.inputs(Cache((700, 90), 2, 3, 2, page=48, value=value, dtype=value))
    pools, table, lengths = [inputs[n] for n in K], inputs["page_table"], inputs["lengths"]
    bounds = quest.page_bounds(*pools)
    assert bounds.shape == (2 * len(inputs["k_dense"]), 2, 2, 64) and bounds.dtype is value
    chosen = quest.select_pages(inputs["q"], bounds, table, lengths, 48, 99, first=0, recent=0)
    assert chosen.dtype is torch.int32 and chosen.shape == (2, 2, table.shape[1])
    for i, n in enumerate(lengths.tolist()):
        q, k = inputs["q"][i].double(), tokens(*pools, table, i, n).double()
        s = scores(q, k, i, 1.0, 0.0, 0, None, None).unflatten(0, (2, 3)).amax((1, 2))
        for head in range(2):
            columns = chosen[i, head][chosen[i, head] >= 0].tolist()
            assert sorted(columns) == list(range(-(-n // 48)))
            low, high = (
                bounds[[e if e >= 0 else e + 1 for e in table[i, columns].tolist()], head].double().unbind(1)
            )
            mine = q[3 * head : 3 * head + 3].flatten(0, 1)[:, None]
            most = torch.maximum(mine * low, mine * high).sum(-1).amax(0)
            assert (most.diff() <= 1e-4).all()
            for column, bound in zip(columns, most.tolist(), strict=True):
                assert s[head, column * 48 : (column + 1) * 48].max() <= bound + 1e-4


def test_the_first_and_the_latest_pages_come_before_all():
    inputs = samples.inputs(Cache((700, 90, 0), 2, 3))
    bounds = quest.page_bounds(*(inputs[n] for n in K))
    plain = (inputs["q"], bounds, inputs["page_table"], inputs["lengths"], 16)
    assert {*quest.select_pages(*plain, 3, first=1, recent=2)[0, 1].tolist()} == {0, 42, 43}
    selected = quest.select_pages(*plain, 10)
    assert (selected[0] >= 0).all() and (selected[2] == -1).all()
    assert (selected[1] >= 0).sum(-1).tolist() == [6, 6]


def test_the_best_pages_approximate_the_whole():
    """Where some pages hold nearly all weight, a quarter of the pages gives nearly the whole answer."""
    inputs = samples.inputs(Cache((4000,), 2, 3, page=32, value=bf16, keep=(64, 64), dense=1))
    g = torch.Generator().manual_seed(1)
    keys, table = inputs["k_dense"], inputs["page_table"]
    queries = inputs["q"].unflatten(1, (2, 3)).mean(2)[0, :, 0]
    for column in torch.randperm(125, generator=g)[:12].tolist():
        keys[-2 - int(table[0, column]), :, 7] = (8 * queries).to(keys.dtype)
    whole = kv_attention(**inputs)[0]
    bounds = quest.page_bounds(*(inputs[n] for n in K))
    off = {}
    for who, recent in (("quest", 1), ("latest", 31)):
        selected = quest.select_pages(inputs["q"], bounds, table, inputs["lengths"], 32, 31, recent=recent)
        out = kv_attention(**{**inputs, "selected": selected})[0]
        off[who] = ((out - whole).norm() / whole.norm()).item()
    assert off["quest"] < 0.1 < 0.5 < off["latest"], off
