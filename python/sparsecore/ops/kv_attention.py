# SPDX-License-Identifier: Apache-2.0
"""Attention of the latest tokens to compressed and dense pages of K and V."""

import math

import torch
from torch import Tensor

from ..arguments import same_device
from . import kv_decompress


def kv_attention(
    q: Tensor,
    k_bitmask: Tensor,
    k_values: Tensor,
    k_dense: Tensor,
    v_bitmask: Tensor,
    v_values: Tensor,
    v_dense: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    bias: Tensor | None = None,
    slopes: Tensor | None = None,
    selected: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """softmax(q K^T) V over the pages of every sequence, as if K and V were decompressed.

    Query i of q_tokens is token ``length - q_tokens + i`` of its sequence and sees itself and what came
    before. Query head h reads KV head ``h // (q_heads // kv_heads)``. The answer does not depend on the
    number of threads. Takes no gradient.

    Args:
        q: ``[batch, q_heads, q_tokens, head_dim]`` float32, bfloat16 or float16, contiguous.
        k_bitmask, v_bitmask: uint8 ``[pages, kv_heads, page, 4 ceil(head_dim / 32)]``, as ``kv_compress``
            gives; page: tokens of one, a multiple of 16 in [16, 1024].
        k_values, v_values: ``[pages, kv_heads, page, keep]`` of any of these dtypes; K and V have keeps
            of their own.
        k_dense, v_dense: ``[dense_pages, kv_heads, page, head_dim]`` of the same dtype.
        page_table: int32 ``[batch, columns]``; entry j holds tokens ``[j * page, (j + 1) * page)``: e >= 0 is
            compressed page e, -1 no page, e <= -2 dense page -2 - e. What lies past a length is not read.
        lengths: int32 ``[batch]``, tokens of a sequence, the queries' own among them.
        scale: of q k; default ``head_dim ** -0.5``.
        softcap: s becomes ``softcap * tanh(s / softcap)`` when above 0.
        window: when above 0, tokens that a query sees, itself among them.
        bias: float32 ``[batch or 1, q_heads or 1, q_tokens or 1, keys]``, any strides, added to scores.
        slopes: float32 ``[q_heads]``; ``slope * (position of query - position of key)`` is taken off (ALiBi).
        selected: int32 ``[batch, kv_heads, count]``, count <= columns: the columns of page_table that the
            queries of a KV head attend to, in any order, each once; -1 is none. Other pages are not read; of
            these a query still sees what a length, a window and its own position let it see. ``quest`` and
            Double Sparsity (2408.07092) find columns.
        threshold: in [0, 1), 0 for none. A query drops a block when each of its scores is lower than the
            largest one before it by more than ``-log(threshold)``, and a block that no query needs has its V
            not read: BLASST (2512.12087). A block is up to 64 tokens of a page; before it are other blocks of
            the same 512 tokens, in the order of `selected`, so nothing depends on the number of threads. Each
            token dropped has less than `threshold` times the weight of the heaviest, so n of them have less
            than ``p = threshold * n`` of all weight: out moves by at most ``2 p max|v|``, and lse falls by at
            most ``-log(1 - p)``. What lies in a V that is not read is not checked. On CUDA a block is 16 or
            32 tokens, and before it are others of the same warp.

    Returns:
        out ``[batch, q_heads, q_tokens, head_dim]`` of q's dtype and lse float32 ``[batch, q_heads,
        q_tokens]``, the natural logarithm of the sum of exponentials; 0 and -inf where a query sees nothing.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, for lengths beyond the pages,
            entries that name no page, tokens whose bits are not ``keep`` channels, and selected columns that
            are none or named twice. CUDA, which waits for nothing, gives NaN for what lies in the arrays: for
            a sequence whose length has no pages, or more keys than bias, and for a KV head of one that meets
            such an entry, token or column.
    """
    return torch.ops.sparsecore.kv_attention(
        q, k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense, page_table, lengths,
        scale, softcap, window, bias, slopes, selected, threshold,
    )  # fmt: skip


def tokens(
    bitmask: Tensor, values: Tensor, dense: Tensor, page_table: Tensor, sequence: int, length: int
) -> Tensor:
    """``[kv_heads, length, head_dim]``: K or V of a sequence, decompressed."""
    page, head_dim = values.shape[2], dense.shape[3]
    entries = page_table[sequence, : -(-length // page)].tolist()
    found = [
        dense[-2 - e] if e < 0 else kv_decompress.reference(bitmask[e], values[e], head_dim) for e in entries
    ]
    whole = torch.cat(found, 1) if found else dense.new_zeros(dense.shape[1], 0, head_dim)
    return whole[:, :length]


def scores(
    q: Tensor, k: Tensor, sequence: int, scale: float, softcap: float, window: int,
    bias: Tensor | None, slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    """float64 ``[q_heads, q_tokens, length]`` of one sequence, -inf where a query does not see."""
    heads, q_tokens, _ = q.shape
    length = k.shape[1]
    s = q @ k.repeat_interleave(heads // k.shape[0], 0).transpose(1, 2) * scale
    if softcap > 0:
        s = softcap * (s / softcap).tanh()
    if bias is not None:
        s = s + bias.double().expand(max(sequence + 1, bias.shape[0]), -1, -1, -1)[sequence, ..., :length]
    away = torch.arange(length - q_tokens, length)[:, None] - torch.arange(length)
    if slopes is not None:
        s = s - slopes.double()[:, None, None] * away
    seen = (away >= 0) & (away < window) if window > 0 else away >= 0
    return s.masked_fill(~seen, -torch.inf)


def skip(s: Tensor, page: int, selected: Tensor | None, threshold: float) -> Tensor:
    """`scores` of one sequence, -inf also in pages that selected ``[kv_heads, count]`` leaves out, and in
    blocks that are dropped."""
    if selected is None and threshold == 0:
        return s
    length, result = s.shape[2], torch.full_like(s, -torch.inf)
    lists = torch.arange(-(-length // page))[None] if selected is None else selected
    group, split = s.shape[0] // len(lists), -(-512 // page)
    for heads, columns in zip(range(0, s.shape[0], group), lists.tolist(), strict=True):
        for i, column in enumerate(columns):
            if i % split == 0:
                top = torch.full((group, s.shape[1]), -torch.inf, dtype=s.dtype)
            for first in range(column * page, min((column + 1) * page, length), 64) if column >= 0 else ():
                block = (
                    slice(heads, heads + group),
                    slice(None),
                    slice(first, min(first + 64, (column + 1) * page)),
                )
                most = s[block].amax(-1)
                dropped = most < top + math.log(threshold) if threshold else torch.zeros_like(most).bool()
                result[block] = s[block].masked_fill(dropped[..., None], -torch.inf)
                top = top.maximum(most)
    return result


def reference(
    q: Tensor,
    k_bitmask: Tensor,
    k_values: Tensor,
    k_dense: Tensor,
    v_bitmask: Tensor,
    v_values: Tensor,
    v_dense: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    bias: Tensor | None = None,
    slopes: Tensor | None = None,
    selected: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The same in float64."""
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:3], -torch.inf).double()
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for i, length in enumerate(lengths.tolist()):
        k = tokens(k_bitmask, k_values, k_dense, page_table, i, length).double()
        v = tokens(v_bitmask, v_values, v_dense, page_table, i, length).double()
        if length:
            s = scores(q[i].double(), k, i, scale, softcap, window, bias, slopes)
            s = skip(s, k_values.shape[2], None if selected is None else selected[i], threshold)
            lse[i] = s.logsumexp(-1)
            weights = (s - lse[i][..., None]).exp().masked_fill(lse[i][..., None] == -math.inf, 0)
            out[i] = weights @ v.repeat_interleave(q.shape[1] // v.shape[0], 0)
    return out, lse


@torch.library.register_fake("sparsecore::kv_attention")
def _(
    q, k_bitmask, k_values, k_dense, v_bitmask, v_values, v_dense, page_table, lengths,
    scale=None, softcap=0.0, window=0, bias=None, slopes=None, selected=None, threshold=0.0,
):  # fmt: skip
    same_device(
        q=q, k_bitmask=k_bitmask, k_values=k_values, k_dense=k_dense, v_bitmask=v_bitmask, v_values=v_values,
        v_dense=v_dense, page_table=page_table, lengths=lengths, bias=bias, slopes=slopes,
        selected=selected,
    )  # fmt: skip
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
