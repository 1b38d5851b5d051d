# SPDX-License-Identifier: Apache-2.0
"""What a cache is said to take before there is one is what the tensors of a real one take."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

transformers = pytest.importorskip("transformers", reason="not proven: how many tokens fit into memory")
from sparsecore.cache import SparseCache, cache_bytes, longest_context  # noqa: E402

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def filled(config: Any, tokens: int, batch: int, dtype: torch.dtype, **options: Any) -> SparseCache:
    cache = SparseCache(config, dtype=dtype, **options)
    for layer in cache.layers:
        x = torch.randn(batch, config.num_key_value_heads, tokens, config.head_dim)
        layer.update(x, x)
    return cache


def allocated(cache: SparseCache) -> int:
    """Bytes of memory behind all tensors, each counted once."""
    memory = {}
    for pages in cache._pages():
        for t in (*pages.k, *pages.v, pages.table, pages.targets, pages.lengths):
            memory[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(memory.values())


@pytest.mark.parametrize("keep", [1, 0.5, (0.3, 0.7), 0.0], ids=str)
def test_bytes_are_those_of_real_tensors(keep):
    config = tiny.llama(head_dim=40).config
    sizes = product((1, 63, 64, 65, 700, 1500), (1, 3), ((64, 128), (16, 1), (128, 500)))
    for i, (tokens, batch, (page, window)) in enumerate(sizes):
        dtype = (torch.float32, torch.bfloat16)[i % 2]
        options = {"keep": keep, "page": page, "window": window, "sinks": page // 8}
        cache = filled(config, tokens, batch, dtype, **options)
        said = cache_bytes(config, tokens, batch=batch, dtype=dtype, **options)
        assert said == cache.nbytes == allocated(cache), f"{tokens} tokens, {batch} sequences, {options}"


@pytest.mark.parametrize("keep", [1, 0.5], ids=str)
def test_the_longest_prompt_fits_and_a_longer_one_does_not(keep):
    config = tiny.llama(head_dim=32).config
    for memory in (0, 1000, 300_000, 2_000_000, 5_000_000):
        tokens = longest_context(config, memory, keep=keep, page=32, dtype=torch.float32)
        assert tokens % 32 == 0
        if tokens:
            assert filled(config, tokens, 1, torch.float32, keep=keep, page=32).nbytes <= memory
        assert filled(config, tokens + 1, 1, torch.float32, keep=keep, page=32).nbytes > memory
    assert longest_context(config, 10**9, keep=0.5) > longest_context(config, 10**9, batch=2, keep=0.5)


def test_wrong_arguments_are_errors_that_name_them():
    config = tiny.llama().config
    with pytest.raises(ValueError, match=r"^memory: .*-1"):
        longest_context(config, -1)
    with pytest.raises(ValueError, match=r"^memory: "):
        longest_context(config, 2**60)
    with pytest.raises(ValueError, match=r"^tokens: .*-1"):
        cache_bytes(config, -1)
    for call in (
        lambda **more: cache_bytes(config, 5, **more),
        lambda **more: longest_context(config, 5, **more),
    ):
        for name, wrong in {"batch": 0, "dtype": torch.int8, "keep": 2, "page": 8}.items():
            with pytest.raises(ValueError, match=f"^{name}: "):
                call(**{name: wrong})
    sliding = transformers.MistralConfig(sliding_window=16, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"^config: "):
        cache_bytes(sliding, 5)


def test_the_table_in_the_readme():
    made = {
        "SmolLM2-135M": transformers.LlamaConfig(
            hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
        ),
        "Llama-3-8B": transformers.LlamaConfig(
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
        ),
        "Qwen2.5-7B": transformers.Qwen2Config(
            hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
        ),
    }
    memory = 4 * 2**30
    for name, config in made.items():
        token = 4 * config.num_hidden_layers * config.num_key_value_heads
        token *= config.hidden_size // config.num_attention_heads
        cells = [memory // token, *(longest_context(config, memory, keep=keep) for keep in (1, 0.5, 0.3))]
        assert f"| {name} | {' | '.join(map(str, cells))} |" in README
    assert len(re.findall(r"^\| .* \| (?:\d{4,} \| ){3}\d{4,} \|$", README, re.MULTILINE)) == len(made)
