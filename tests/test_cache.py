# SPDX-License-Identifier: Apache-2.0
"""SparseCache in a tiny random Llama's generate(), against transformers' own cache and one pruned by hand."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from sparsecore import testing
from sparsecore.ops import kv_compress, kv_decompress

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: SparseCache is not proven"
)
from safetensors.torch import load_file, save_file  # noqa: E402
from sparsecore.cache import SparseCache  # noqa: E402
from sparsecore.cache.layer import FEW  # noqa: E402
from sparsecore.cache.pages import STEP, Pages, Rule  # noqa: E402
from transformers.cache_utils import DynamicCache, DynamicLayer  # noqa: E402

SMALL: dict[str, Any] = {"page": 16, "window": 20, "sinks": 5}
GREEDY = {"do_sample": False, "max_new_tokens": 50, "min_new_tokens": 50}


class Pruned(DynamicLayer):
    """Dense K and V, of which what SparseCache compresses is set to 0 at the same token."""

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule, self.done = rule, 0  # columns that have been looked at

    def prune(self) -> None:
        rule, channels = self.rule, self.rule.channels(self.keys.shape[3])
        last = (self.keys.shape[2] - 1) // rule.page
        for column in range(self.done, last - rule.recent + 1):
            part = slice(column * rule.page, (column + 1) * rule.page)
            if column >= rule.sinks:
                for x, keep in zip((self.keys, self.values), channels, strict=True):
                    packed = kv_compress.reference(x[:, :, part], keep)
                    x[:, :, part] = kv_decompress.reference(*packed, x.shape[3])
        self.done = max(self.done, last - rule.recent + 1)

    def update(self, keys, values, *args, **kwargs):
        whole, few = super().update(keys, values), keys.shape[2] <= FEW and self.keys.shape[2] > keys.shape[2]
        whole = tuple(x.clone() for x in whole)  # a prompt sees itself as it is
        self.keys, self.values = self.keys.contiguous(), self.values.contiguous()
        self.prune()
        return (self.keys, self.values) if few else whole


def pruned(model: Any, cache: SparseCache) -> DynamicCache:
    made = DynamicCache(config=model.config)
    made.layers = [Pruned(cache.rule) for _ in made.layers]
    return made


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """The same model, with our attention and with torch's."""
    ours, theirs = (tiny.llama(head_dim=32) for _ in range(2))
    ours.set_attn_implementation("sparsecore")
    return ours, theirs


def prompt(batch: int = 1, length: int = 45, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


def caches(models, keep: float, **options: Any) -> tuple[SparseCache, DynamicCache]:
    ours, theirs = models
    cache = SparseCache(ours.config, keep=keep, **{**SMALL, **options})
    return cache, DynamicCache(config=theirs.config) if keep == 1 else pruned(theirs, cache)


def same(models, keep: float, ids: torch.Tensor, length: int | None = None, **options: Any) -> SparseCache:
    """Both generate the same; returns our cache."""
    mine, reference = caches(models, keep)
    options = {"attention_mask": torch.ones_like(ids), **GREEDY, **options}
    tokens = []
    for model, cache in zip(models, (mine, reference), strict=True):
        torch.manual_seed(7)
        tokens.append(model.generate(ids, past_key_values=cache, **options))
    assert torch.equal(*tokens)
    assert len(tokens[0].unique()) > 8, "a loop of few tokens proves little"
    return mine


def equal(cache: SparseCache, other: SparseCache) -> bool:
    return all(
        torch.equal(a, b)
        for p, q in zip(cache._pages(), other._pages(), strict=True)
        for a, b in zip(p.dense(), q.dense(), strict=True)
    )


KEEPS = (1.0, 0.5)


@pytest.mark.parametrize("keep", KEEPS)
def test_greedy(models, keep):
    cache = same(models, keep, prompt())
    assert testing.last_kernel().startswith("kv_attention")
    pages = cache._pages()[0]
    assert pages.length == 45 + 50 - 1 and ((pages.table[:, : pages.used] >= 0).sum() > 1) == (keep < 1)


@pytest.mark.parametrize("keep", KEEPS)
def test_sampling(models, keep):
    same(models, keep, prompt(3), do_sample=True, temperature=1.3, top_k=30)


@pytest.mark.parametrize("keep", KEEPS)
def test_left_padding(models, keep):
    ids = prompt(3, 40)
    mask = torch.ones_like(ids)
    for row, pad in ((0, 17), (2, 33)):
        ids[row, :pad], mask[row, :pad] = 0, 0
    same(models, keep, ids, attention_mask=mask)


@pytest.mark.parametrize("keep", KEEPS)
def test_beams(models, keep):
    cache = same(models, keep, prompt(2), num_beams=4, num_return_sequences=3)
    table = cache._pages()[0].table
    assert keep == 1 or (table[0] == table[1])[table[0] >= 0].any(), "no page is shared"


def test_tokens_that_are_looked_up_and_taken_back(models):
    """Several tokens at once, and crops of those that were guessed wrong."""
    ids = prompt(length=12).repeat(1, 4)
    guessed = same(models, 1.0, ids, prompt_lookup_num_tokens=4, repetition_penalty=0.7)
    assert guessed.get_seq_length() >= 48 + 50 - 2


def test_unlike_keeps_of_k_and_v(models):
    same(models, (0.25, 0.75), prompt())


@pytest.mark.parametrize("keep", KEEPS)
def test_another_attention_gives_the_same(models, keep):
    ours, theirs = models
    tokens = [
        model.generate(
            prompt(2), past_key_values=SparseCache(model.config, keep=keep, **SMALL),
            attention_mask=torch.ones(2, 45, dtype=torch.long), **GREEDY,
        )
        for model in (ours, theirs)
    ]  # fmt: skip
    assert torch.equal(*tokens)


@pytest.mark.parametrize("keep", KEEPS)
def test_chunks_of_any_size(models, keep):
    """A prompt in parts, with more and fewer tokens than FEW, gives the reference's logits."""
    ids = prompt(2, 120)
    logits = []
    for model, cache in zip(models, caches(models, keep), strict=True):
        parts = [
            model(ids[:, a:b], past_key_values=cache).logits
            for a, b in pairwise((0, 33, 34, 36, 44, 60, 61, 90, 98, 120))
        ]
        logits.append(torch.cat(parts, 1))
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keep", KEEPS)
def test_crop_within_the_window(models, keep):
    """What a crop leaves is what was there before the tokens that it took."""
    ours, _ = models
    ids = prompt(2, 100)
    cropped, fresh = (SparseCache(ours.config, keep=keep, **SMALL) for _ in range(2))
    with torch.no_grad():
        ours(ids[:, :81], past_key_values=cropped)
        ours(ids[:, 81:90], past_key_values=cropped)
        cropped.crop(-9)
        ours(ids[:, :81], past_key_values=fresh)
        assert cropped.get_seq_length() == 81 and equal(cropped, fresh)
        a, b = (ours(ids[:, 81:], past_key_values=c).logits for c in (cropped, fresh))
    assert torch.equal(a, b) and equal(cropped, fresh)


@pytest.mark.parametrize("keep", KEEPS)
def test_continue_from_a_saved_cache(models, keep, tmp_path):
    ours, _ = models
    cache = SparseCache(ours.config, keep=keep, **SMALL)
    turn = ours.generate(prompt(2), past_key_values=cache, attention_mask=torch.ones(2, 45).long(), **GREEDY)
    cache.save(tmp_path / "cache.safetensors")
    loaded = SparseCache.load(tmp_path / "cache.safetensors", ours.config)
    assert loaded.get_seq_length() == cache.get_seq_length() and loaded.rule == cache.rule
    assert equal(cache, loaded)
    ids = torch.cat([turn, prompt(2, 20, seed=3)], 1)
    options = {"attention_mask": torch.ones_like(ids), **GREEDY}
    tokens = [ours.generate(ids, past_key_values=c, **options) for c in (cache, loaded)]
    assert torch.equal(*tokens) and equal(cache, loaded)
    size = (tmp_path / "cache.safetensors").stat().st_size
    dense = sum(2 * k.numel() * 4 for k, _ in (p.dense() for p in loaded._pages()))
    assert size < dense, "the file holds what is pruned"


def dense_like(pages: Pages, k: torch.Tensor, v: torch.Tensor, done: list[int]) -> None:
    """The rule on dense K and V of every sequence, in place; `done`: columns that have been looked at."""
    rule = pages.rule
    last = (k.shape[2] - 1) // rule.page
    for column in range(done[0], last - rule.recent + 1):
        if column >= rule.sinks and rule.prunes:
            part = slice(column * rule.page, (column + 1) * rule.page)
            for x, keep in zip((k, v), rule.channels(k.shape[3]), strict=True):
                packed = kv_compress.reference(x[:, :, part], keep)
                x[:, :, part] = kv_decompress.reference(*packed, x.shape[3])
    done[0] = max(done[0], last - rule.recent + 1)


@pytest.mark.parametrize("keep", [(1.0, 1.0), (0.5, 0.5), (0.0, 0.3)])
@pytest.mark.parametrize("seed", range(2))
def test_random_appends_crops_and_reorders(keep, seed):
    """Whatever the changes, what is there is what the rule makes of dense K and V, and a cache that is built
    at once from the same tokens holds the same."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=g))
    rule = Rule(keep, recent=1 + 2 * seed, sinks=seed, page=16)
    pages = Pages(rule, 2, 1, 32, torch.float32, torch.device("cpu"))
    k = v = torch.zeros(2, 1, 0, 32)
    done, kinds = [0], [0, 0, 0, 0, 0]
    for step in range(700):
        kind = draw(0, 10)
        if kind < 6 or pages.length == 0:
            count = draw(1, 9) if draw(0, 12) else draw(1, 300 if pages.length < 500 else 20)
            new = torch.randn(2, len(pages.table), 1, count, 32, generator=g)
            pages.append(*new)
            k, v = torch.cat([k, new[0]], 2), torch.cat([v, new[1]], 2)
            dense_like(pages, k, v, done)
            kinds[0] += 1
        elif kind < 8:
            count = draw(1, 12) if draw(0, 7) else draw(1, 200 + pages.length // 2)
            before = pages.length
            pages.crop(count)
            k, v = (x[:, :, : max(before - count, 0)].clone() for x in (k, v))
            done[0] = min(done[0], pages.length // rule.page)
            kinds[1 + (count > 12)] += 1
        else:
            rows = torch.randint(0, len(pages.table), (draw(1, 5),), generator=g)
            pages.select(rows)
            k, v = k[rows].clone(), v[rows].clone()
            kinds[3] += 1
        assert pages.lengths.tolist() == [k.shape[2]] * len(k) and pages.length == k.shape[2]
        if step % 10 == 0 and pages.length:
            assert all(torch.equal(a, b) for a, b in zip(pages.dense(), (k, v), strict=True))
            kinds[4] += 1
            q = torch.randn(len(k), 2, 1, 32, generator=g)
            weights = (q @ k.expand(-1, 2, -1, -1).mT * 32**-0.5).softmax(-1)
            torch.testing.assert_close(pages.attend(q, None, 0.0, None), weights @ v.expand(-1, 2, -1, -1))
    assert min(kinds) > 10, kinds
    again = Pages(rule, len(k), 1, 32, torch.float32, torch.device("cpu"))
    again.append(k, v)
    # Pruning what is pruned changes nothing; a crop may have left more pruned than the window asks for.
    dense_like(pages, k, v, [0])
    assert all(torch.equal(a, b) for a, b in zip(again.dense(), (k, v), strict=True))


def test_growth_is_in_steps():
    pages = Pages(Rule((0.5, 0.5), 2, 1, 16), 1, 1, 32, torch.float32, torch.device("cpu"))
    token, places, grown = torch.zeros(1, 1, 1, 32), pages.k[0].data_ptr(), 0
    for _ in range(3 * STEP):
        pages.append(token, token)
        grown += pages.k[0].data_ptr() != places
        places = pages.k[0].data_ptr()
    assert 2 <= grown <= 4


def test_bytes(models):
    """At 50 % of 16 bits a long prompt's cache takes little more than 0.5625 of the dense one's."""
    pages = Pages(Rule((0.5, 0.5), 3, 1, 64), 1, 2, 64, torch.bfloat16, torch.device("cpu"))
    x = torch.randn(1, 2, 16384, 64)
    pages.append(x, x)
    assert 0.5625 <= pages.nbytes / (2 * x.numel() * 2) < 0.5625 * (1 + 2 * STEP / 16384)


def test_bad_options(models):
    config = models[0].config
    for name, options in {
        "keep": [{"keep": -0.1}, {"keep": 1.5}, {"keep": (0.5, 0.5, 0.5)}, {"keep": math.nan}],
        "page": [{"page": 8}, {"page": 24}, {"page": 2048}],
        "window": [{"window": 0}],
        "sinks": [{"sinks": -1}],
        "dtype": [{"dtype": torch.float64}],
    }.items():
        for wrong in options:
            with pytest.raises(ValueError, match=f"^{name}: "):
                SparseCache(config, **wrong)
    cache = SparseCache(config, **SMALL)
    with pytest.raises(ValueError, match="holds tokens"):
        cache.save("nowhere")
    models[0](prompt(2), past_key_values=cache)
    with pytest.raises(ValueError, match="of 2 sequences"):
        models[0](prompt(1), past_key_values=cache)
    with pytest.raises(ValueError, match="tokens_to_remove"):
        cache.crop(3)
    with pytest.raises(RuntimeError, match="head_dim"):
        SparseCache(config).layers[0].update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16))


def test_a_broken_file_is_refused(models, tmp_path):
    ours, _ = models
    cache, path = SparseCache(ours.config, **SMALL), tmp_path / "c.safetensors"
    ours(prompt(2, 120), past_key_values=cache)
    cache.save(path)
    tensors = load_file(path)
    head = {"version": 1, "layers": 3, "length": 120, "keep": [0.5, 0.5], "recent": 3, "sinks": 1, "page": 16}

    def refused(match: str, tensors=tensors, form: str = "sparsecore-kv-cache", **wrong: Any) -> None:
        save_file(tensors, path, {"format": form, "sparsecore-kv-cache": json.dumps({**head, **wrong})})
        with pytest.raises(ValueError, match=rf"c\.safetensors: .*{match}"):
            SparseCache.load(path, ours.config)

    save_file(tensors, path, {"format": "sparsecore-kv-cache", "sparsecore-kv-cache": json.dumps(head)})
    assert equal(SparseCache.load(path, ours.config), cache)
    refused("format", form="pt")
    refused("version", version=2)
    refused("layers", layers=2)
    for length in (0, -1, 1.5, 2**40, 119 + 16, 90):
        refused("length|table", length=length)
    refused("keep", keep=[0.5])
    refused("keep", keep=[0.5, 7.0])
    refused("k_values", keep=[0.25, 0.5])
    refused("page|k_dense", page=32)
    refused("k_dense|table", recent=1)
    refused("sinks", sinks=-1)
    for name in tensors:
        refused(name.split(".")[1], {n: t for n, t in tensors.items() if n != name})
        refused(r"layer \d: [\w_]+: ", {**tensors, name: tensors[name][:-1].contiguous()})
        refused(r"layer \d: [\w_]+: ", {**tensors, name: tensors[name].double()})
    table = tensors["1.table"]
    for entry, column in ((-2, 2), (99, 2), (-1, 2), (0, 0), (0, 7)):
        wrong = table.clone()
        wrong[1, column] = entry
        refused("table", {**tensors, "1.table": wrong})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a readable"):
        SparseCache.load(path, ours.config)
