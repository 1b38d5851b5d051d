# SPDX-License-Identifier: Apache-2.0
"""Samples of kv_attention, which test_kv_attention.py reads; Cache says what one is made of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from sparsecore.ops import kv_attention, kv_compress
from torch import Tensor

from . import FLOATS, bf16, f16, f32, strided

ATTENTION = True
POOLS = ("k_bitmask", "k_values", "k_dense", "v_bitmask", "v_values", "v_dense")


@dataclass(frozen=True)
class Cache:
    """Sequences of these lengths in pages that lie in any order; every `dense`-th page is dense, 0: none."""

    lengths: tuple[int, ...] = (40,)
    kv_heads: int = 1
    group: int = 1
    q_tokens: int = 1
    head_dim: int = 64
    keep: tuple[int, int] = (20, 20)
    page: int = 16
    dense: int = 3
    dtype: torch.dtype = f32  # of q
    value: torch.dtype = f32
    softcap: float = 0.0
    window: int = 0
    bias: tuple[int, int, int] = ()  # its leading sizes, 0 for those of q
    slopes: bool = False
    scale: float | None = None
    selected: float | None = None  # the share of pages that a KV head attends to
    threshold: float = 0.0
    pattern: str = (
        "uniform"  # "ties": equal keys; "far": scores of some hundred; "shared": sequences share pages
    )

    @property
    def name(self) -> str:
        return str(self)


def every() -> Iterator[Cache]:
    types = list(product(FLOATS, FLOATS))
    for i, d in enumerate(range(32, 257, 8)):
        t, v = types[i % 9]
        k = round(d * (0.3, 0.5, 0.75)[i % 3])
        yield Cache((37 + i, 5), 2, 1 + i % 9, 1, d, (k, d - k), 16 << i % 3, i % 4, t, v)
    for group, q_tokens in product((1, 2, 3, 4, 5, 7, 8, 9, 12), (1, 2, 5)):
        yield Cache((70, 3, 200), 1 + group % 2, group, q_tokens, dtype=types[group % 9][0], value=bf16)
    for value, keep in product(FLOATS, ((0, 0), (64, 64), (1, 63), (19, 20))):
        yield Cache((130, 64), 2, 3, keep=keep, value=value, page=64)
    for lengths in ((0,), (1,), (0, 5, 0), (15, 16, 17), (511, 512, 513), (1023, 1025, 1100), ()):
        for dense in (0, 1, 5):
            yield Cache(lengths, 2, 2, 2, page=48 if len(lengths) == 3 else 16, dense=dense, value=bf16)
    for window, q_tokens, page in product((1, 7, 64, 100), (1, 3), (16, 64, 1024)):
        yield Cache((300, 20, 1200), 1, 2, q_tokens, page=page, window=window, value=f16)
    for i, bias in enumerate(((0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 0, 0))):
        yield Cache((90, 600), 2, 2, 1 + i % 2, bias=bias, softcap=20.0 * (i % 2), window=50 * (i > 2))
    for value in FLOATS:
        yield Cache((200, 33), 2, 3, 2, slopes=True, value=value, dtype=value)
        yield Cache((200, 33), 2, 3, 2, softcap=5.0, value=value, dtype=value, scale=0.7)
        for pattern in ("ties", "far", "shared"):
            yield Cache((200, 200, 33), 2, 3, 1, value=value, pattern=pattern, page=32)

    for i, (share, page) in enumerate(product((0.0, 0.2, 0.6, 1.0), (16, 48, 128))):
        t, v = types[(5 * i + 1) % 9]
        kinds = (
            Cache((300, 0, 5), 2, 1 + i % 4, 1 + i % 3, (40, 64, 128)[i // 3 % 3]),
            Cache((600,), 3, 2, 2, window=(70, 400)[i // 3 % 2], dense=2),
            Cache((200, 90), 1, 3, bias=(0, 0, 0), slopes=True, softcap=9.0 * (i // 3 % 2)),
        )
        yield replace(kinds[(i + i // 3) % 3], dtype=t, value=v, page=page, selected=share)
    for i, (threshold, page) in enumerate(product((1e-30, 1e-4, 0.5, 0.99), (16, 64, 256))):
        t, v = types[(7 * i + 2) % 9]
        kinds = (
            Cache((700, 0, 5), 2, 1 + i % 9, 1 + i % 3, (64, 40, 128)[i // 3 % 3], pattern="far"),
            Cache((900,), 1, 3, window=(0, 600)[i // 3 % 2], selected=(None, 0.5)[i // 6]),
            Cache((600,), 1, 2, bias=(0, 0, 0), slopes=True, softcap=30.0, pattern="far"),
        )
        yield replace(kinds[(i + i // 3) % 3], dtype=t, value=v, page=page, threshold=threshold)


CASES = tuple(dict.fromkeys(every()))
# On CUDA queries of the values' own 16-bit dtype go to tensor cores: three of four.
CUDA_CASES = tuple(
    dict.fromkeys(
        replace(c, dtype=c.value) if i % 4 and c.value is not f32 else c
        for i, c in enumerate(CASES)
        if c.threshold == 0  # blocks are others there
    )
)


def inputs(case) -> dict:
    if not isinstance(case, Cache):  # generic suites ask with cases of other ops
        case = Cache()
    g = torch.Generator().manual_seed(len(case.lengths) + case.head_dim + sum(case.lengths))
    d, heads, page, batch = case.head_dim, case.kv_heads, case.page, len(case.lengths)
    used = [-(-n // page) for n in case.lengths]
    columns = max(used, default=0) + 1
    table = torch.full((batch, columns), -1, dtype=torch.int32)
    total = sum(used)
    names = torch.randperm(total + 1, generator=g)  # one page of no sequence
    at = 0
    for i, count in enumerate(used):
        for j in range(count):
            is_dense = case.dense and (at % case.dense == 0)
            table[i, j] = -2 - names[at] if is_dense else names[at]
            at += 1
        if case.pattern == "shared" and i and used[i] == used[0]:
            table[i, : count // 2] = table[0, : count // 2]
    make = lambda *shape: torch.randn(*shape, generator=g)
    made = {}
    for half, keep in zip("kv", case.keep, strict=True):
        x = make(total + 1, heads, page, d)
        if half == "k" and case.pattern == "ties":
            x = x[:1, :, :1].expand(x.shape)
        if half == "k" and case.pattern == "far":
            x = x * 40
        x = x.to(case.value).contiguous()
        made[f"{half}_bitmask"], made[f"{half}_values"] = kv_compress.kv_compress(x, keep)
        made[f"{half}_dense"] = x
    q_heads = heads * case.group
    bias = None
    if case.bias:
        sizes = [s or full for s, full in zip(case.bias, (batch, q_heads, case.q_tokens), strict=True)]
        bias = make(*sizes, max(case.lengths) + 3)
        bias[torch.rand(bias.shape, generator=g) < 0.2] = -torch.inf
    selected = None
    if case.selected is not None:
        order = torch.rand(batch, heads, columns, generator=g).argsort(-1)
        selected = order.masked_fill(torch.rand(order.shape, generator=g) >= case.selected, -1).int()
    return {
        "q": make(batch, q_heads, case.q_tokens, d).to(case.dtype),
        **{name: made[name] for name in POOLS},
        "page_table": table,
        "lengths": torch.tensor(case.lengths, dtype=torch.int32),
        "scale": case.scale,
        "softcap": case.softcap,
        "window": case.window,
        "bias": bias,
        "slopes": make(q_heads).abs() / 8 if case.slopes else None,
        "selected": selected,
        "threshold": case.threshold,
    }


def bound(inputs: dict, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """How far out and lse may lie from the exact ones, componentwise.

    A score is a sum of at most head_dim products, then scaled, capped, shifted: it is off by at most
    ``e = gamma(head_dim + 4) |scale| |q||k| + 8 u (softcap + |bias| + |slope * distance|)``, and the
    exponential's argument, in powers of 2, by ``4 u`` of it and of the maximum. A weight is then off by
    ``expm1(2 e')``, and a sum of n of them by ``gamma(n)`` more, merged splits included. A block so close to
    the threshold may be dropped or not.
    """
    u, q = 2.0**-24, inputs["q"].double()
    gamma = lambda n: n * u / (1 - n * u)
    heads, d = q.shape[1], q.shape[3]
    scale = d**-0.5 if inputs["scale"] is None else inputs["scale"]
    out_bound, lse_bound = torch.zeros_like(out), torch.zeros_like(lse)
    pools = [inputs[name] for name in POOLS]
    plain = [inputs[name] for name in ("softcap", "window", "bias", "slopes")]
    for i, n in enumerate(inputs["lengths"].tolist()):
        if n == 0:
            continue
        k = kv_attention.tokens(*pools[:3], inputs["page_table"], i, n).double()
        v = kv_attention.tokens(*pools[3:], inputs["page_table"], i, n).double()
        every = kv_attention.scores(q[i], k, i, scale, *plain)
        skips = inputs["k_values"].shape[2], None if inputs["selected"] is None else inputs["selected"][i]
        s = kv_attention.skip(every, *skips, inputs["threshold"])
        size = kv_attention.scores(q[i].abs(), k.abs(), i, abs(scale), 0.0, *plain[1:2], None, None)
        seen = s > -torch.inf
        size, finite = size.masked_fill(~seen, 0), s.masked_fill(~seen, 0).abs()
        extra = 8 * u * (inputs["softcap"] + 2 * finite + size)
        e = gamma(d + 4) * size + extra + 4 * u * finite.amax(-1, keepdim=True)
        away = (torch.arange(n - q.shape[2], n)[:, None] - torch.arange(n)).abs()
        if inputs["slopes"] is not None:
            e = e + 8 * u * inputs["slopes"].double()[:, None, None] * away
        if inputs["bias"] is not None:
            e = e + 8 * u * inputs["bias"].double().nan_to_num(neginf=0).abs().max()
        worst = e.amax(-1)
        slack = math.exp(min(2 * worst.max().item(), 1.0))
        most, least = (kv_attention.skip(every, *skips, inputs["threshold"] * x) for x in (1 / slack, slack))
        torn = (most > -torch.inf) & (least == -torch.inf)
        off = torch.expm1(2 * e + 2 * worst[..., None]) + gamma(n + 40)
        weights = (s - lse[i][..., None].nan_to_num(neginf=0)).exp() * off
        out_bound[i] = weights @ v.abs().repeat_interleave(heads // v.shape[0], 0)
        lse_bound[i] = worst + gamma(n + 40) + 8 * u * lse[i].nan_to_num(neginf=0).abs()
        if torn.any():
            weights = 4 * (every - lse[i][..., None].nan_to_num(neginf=0)).exp().masked_fill(~torn, 0)
            out_bound[i] += (
                weights @ v.abs().repeat_interleave(heads // v.shape[0], 0)
                + weights.sum(-1, True) * out[i].abs()
            )
            lse_bound[i] += weights.sum(-1)
    info = torch.finfo(inputs["q"].dtype)
    rounding = (out.abs() * info.eps / 2).clamp_min(info.smallest_normal * info.eps)
    return out_bound + rounding * 1.01 + 1e-30, lse_bound + 1e-30


def native(inputs: dict) -> tuple[dict, dict]:
    """Arrays and integers of native.call; reals go by their bits."""
    arrays = {n: t for n, t in inputs.items() if isinstance(t, Tensor)}
    bits = lambda x: int(torch.tensor(x).view(torch.int32))
    scale = inputs["q"].shape[3] ** -0.5 if inputs["scale"] is None else inputs["scale"]
    drop = math.log2(inputs["threshold"]) if inputs["threshold"] else 0.0
    reals = {"scale": bits(scale), "softcap": bits(inputs["softcap"]), "drop": bits(drop)}
    return arrays, {**reals, "window": inputs["window"]}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    q, table, lengths = inputs["q"], inputs["page_table"], inputs["lengths"]
    wrong = {
        "q": [q.double(), q.int(), q[0], q[..., :-8].contiguous(), strided(q), q[:, :3].contiguous()],
        "page_table": [table.long(), table[:-1], table[0], strided(table)],
        "lengths": [lengths.long(), lengths[:-1], lengths[None], strided(lengths), lengths.float()],
        "window": [-1, -(2**62)],
        "softcap": [-1.0, float("nan")],
        "slopes": [torch.ones(q.shape[1] + 1), torch.ones(q.shape[1]).double(), torch.ones(1, q.shape[1])],
        "selected": [torch.zeros(len(q), 2, 3), torch.zeros(len(q), 2, 3).long(),
                     torch.zeros(len(q), 2).int(), torch.zeros(len(q) + 1, 2, 3).int(),
                     torch.zeros(len(q), 3, 3).int(), strided(torch.zeros(len(q), 2, 3).int()),
                     torch.zeros(len(q), 2, 99).int()],
        "threshold": [-0.1, 1.0, float("nan"), 2.0],
        "bias": [torch.zeros(1, 1, 1, 1), torch.zeros(2, 2), torch.zeros(1, 1, 1, 9999).half(),
                 torch.zeros(1, q.shape[1] + 1, 1, 9999)],
    }  # fmt: skip
    for name in POOLS:
        t = inputs[name]
        wrong[name] = [t.double(), t[0], strided(t)]
        wrong[name] += [t[:, :, :-1].contiguous()] * (name != "k_values") + [t[..., :-1].contiguous()] * (
            "values" not in name
        )
    wrong["k_values"] += [torch.zeros(3, 2, 24, 20), torch.zeros(3, 2, 8, 20), torch.zeros(3, 2, 2048, 20)]
    for name, tensors in wrong.items():
        for t in tensors:
            yield name, {**inputs, name: t}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    """What lies within the lengths: entries, lengths, bits."""
    table, lengths = inputs["page_table"], inputs["lengths"]
    pages = len(inputs["k_values"])
    for entry in (-1, pages, -2 - pages, 2**31 - 1, -(2**31)):
        for i, j in ((0, 0), (len(table) - 1, 1)):
            wrong = table.clone()
            wrong[i, j] = entry
            yield "page_table", {**inputs, "page_table": wrong}
    for length in (-1, table.shape[1] * inputs["k_values"].shape[2] + 1, 2**31 - 1, -(2**31)):
        for i in (0, len(lengths) - 1):
            wrong = lengths.clone()
            wrong[i] = length
            yield "lengths", {**inputs, "lengths": wrong}
    if inputs["selected"] is not None:
        yield from damage_selected(inputs)
    compressed = int(table[table >= 0][0])
    for name, byte, bit in product(("k_bitmask", "v_bitmask"), (0, -1), (1, 128)):
        wrong = inputs[name].clone()
        wrong[compressed, :, 0, byte] ^= bit
        yield name, {**inputs, name: wrong}


def damage_selected(inputs: dict) -> Iterator[tuple[str, dict]]:
    """Columns that are none, and one that is named twice."""
    columns = inputs["page_table"].shape[1]
    for column, at in product((columns, -2, 2**31 - 1, -(2**31), None), ((0, 0, 0), (-1, -1, -1))):
        wrong = inputs["selected"].clone()
        wrong[at] = int(wrong[at[:2]].max()) if column is None else column
        if column is not None or (wrong[at[:2]] == wrong[at]).sum() > 1:
            yield "selected", {**inputs, "selected": wrong}


def broken_heads(inputs: dict) -> Tensor:
    """bool ``[batch, kv_heads]``: those that read a page or bits that are none, or have a broken list."""
    table, pages, dense = inputs["page_table"], len(inputs["k_values"]), len(inputs["k_dense"])
    _, heads, page, _ = inputs["k_values"].shape
    faulty = torch.zeros(len(table), heads, dtype=torch.bool)
    wrong = torch.zeros(pages, heads, page, dtype=torch.bool)
    for half in "kv":
        bits = (inputs[f"{half}_bitmask"][..., None] >> torch.arange(8) & 1).flatten(-2)
        head_dim, keep = inputs["q"].shape[3], inputs[f"{half}_values"].shape[3]
        wrong |= (bits.sum(-1) != keep) | bits[..., head_dim:].any(-1)
    for i, n in enumerate(inputs["lengths"].tolist()):
        if not 0 <= n <= table.shape[1] * page:
            faulty[i] = True
            continue
        listed = torch.ones(heads, table.shape[1], dtype=torch.bool)
        if inputs["selected"] is not None:
            for head, columns in enumerate(inputs["selected"][i].tolist()):
                columns = [c for c in columns if c != -1]
                there = [c for c in columns if 0 <= c < table.shape[1]]
                faulty[i, head] |= len(there) < len(columns) or len({*columns}) < len(columns)
                listed[head] = False
                listed[head, there] = True
        for first in range(0, n, page):
            entry, mine = int(table[i, first // page]), listed[:, first // page]
            if entry == -1 or entry >= pages or -2 - entry >= dense:
                faulty[i] |= mine
            elif entry >= 0:
                faulty[i] |= mine & wrong[entry, :, : n - first].any(-1)
    return faulty
