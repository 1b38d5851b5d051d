# SPDX-License-Identifier: Apache-2.0
"""The next tokens' K and V into the pages of a cache, in place."""

import torch
from torch import Tensor

from ..arguments import same_device
from . import kv_compress

CHANGED = ("k_bitmask", "k_values", "k_dense", "v_bitmask", "v_values", "v_dense", "page_table", "lengths")
"""Arguments that a call changes."""


def kv_append(
    k: Tensor,
    v: Tensor,
    k_bitmask: Tensor,
    k_values: Tensor,
    k_dense: Tensor,
    v_bitmask: Tensor,
    v_values: Tensor,
    v_dense: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    targets: Tensor,
    recent: int,
    k_weight: Tensor | None = None,
    v_weight: Tensor | None = None,
) -> None:
    """Write tokens after those of every sequence, and compress the pages that are no longer recent.

    Tokens go to the dense page that the table has for their column. When a column begins, the one `recent`
    before it is compressed into the page that `targets` has for it, by ``kv_compress``'s rule, and the table
    names that page from then on; its dense page is free to be that of the column which begins. Nothing is
    allocated and no length is read by the caller; many tokens at once are as one after another. On an error
    nothing has changed. Takes no gradient.

    On CUDA the call waits for nothing, can be captured in a graph, and leaves the same bits. There lengths,
    entries and targets raise nothing: a sequence with a fault gets no tokens, and its length is -1 from then
    on, for which ``kv_attention`` gives NaN; a page that two sequences change holds something of both.

    Args:
        k, v: ``[batch, kv_heads, tokens, head_dim]`` float32, bfloat16 or float16, any strides.
        k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense: pages as ``kv_attention`` has them, of k's
            dtype; changed.
        page_table: int32 ``[batch, columns]`` as ``kv_attention`` has it, changed. Entries past a length name
            the dense page (e <= -2 is page -2 - e) that the column will have; columns `recent` apart may have
            the same.
        lengths: int32 ``[batch]``, changed: each grows by `tokens`.
        targets: int32 ``[batch, columns]``: the compressed page of a column that is no longer recent, or -1
            for one that stays dense. A column that is compressed already is left alone.
        recent: columns that stay dense, the one that fills among them; at least 1.
        k_weight, v_weight: float32 ``[kv_heads, head_dim]`` or ``[batch, kv_heads, head_dim]``, as
            ``kv_compress`` has them, for pages that this call compresses.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, arrays that overlap, lengths
            beyond the pages, entries or targets outside their pools, tokens for a compressed page, pages
            that two sequences would change, and a dense page that a column would take from one that is not
            compressed before.
    """
    torch.ops.sparsecore.kv_append(
        k, v, k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense, page_table, lengths, targets,
        recent, k_weight, v_weight,
    )  # fmt: skip


def reference(
    k: Tensor,
    v: Tensor,
    k_bitmask: Tensor,
    k_values: Tensor,
    k_dense: Tensor,
    v_bitmask: Tensor,
    v_values: Tensor,
    v_dense: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    targets: Tensor,
    recent: int,
    k_weight: Tensor | None = None,
    v_weight: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """What the arguments in `CHANGED` become, token by token; none is changed."""
    given = (k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense, page_table, lengths)
    changed = tuple(t.clone() for t in given)
    halves, (table, grown) = (changed[:3], changed[3:6]), changed[6:]
    page = k_values.shape[2]
    for s, t in ((s, t) for s in range(k.shape[0]) for t in range(k.shape[2])):
        column, place = divmod(int(grown[s]), page)
        old = column - recent
        if place == 0 and old >= 0 and targets[s, old] >= 0 and table[s, old] < -1:
            for (bitmask, values, dense), weight in zip(halves, (k_weight, v_weight), strict=True):
                own = weight[s] if weight is not None and weight.dim() == 3 else weight
                bits, kept = kv_compress.reference(dense[-2 - table[s, old]], values.shape[3], own)
                bitmask[targets[s, old]], values[targets[s, old]] = bits, kept
            table[s, old] = targets[s, old]
        for x, (_, _, dense) in zip((k, v), halves, strict=True):
            dense[-2 - table[s, column], :, place] = x[s, :, t]
        grown[s] += 1
    return changed


@torch.library.register_fake("sparsecore::kv_append")
def _(
    k, v, k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense, page_table, lengths, targets, recent,
    k_weight=None, v_weight=None,
):  # fmt: skip
    same_device(
        k=k, v=v, k_bitmask=k_bitmask, k_values=k_values, k_dense=k_dense, v_bitmask=v_bitmask,
        v_values=v_values, v_dense=v_dense, page_table=page_table, lengths=lengths, targets=targets,
        k_weight=k_weight, v_weight=v_weight,
    )  # fmt: skip
