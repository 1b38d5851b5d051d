# SPDX-License-Identifier: Apache-2.0
"""Samples of kv_append, which test_kv_append.py reads; Append says what one is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from . import FLOATS, bf16, f16, f32, strided

IN_PLACE = True
POOLS = ("k_bitmask", "k_values", "k_dense", "v_bitmask", "v_values", "v_dense")


@dataclass(frozen=True)
class Append:
    """`tokens` more for sequences of these lengths, in pages that lie in any order."""

    lengths: tuple[int, ...] = (40,)
    tokens: int = 1
    kv_heads: int = 1
    head_dim: int = 64
    keep: tuple[int, int] = (20, 20)
    page: int = 16
    recent: int = 2
    sinks: int = 1  # first columns, which stay dense
    value: torch.dtype = f32
    ring: bool = True  # columns `recent` apart share a dense page; else each has one of its own
    layout: str = "plain"  # of k and v: "heads_last" as projections give them, "every_other" channel
    pattern: str = "uniform"  # "ties": few magnitudes; "wild": NaN and infinity too
    weight: tuple[int, int] = (0, 0)  # dimensions of k_weight and v_weight; 0: None

    @property
    def name(self) -> str:
        return str(self)


def every() -> Iterator[Append]:
    for i, d in enumerate(range(32, 257, 8)):
        k = round(d * (0.3, 0.5, 0.75)[i % 3])
        yield Append((47, 3), 1 + 17 * (i % 3), 1 + i % 2, d, (k, d - k), value=FLOATS[i % 3])
    for tokens, lengths in product((0, 1, 2, 15, 16, 17, 100), ((0,), (15, 16, 17), (31, 48, 0), ())):
        yield Append(lengths, tokens, 2, recent=1 + tokens % 3, value=bf16)
    for recent, sinks, ring in product((1, 2, 3, 9), (0, 1, 3), (True, False)):
        yield Append((16, 63), 33, recent=recent, sinks=sinks, ring=ring, value=f16)
    for value, keep in product(FLOATS, ((0, 0), (64, 64), (1, 63))):
        yield Append((64, 128), 1, 2, keep=keep, value=value, page=64)
    for value, pattern, layout in product(FLOATS, ("ties", "wild"), ("heads_last", "every_other", "plain")):
        yield Append((32, 5), 50, 2, value=value, pattern=pattern, layout=layout)
    for i, (value, weight) in enumerate(product(FLOATS, ((2, 0), (0, 3), (3, 2)))):
        yield Append((32, 5), 50, 2, 40 + 24 * i, (9, 30), value=value, weight=weight, recent=1 + i % 2)
    yield Append((1024, 100), 1025, page=1024, recent=1, value=bf16)


CASES = tuple(dict.fromkeys(every()))


def tokens_of(case: Append, g: torch.Generator) -> Tensor:
    """New K or V."""
    heads, d = case.kv_heads, case.head_dim
    x = torch.randn(len(case.lengths), case.tokens, heads, d, generator=g)
    if case.pattern == "ties":
        x = (x * 2).round() / 2
    elif case.pattern == "wild":
        x[torch.rand(x.shape, generator=g) < 0.1] = float("nan")
        x[torch.rand(x.shape, generator=g) < 0.1] = -float("inf")
    x = x.to(case.value).transpose(1, 2)
    if case.layout == "heads_last":
        return x
    return strided(x) if case.layout == "every_other" else x.contiguous()


def inputs(case) -> dict:
    if not isinstance(case, Append):  # generic suites ask with cases of other ops
        case = Append()
    g = torch.Generator().manual_seed(len(case.lengths) + case.head_dim + sum(case.lengths) + case.tokens)
    d, heads, page, batch = case.head_dim, case.kv_heads, case.page, len(case.lengths)
    columns = -(-(max(case.lengths, default=0) + case.tokens) // page) + 1
    own = case.sinks + case.recent if case.ring else columns
    pages, dense = batch * columns + 1, batch * own + 1  # one of no sequence
    names, dense_names = torch.randperm(pages, generator=g), torch.randperm(dense, generator=g)
    table = torch.zeros(batch, columns, dtype=torch.int32)
    targets = torch.full_like(table, -1)
    for s, length in enumerate(case.lengths):
        for j in range(columns):
            ring = j if j < case.sinks or not case.ring else case.sinks + (j - case.sinks) % case.recent
            table[s, j] = -2 - dense_names[s * own + ring]
            if j >= case.sinks:
                targets[s, j] = names[s * columns + j]
                if j <= (length - 1) // page - case.recent:  # compressed by now
                    table[s, j] = targets[s, j]
    made: dict = {"k": tokens_of(case, g), "v": tokens_of(case, g)}
    for half, keep in zip("kv", case.keep, strict=True):
        shape = (pages, heads, page, -(-d // 32) * 4)
        made[f"{half}_bitmask"] = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
        made[f"{half}_values"] = torch.randn(pages, heads, page, keep, generator=g).to(case.value)
        made[f"{half}_dense"] = torch.randn(dense, heads, page, d, generator=g).to(case.value)
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    made |= {"page_table": table, "lengths": lengths, "targets": targets, "recent": case.recent}
    for half, dims in zip("kv", case.weight, strict=True):
        made[f"{half}_weight"] = torch.rand((batch, heads, d)[3 - dims :], generator=g) if dims else None
    return made


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    k, table, lengths, targets = (inputs[n] for n in ("k", "page_table", "lengths", "targets"))
    wrong = {
        "k": [k.double(), k.int(), k[0], k[..., :-8], k[..., :28], k[:, :0]],
        "v": [k.double(), k.half(), k[0], k[..., :-8], k[:, :, :-1], k[:, :0]],
        "page_table": [table.long(), table[:-1], table[0], strided(table)],
        "lengths": [lengths.long(), lengths[:-1], lengths[None], strided(lengths), lengths.float()],
        "targets": [targets.long(), targets[:-1], targets[0], strided(targets), targets[:, :-1].contiguous()],
        "recent": [0, -1, -(2**62)],
    }
    for name in POOLS:
        t = inputs[name]
        wrong[name] = [t.double(), t.half(), t[0], strided(t), t[:, :, :-1].contiguous()]
        wrong[name] += [t[:-1].contiguous()] * (name not in ("k_values", "k_dense"))
        wrong[name] += [t[..., :-1].contiguous()] * ("values" not in name)
        wrong[name] += [t.new_zeros(*t.shape[:3], 65)] * ("values" in name)
    heads, d = k.shape[1], k.shape[3]
    for name in ("k_weight", "v_weight"):
        w = torch.rand(heads, d)
        wrong[name] = [w.double(), w[0], w[:-1], w[:, :-8].contiguous(), strided(w), w[None, None]]
        wrong[name] += [w.expand(len(k) + 1, heads, d).contiguous()]
    wrong["k_values"] += [torch.zeros(3, 2, page, 20) for page in (8, 24, 2048)]
    for name, tensors in wrong.items():
        for t in tensors:
            yield name, {**inputs, name: t}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    """Lengths, entries that get tokens or leave, targets; pages that two sequences change."""
    table, lengths, page = inputs["page_table"], inputs["lengths"], inputs["k_values"].shape[2]
    tokens, last = inputs["k"].shape[2], len(inputs["lengths"]) - 1
    for length in (-1, table.shape[1] * page - tokens + 1, 2**31 - 1, -(2**31)):
        for i in (0, last):
            wrong = lengths.clone()
            wrong[i] = length
            yield "lengths", {**inputs, "lengths": wrong}
    dense, pages = len(inputs["k_dense"]), len(inputs["k_values"])
    for i in (0, last):
        begin, end = int(lengths[i]) // page, (int(lengths[i]) + tokens - 1) // page
        for entry, j in product((-1, 0, pages, -2 - dense, 2**31 - 1, -(2**31)), (begin, end)):
            wrong = table.clone()
            wrong[i, j] = entry
            yield "page_table", {**inputs, "page_table": wrong}
        leaving = end - inputs["recent"]
        for entry in (-1, pages, -2 - dense, -(2**31)):
            wrong = table.clone()
            wrong[i, leaving] = entry
            yield "page_table", {**inputs, "page_table": wrong}
        for target in (-2, pages, 2**31 - 1, -(2**31)):
            wrong = inputs["targets"].clone()
            wrong[i, leaving] = target
            yield "targets", {**inputs, "targets": wrong}
    shared = table.clone()
    shared[last, (int(lengths[last]) + tokens - 1) // page] = table[0, (int(lengths[0]) + tokens - 1) // page]
    yield "page_table", {**inputs, "page_table": shared}
    wrong = inputs["targets"].clone()
    ends = [(int(n) + tokens - 1) // page - inputs["recent"] for n in lengths]
    wrong[last, ends[last]] = wrong[0, ends[0]]
    yield "targets", {**inputs, "targets": wrong}
