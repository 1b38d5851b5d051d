# SPDX-License-Identifier: Apache-2.0
"""How many tokens fit: the bytes of a cache before there is one."""

from __future__ import annotations

from typing import Any

import torch

from .pages import Pages
from .sparse import SparseCache


def cache_bytes(
    config: Any, tokens: int, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> int:
    """Bytes of a `SparseCache` whose sequences were given a prompt of `tokens`: its ``nbytes`` then.

    All that is allocated counts: compressed pages, the dense ones of the window and the first tokens, tables,
    and the room for 1024 tokens to come. While a cache grows, one array at a time is there twice.

    Args:
        config: the model's; layers of plain full attention alone.
        tokens: of each sequence, at least 0.
        batch: sequences, at least 1.
        dtype: of what is stored, float32, bfloat16 or float16.
        options: keep, window, sinks, page, as `SparseCache` has them.

    Raises:
        ValueError: naming the argument, when it is out of range.
    """
    sizes = _sizes(config, batch, dtype, options)
    if tokens < 0:
        raise ValueError(f"tokens: must be at least 0, not {tokens}")
    return _nbytes(*sizes, tokens)


def longest_context(
    config: Any, memory: int, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> int:
    """Tokens of the longest prompt whose `SparseCache` fits into `memory` bytes; 0 where none does.

    Arguments are those of `cache_bytes`. A multiple of the page's tokens.

    Raises:
        ValueError: naming the argument, when it is out of range.
    """
    sizes = _sizes(config, batch, dtype, options)
    if not 0 <= memory < 2**60:
        raise ValueError(f"memory: must be in [0, 2^60) bytes, not {memory}")
    page = sizes[1].rule.page
    fits = lambda columns: _nbytes(*sizes, columns * page) <= memory
    least, most = 0, 1
    while fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least * page


def _sizes(
    config: Any, batch: int, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, SparseCache, int, torch.dtype]:
    cache = SparseCache(config, dtype=dtype, **options)
    if batch < 1:
        raise ValueError(f"batch: must be at least 1, not {batch}")
    if len(cache._sparse()) != len(cache.layers):
        raise ValueError("config: has layers that are no plain full attention")
    return config.get_text_config(decoder=True), cache, batch, dtype


def _nbytes(config: Any, cache: SparseCache, batch: int, dtype: torch.dtype, tokens: int) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return len(cache.layers) * Pages.nbytes_for(cache.rule, batch, heads, head_dim, dtype, tokens)
