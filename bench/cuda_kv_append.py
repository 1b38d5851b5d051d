# SPDX-License-Identifier: Apache-2.0
"""kv_append of one token on this GPU, bfloat16, against writes into a dense cache of fixed size as
transformers' ``StaticCache`` makes them, an ``index_copy_`` of K and one of V.

Ours is timed in a step that begins no page and in one that does, whose sequences each compress a page.
Lengths and tables are set back before every call, by copies that count as ours.
"""

from collections.abc import Iterator

import torch
from sparsecore.ops.kv_append import kv_append
from sparsecore.ops.kv_compress import mask_bytes
from sparsecore.ops.kv_decompress import kv_decompress
from torch import Tensor

from .cuda_graph import seconds

PAGE, COLUMNS, RECENT = 64, 64, 3
HEADS, HEAD_DIM, KEEP = 8, 128, 39  # Llama-3-8B, 70 %
LINE = (
    "batch {batch}  kv_append {us:6.1f} us, {page_us:6.1f} us where a page begins"
    "  index_copy_ to a dense cache {dense_us:6.1f} us"
)


class Cache:
    """Pages whose last column is full: all before the last `RECENT` are compressed."""

    def __init__(self, batch: int):
        empty = lambda *sizes: torch.zeros(*sizes, device="cuda", dtype=torch.bfloat16)
        pages, ring = batch * COLUMNS, batch * RECENT
        self.pools: list[Tensor] = []
        for _ in "kv":
            self.pools.append(empty(pages, HEADS, PAGE, mask_bytes(HEAD_DIM)).to(torch.uint8))
            self.pools.append(empty(pages, HEADS, PAGE, KEEP))
            self.pools.append(empty(ring, HEADS, PAGE, HEAD_DIM).normal_())
        column = torch.arange(COLUMNS, device="cuda")
        sequence = torch.arange(batch, device="cuda")[:, None]
        self.targets = (sequence * COLUMNS + column).int()
        dense = -2 - (sequence * RECENT + column % RECENT)
        self.begun = torch.where(column < COLUMNS - RECENT - 1, self.targets, dense).int()
        self.table = self.begun.clone()
        self.lengths = torch.zeros(batch, dtype=torch.int32, device="cuda")

    def append(self, k: Tensor, v: Tensor, length: int) -> None:
        self.lengths.fill_(length)
        self.table.copy_(self.begun)
        kv_append(k, v, *self.pools, self.table, self.lengths, self.targets, RECENT)


def check(cache: Cache, k: Tensor, v: Tensor) -> None:
    """The step that begins a page: tokens in the ring, and what leaves it in its page."""
    at = (COLUMNS - 1) * PAGE
    old = [dense[(COLUMNS - 1) % RECENT :: RECENT].clone() for dense in (cache.pools[2], cache.pools[5])]
    cache.append(k, v, at)
    entry = cache.table[:, COLUMNS - 1 - RECENT].long()
    good = (cache.lengths == at + 1).all() and (entry >= 0).all()
    for x, (bitmask, values, dense), before in zip(
        (k, v), (cache.pools[:3], cache.pools[3:]), old, strict=True
    ):
        packed = kv_decompress(bitmask[entry], values[entry], HEAD_DIM)
        good &= ((packed == 0) | (packed == before)).all()
        good &= (packed != 0).sum(-1).eq(KEEP).all()
        good &= (dense[(COLUMNS - 1) % RECENT :: RECENT, :, 0] == x[:, :, 0]).all()
    if not good:
        raise AssertionError("kv_append: the pages are not those of the tokens")


def measure(batch: int) -> dict:
    cache, at = Cache(batch), (COLUMNS - 1) * PAGE
    k, v = (torch.randn(batch, HEADS, 1, HEAD_DIM, device="cuda").bfloat16() for _ in "kv")
    check(cache, k, v)
    inside, begins = (1e6 * seconds([lambda n=n: cache.append(k, v, n)] * 16) for n in (at - 5, at))  # type: ignore[misc]
    whole = [k.new_zeros(batch, HEADS, COLUMNS * PAGE, HEAD_DIM) for _ in "kv"]
    place = torch.tensor([at], device="cuda")
    dense = 1e6 * seconds(
        [lambda: [c.index_copy_(2, place, x) for c, x in zip(whole, (k, v), strict=True)]] * 16
    )
    return {"op": "kv_append", "batch": batch, "us": inside, "page_us": begins, "dense_us": dense}


def run(quick: bool) -> Iterator[dict]:
    for batch in (1,) if quick else (1, 8, 64):
        row = measure(batch)
        print(LINE.format(**row), flush=True)
        yield row
