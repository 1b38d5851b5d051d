# SPDX-License-Identifier: Apache-2.0
"""A layer of a transformers cache over `Pages`, and the attention function that reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .pages import Pages, Rule

ATTENTION = "sparsecore"
"""What ``model.set_attn_implementation`` calls it."""

FEW = 8
"""Tokens that follow others and attend to the pages themselves: what ``kv_attention`` takes at once. More are
a prompt, which attends to dense K and V."""


class SparseLayer(CacheLayerMixin):
    """K and V of a full-attention layer. All sequences have one length: padding is stored, and masked."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, config: Any, rule: Rule, dtype: torch.dtype | None = None):
        super().__init__()
        self.config, self.rule, self.wanted = config, rule, dtype
        self.pages: Pages | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        if key_states.shape != value_states.shape:
            raise ValueError(
                f"keys are {list(key_states.shape)} and values {list(value_states.shape)}: must be alike"
            )
        batch, heads, _, head_dim = key_states.shape
        self.pages = Pages(
            self.rule, batch, heads, head_dim, self.wanted or key_states.dtype, key_states.device
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores the tokens; what comes back goes to the model's attention function.

        After at most `FEW` tokens that follow others that is K and V as they are now stored; under
        ``attn_implementation="sparsecore"`` the function reads the pages, and what comes back stands for them
        and is NaN. More tokens attend to themselves as they are, and to what was stored before.
        """
        if self.pages is None:
            self.lazy_initialization(key_states, value_states)
        pages = self.pages
        assert pages is not None
        batch, heads, tokens, head_dim = key_states.shape
        if batch != len(pages.table):
            raise ValueError(
                f"the cache is of {len(pages.table)} sequences, and {batch} are to be appended to"
            )
        if pages.length == 0:
            pages.append(key_states, value_states)
            return key_states, value_states
        if tokens > FEW:
            keys, values = pages.dense()
            pages.append(key_states, value_states)
            dtype = key_states.dtype
            return torch.cat([keys.to(dtype), key_states], 2), torch.cat([values.to(dtype), value_states], 2)
        pages.append(key_states, value_states)
        if self.config._attn_implementation == ATTENTION:
            stand_in = key_states.new_full((), float("nan")).expand(batch, heads, pages.length, head_dim)
            stand_in.sparsecore_pages = pages  # type: ignore[attr-defined]
            return stand_in, stand_in
        keys, values = pages.dense()
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.pages is None else self.pages.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.pages, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens. What was pruned before stays pruned."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: must be 0 or below, not {tokens_to_remove}")
        if self.pages is not None and tokens_to_remove:
            self.pages.crop(-tokens_to_remove)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.pages is not None:
            rows = torch.arange(len(self.pages.table), device=self.pages.table.device)
            self.pages.select(rows[indices.to(rows.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.pages is not None:
            self.batch_select_indices(torch.arange(len(self.pages.table)).repeat_interleave(repeats))


def bias_of(mask: Tensor) -> Tensor:
    """float32 with -inf for what a boolean mask hides, made once for all layers: they share a mask."""
    if mask.dtype is not torch.bool:
        return mask.float()
    bias = getattr(mask, "sparsecore_bias", None)
    if bias is None:
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        mask.sparsecore_bias = bias  # type: ignore[attr-defined]
    return bias


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: ``kv_attention`` where a `SparseLayer` gave the keys, else sdpa."""
    pages: Pages | None = getattr(key, "sparsecore_pages", None)
    if pages is None:
        if softcap is not None:
            kwargs["softcap"] = softcap
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    wrong = [name for name in ("s_aux", "position_bias", "sliding_window") if kwargs.get(name) is not None]
    if wrong or dropout:
        raise ValueError(f"{(wrong or ['dropout'])[0]}: attention to a SparseCache does not have it")
    bias = None if attention_mask is None else bias_of(attention_mask)
    return pages.attend(query, scaling, softcap or 0.0, bias).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
