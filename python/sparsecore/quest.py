# SPDX-License-Identifier: Apache-2.0
"""Which pages of a KV cache a query needs: Quest (Tang et al., 2024, arXiv 2406.10774).

A page keeps the least and the greatest of each channel of its keys. No key of it has a product with q above
``sum_i max(q_i low_i, q_i high_i)``, so the pages where that is large are those to attend to:

    bounds = quest.page_bounds(k_bitmask, k_values, k_dense)         # again for pages that have changed
    selected = quest.select_pages(q, bounds, page_table, lengths, page=64, count=32)
    out, lse = kv_attention(q, k_bitmask, ..., page_table, lengths, selected=selected)

Of 64k tokens in pages of 64 that reads 2048, and 2 numbers for 64 tokens of each channel of K.
"""

import torch
from torch import Tensor

from .ops.kv_decompress import kv_decompress


def page_bounds(bitmask: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """The least and the greatest of each channel of K in every page.

    Args:
        bitmask, values, dense: the K of a cache, as ``kv_attention`` has it.

    Returns:
        ``[pages + dense_pages, kv_heads, 2, head_dim]`` of K's dtype: entry e >= 0 of a page table has row e,
        entry e <= -2 row e + 1, from the end. Pruned channels count as 0. What lies in slots that no token
        has counts too, so `select_pages` takes the latest pages whatever their bounds.
    """
    both = (kv_decompress(bitmask, values, dense.shape[3]), dense.flip(0))
    return torch.cat([torch.stack([k.amin(2), k.amax(2)], 2) for k in both])


def select_pages(
    q: Tensor,
    bounds: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    page: int,
    count: int,
    first: int = 1,
    recent: int = 1,
) -> Tensor:
    """The pages whose keys may have the largest products with a query of the group: `selected`.

    Args:
        q: ``[batch, q_heads, q_tokens, head_dim]``.
        bounds: of `page_bounds`.
        page_table, lengths: as ``kv_attention`` has them.
        page: tokens of one.
        count: pages for each KV head, at most.
        first, recent: so many pages at the begin and at the end of a sequence are taken first.

    Returns:
        int32 ``[batch, kv_heads, min(count, columns)]``, the best first, -1 where a sequence has no more.
    """
    columns, heads = page_table.shape[1], bounds.shape[1]
    rows = torch.where(page_table < 0, page_table + 1, page_table).long()
    low, high = bounds[rows].float().permute(3, 0, 2, 4, 1)  # [batch, kv_heads, head_dim, columns]
    grouped = q.float().unflatten(1, (heads, -1)).flatten(2, 3)
    most = (grouped.clamp(min=0) @ high + grouped.clamp(max=0) @ low).amax(2)
    column, used = torch.arange(columns, device=q.device), (-(-lengths // page))[:, None, None]
    always = (column < first) | (column >= used - recent)
    most = most.masked_fill(always, torch.inf).masked_fill(column >= used, -torch.inf)
    best, selected = most.topk(min(count, columns))
    return selected.masked_fill(best == -torch.inf, -1).int()
