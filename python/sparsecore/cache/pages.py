# SPDX-License-Identifier: Apache-2.0
"""Keys and values of one attention layer in pages: sequences of one length that may share compressed pages.

    table    [first columns: dense | compressed | the last `recent`: dense | columns to come]

A sequence owns ``own`` dense pages: one for each first column, and a ring of `recent` for the others, so that
a column's dense page is known from its number. Compressed pages belong to whoever names them: to reorder
sequences copies rows of the table, and the dense pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.kv_append import kv_append
from ..ops.kv_attention import kv_attention
from ..ops.kv_compress import mask_bytes
from ..ops.kv_decompress import kv_decompress

STEP = 1024
"""Tokens that growth makes room for, at least; a quarter of what is there, if more."""


@dataclass(frozen=True)
class Rule:
    """Which tokens are pruned, and how far."""

    keep: tuple[float, float]
    """Share of the channels of a token's K and V that is kept; (1, 1): everything stays dense."""
    recent: int
    """Columns at the end that stay dense, the one that fills among them."""
    sinks: int
    """Columns at the begin that stay dense."""
    page: int
    """Tokens of a column."""

    @property
    def prunes(self) -> bool:
        return self.keep != (1.0, 1.0)

    def channels(self, head_dim: int) -> tuple[int, int]:
        """Channels of a token that are kept: rounded up."""
        k, v = (-int(-share * head_dim // 1) for share in self.keep)
        return k, v


class Pages:
    """See the module. `k` and `v` are (bitmask, values, dense) as ``kv_attention`` has them."""

    def __init__(
        self, rule: Rule, batch: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ):
        self.rule, self.head_dim, self.length = rule, head_dim, 0
        self.own = rule.sinks + rule.recent if rule.prunes else 0
        bits = torch.zeros(0, heads, rule.page, mask_bytes(head_dim), dtype=torch.uint8, device=device)
        token = torch.zeros(0, heads, rule.page, head_dim, dtype=dtype, device=device)
        dense = token.new_zeros(batch * self.own, *token.shape[1:])
        keep_k, keep_v = rule.channels(head_dim)
        self.k = (bits, token[..., :keep_k].contiguous(), dense)
        self.v = (bits.clone(), token[..., :keep_v].contiguous(), dense.clone())
        self.table = torch.zeros(batch, 0, dtype=torch.int32, device=device)
        self.targets = self.table
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)

    @property
    def used(self) -> int:
        """Columns that hold tokens."""
        return -(-self.length // self.rule.page)

    @property
    def nbytes(self) -> int:
        """Of all that is allocated."""
        return sum(t.nbytes for t in (*self.k, *self.v, self.table, self.targets, self.lengths))

    def append(self, k: Tensor, v: Tensor) -> None:
        """``[batch, kv_heads, tokens, head_dim]`` after what is there, of any float dtype."""
        length = self.length + k.shape[2]
        if length > self.table.shape[1] * self.rule.page:
            self._resize(len(self.table), self._columns_for(length))
            self._assign()
        dtype = self.k[1].dtype
        kv_append(
            k.to(dtype),
            v.to(dtype),
            *self.k,
            *self.v,
            self.table,
            self.lengths,
            self.targets,
            self.rule.recent,
        )
        self.length = length

    def _columns_for(self, length: int) -> int:
        """Columns to grow to."""
        room = -(-STEP // self.rule.page)
        return max(-(-length // self.rule.page) + room, self.table.shape[1] * 5 // 4)

    @classmethod
    def nbytes_for(
        cls, rule: Rule, batch: int, heads: int, head_dim: int, dtype: torch.dtype, length: int
    ) -> int:
        """`nbytes` once `length` tokens of each sequence were appended at once: by tensors without memory."""
        made = cls(rule, batch, heads, head_dim, dtype, torch.device("meta"))
        if length:
            made._resize(batch, made._columns_for(length))
            made.targets = torch.empty_like(made.table)
        return made.nbytes

    def attend(self, q: Tensor, scale: float | None, softcap: float, bias: Tensor | None) -> Tensor:
        """``[batch, q_heads, q_tokens, head_dim]`` of the latest q_tokens tokens."""
        return kv_attention(
            q.contiguous(), *self.k, *self.v, self.table, self.lengths, scale, softcap, bias=bias
        )[0]

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V ``[batch, kv_heads, length, head_dim]``, decompressed."""
        entries = self.table[:, : self.used].flatten()
        packed = entries >= 0
        wholes = []
        for bitmask, values, dense in (self.k, self.v):
            whole = dense.new_empty(len(entries), *dense.shape[1:])
            pages = entries[packed]
            whole[packed] = kv_decompress(bitmask[pages], values[pages], self.head_dim)
            whole[~packed] = dense[-2 - entries[~packed]]
            whole = whole.unflatten(0, (len(self.table), self.used)).transpose(1, 2).flatten(2, 3)
            wholes.append(whole[:, :, : self.length])
        return wholes[0], wholes[1]

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens. What is pruned stays so; a page that fills again is dense."""
        length, used = max(self.length - tokens, 0), self.used
        column, inside = divmod(length, self.rule.page)
        self.length = length
        self.lengths.fill_(length)
        if (self.table[:1, column:used] < 0).all():
            return
        if inside and int(self.table[0, column]) >= 0:
            packed = self.table[:, column]
            places = -2 - self._dense_entries(column + 1)[:, column]
            for bitmask, values, dense in (self.k, self.v):
                dense[places] = kv_decompress(bitmask[packed], values[packed], self.head_dim)
            self.table[:, column] = -1
        self._assign()

    def select(self, rows: Tensor) -> None:
        """Sequence i becomes a copy of sequence ``rows[i]``; there may be more or fewer than before."""
        rows = rows.to(self.table.device)
        batch = len(self.table)
        if torch.equal(rows, torch.arange(batch, device=rows.device)):
            return
        self.k, self.v = (
            (bitmask, values, dense.unflatten(0, (batch, self.own))[rows].flatten(0, 1))
            for bitmask, values, dense in (self.k, self.v)
        )
        self.table, self.lengths = self.table[rows], self.lengths[rows]
        self._resize(len(rows), self.table.shape[1])
        self._assign()

    def _resize(self, batch: int, columns: int) -> None:
        """Room for so many; sequences are `batch` already, in the table and the dense pages."""
        own = self.own if self.rule.prunes else columns
        pages = batch * max(0, columns - own)

        def longer(t: Tensor, count: int) -> Tensor:
            if len(t) >= count:
                return t
            made = t.new_zeros(count, *t.shape[1:])
            made[: len(t)] = t
            return made

        def wider(dense: Tensor) -> Tensor:
            if own == self.own:
                return dense
            made = dense.new_zeros(batch, own, *dense.shape[1:])
            if self.own:
                made[:, : self.own] = dense.unflatten(0, (batch, self.own))
            return made.flatten(0, 1)

        self.k, self.v = (
            (longer(bitmask, pages), longer(values, pages), wider(dense))
            for bitmask, values, dense in (self.k, self.v)
        )
        self.own = own
        self.table = torch.nn.functional.pad(self.table, (0, columns - self.table.shape[1]), value=-1)

    def _dense_entries(self, columns: int) -> Tensor:
        """int64 ``[batch, columns]``: the entry of a column while it is dense."""
        column, sinks = torch.arange(columns, device=self.table.device), self.rule.sinks
        if self.rule.prunes:
            column = torch.where(column < sinks, column, sinks + (column - sinks) % self.rule.recent)
        return -2 - (torch.arange(len(self.table), device=column.device)[:, None] * self.own + column)

    def _assign(self) -> None:
        """Dense pages for columns that are not compressed, pages that nobody names for those that will be."""
        columns = self.table.shape[1]
        column = torch.arange(columns, device=self.table.device)
        packed = (self.table >= 0) & (column < self.used)
        self.table = torch.where(packed, self.table, self._dense_entries(columns)).int()
        self.targets = torch.full_like(self.table, -1)
        if self.rule.prunes:
            will = ~packed & (column >= self.rule.sinks) & (column < columns - self.rule.recent)
            free = torch.ones(len(self.k[0]), dtype=torch.bool, device=column.device)
            free[self.table[packed]] = False
            self.targets[will] = free.nonzero().flatten()[: int(will.sum())].int()

    def state(self) -> dict[str, Tensor]:
        """All tokens, as tensors of their own: pages that are named, numbered as they come."""
        used, batch = self.used, len(self.table)
        table = self.table[:, :used]
        named, numbers = table[table >= 0].unique(return_inverse=True)
        packed = torch.full_like(table, -1)
        packed[table >= 0] = numbers.int()
        made = {"table": packed}
        for half, (bitmask, values, dense) in (("k", self.k), ("v", self.v)):
            dense = (
                dense.unflatten(0, (batch, -1)) if self.own else dense.new_zeros(batch, 0, *dense.shape[1:])
            )
            made[f"{half}_bitmask"], made[f"{half}_values"] = bitmask[named], values[named]
            made[f"{half}_dense"] = dense[:, : min(used, self.own)].contiguous()
        return made

    @classmethod
    def from_state(cls, rule: Rule, length: int, state: dict[str, Tensor]) -> Pages:
        """What `state` gave, of `length` tokens a sequence.

        Raises:
            ValueError: naming the tensor, where shapes, dtypes or entries do not fit together.
        """
        dense, table = state["k_dense"], state["table"]
        if dense.dim() != 5 or dense.shape[3] != rule.page:
            raise ValueError(f"k_dense: must be [batch, pages, kv_heads, {rule.page}, head_dim]")
        batch, _, heads, _, head_dim = dense.shape
        made = cls(rule, batch, heads, head_dim, dense.dtype, dense.device)
        made.length = length
        used = made.used
        if table.dtype is not torch.int32 or table.shape != (batch, used):
            raise ValueError(f"table: must be int32 [{batch}, {used}]")
        made._resize(batch, used + rule.recent + -(-STEP // rule.page))
        pages, kept = len(state["k_values"]), min(used, made.own)
        if (table < -1).any() or (table >= pages).any() or pages > len(made.k[0]):
            raise ValueError(f"table: has entries outside {pages} pages, or not enough of them")
        column, packed = torch.arange(used, device=table.device), table >= 0
        may = (column >= rule.sinks) & (column < length // rule.page) & rule.prunes
        if (packed & ~may).any() or (~packed & may & (column < used - rule.recent)).any():
            raise ValueError("table: has compressed columns that must be dense, or dense ones that can't be")
        if (packed != packed[:1]).any():
            raise ValueError("table: sequences differ in what is compressed")
        for half, pools in (("k", made.k), ("v", made.v)):
            for name, room, lead in zip(
                ("bitmask", "values", "dense"), pools, ((pages,), (pages,), (batch, kept)), strict=True
            ):
                t = state[f"{half}_{name}"]
                if t.dtype is not room.dtype or t.shape != (*lead, *room.shape[1:]):
                    raise ValueError(f"{half}_{name}: must be {room.dtype} {[*lead, *room.shape[1:]]}")
                if name != "dense":
                    room[:pages] = t
                elif kept:
                    room.unflatten(0, (batch, made.own))[:, :kept] = t
        made.table[:, :used] = table
        made.lengths.fill_(length)
        made._assign()
        return made
