# SPDX-License-Identifier: Apache-2.0
"""`sparsecore bench kv`: kv_attention of one query token against dense torch, each in its best dtype.

Dense torch is scaled_dot_product_attention, and a grouped matmul, softmax, matmul, in float32, bfloat16 and
float16. Ours reads bfloat16 pages of 64 tokens, pruned by magnitude; at 0 % they are dense pages. Skips have
the last sparsity: `pages 25%` reads a random quarter of each KV head's pages, `drop 40%` all of K, but by a
threshold no V of 40 % of the tokens; its keys are shorter in some pages than in others. Everyone is checked
against float64 on the keys and values that it was given, less what skips leave out, and they take turns, call
by call. `pack` compresses a page of K and V; a token's part of that is given as a share of attending to all.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sparsecore.ops.kv_attention import kv_attention, skip
from sparsecore.ops.kv_compress import kv_compress, mask_bytes
from sparsecore.ops.kv_decompress import kv_decompress
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import machine, record, spgemm
from .cases import tensor_bytes

PAGE = 64
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Shape = tuple[int, int, int]  # KV heads, query heads of each, head_dim


def scores(q: Tensor, k: Tensor, threshold: float = 0.0) -> Tensor:
    """``[batch, kv_heads, group, tokens]``, -inf where a threshold drops."""
    s = q.view(*k.shape[:2], -1, k.shape[3]) @ k.transpose(2, 3) * k.shape[3] ** -0.5
    if not threshold:
        return s
    return torch.stack([skip(one.flatten(0, 1)[:, None], PAGE, None, threshold) for one in s]).view(s.shape)


def grouped(q: Tensor, k: Tensor, v: Tensor, threshold: float = 0.0) -> Tensor:
    """softmax(q K^T) V with the queries of a group as rows of one product."""
    return (scores(q, k, threshold).softmax(-1) @ v).view(q.shape)


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, threshold: float = 0.0) -> float:
    """Largest error in units of 16 roundings (float32: 256) of a sum of weights times |v|."""
    exact, size = (grouped(q.double(), k.double(), x, threshold) for x in (v.double(), v.double().abs()))
    roundings = 256 if dtype is torch.float32 else 16
    return float(((out.double() - exact).abs() / (roundings * torch.finfo(dtype).eps * size)).max())


def pages(x: Tensor) -> Tensor:
    """``[batch, heads, tokens, d]`` as ``[batch * pages, heads, PAGE, d]``, padded with zeros."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % PAGE))
    return x.unflatten(2, (-1, PAGE)).transpose(1, 2).flatten(0, 1).contiguous()


def ours(q: Tensor, k: Tensor, v: Tensor, sparsity: float) -> tuple[tuple[Tensor, ...], int, Tensor, Tensor]:
    """Arguments of kv_attention, bytes that it reads, and the keys and values that they stand for."""
    batch, heads, tokens, d = k.shape
    keep = -(-round(1000 * (1 - sparsity)) * d // 1000)
    k, v = k.bfloat16(), v.bfloat16()
    table = torch.arange(batch * (-(-tokens // PAGE)), dtype=torch.int32).view(batch, -1)
    lengths = torch.full((batch,), tokens, dtype=torch.int32)
    if keep == d:
        bits = torch.zeros(0, heads, PAGE, mask_bytes(d), dtype=torch.uint8)
        none = torch.zeros(0, heads, PAGE, 0, dtype=k.dtype)
        arrays = (bits, none, pages(k), bits, none, pages(v))
        table = -2 - table
    else:
        none = torch.zeros(0, heads, PAGE, d, dtype=k.dtype)
        arrays = (*kv_compress(pages(k), keep), none, *kv_compress(pages(v), keep), none)
        k, v = (kv_decompress(*kv_compress(x, keep), d) for x in (k, v))
    return (q.bfloat16(), *arrays, table, lengths), tensor_bytes(*arrays, table), k, v


def chosen(k: Tensor, v: Tensor, share: float, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A share of each KV head's whole pages, as `selected`, and the keys and values in them."""
    batch, heads, tokens, d = k.shape
    count = max(1, round(share * (tokens // PAGE)))
    columns = torch.rand(batch, heads, tokens // PAGE, generator=g).argsort(-1)[..., :count]
    at = columns[..., None, None].expand(-1, -1, -1, PAGE, d)
    left = (
        x[:, :, : tokens // PAGE * PAGE].unflatten(2, (-1, PAGE)).gather(2, at).flatten(2, 3) for x in (k, v)
    )
    return columns.int(), *left


def cell(shape: Shape, batch: int, tokens: int, options: argparse.Namespace) -> list[record.Record]:
    heads, group, d = shape
    g = torch.Generator().manual_seed(tokens)
    make = lambda *sizes: torch.randn(*sizes, generator=g)
    q = 3 * make(batch, heads * group, 1, d).bfloat16().float()
    k, v = make(batch, heads, tokens, d), make(batch, heads, tokens, d)
    calls: dict[str, Callable[[], object]] = {}
    facts: dict[str, record.Record] = {}
    for (name, dtype), (how, function) in itertools.product(
        FLOATS.items(), (("sdpa", scaled_dot_product_attention), ("grouped", grouped))
    ):
        given = tuple(t.to(dtype) for t in (q, k, v))
        more = {"enable_gqa": group > 1} if how == "sdpa" else {}
        who = f"{how} {name}"
        calls[who] = lambda function=function, given=given, more=more: function(*given, **more)
        facts[who] = {"bytes": tensor_bytes(*given[1:]), "error": error(calls[who](), *given, dtype)}
    for sparsity in options.sparsity:
        given, nbytes, kept_k, kept_v = ours(q, k, v, sparsity)
        who = f"ours {sparsity:.0%}"
        calls[who] = lambda given=given: kv_attention(*given)[0]
        facts[who] = {"bytes": nbytes, "error": error(calls[who](), q, kept_k, kept_v, torch.bfloat16)}
        keep = given[2].shape[-1]
        if keep:
            fresh = [x[:, :, :PAGE].bfloat16() for x in (k, v)]
            calls[f"pack {sparsity:.0%}"] = lambda fresh=fresh, keep=keep: [
                kv_compress(x, keep) for x in fresh
            ]
            facts[f"pack {sparsity:.0%}"] = {"bytes": tensor_bytes(*fresh), "error": 0.0, "of": who}
    for share in options.pages:
        selected, *left = chosen(kept_k, kept_v, share, g)
        who = f"ours {sparsity:.0%} pages {share:.0%}"
        calls[who] = lambda given=given, selected=selected: kv_attention(*given, selected=selected)[0]
        read = int(nbytes * selected.shape[2] * PAGE / tokens)
        facts[who] = {"bytes": read, "share": share, "error": error(calls[who](), q, *left, torch.bfloat16)}
    for threshold in options.threshold:
        uneven = torch.rand(1, 1, -(-tokens // PAGE), generator=g).repeat_interleave(PAGE, 2)[
            ..., :tokens, None
        ]
        given, nbytes, kept_k, kept_v = ours(q, k * uneven, v, sparsity)
        share = (scores(q.double(), kept_k.double(), threshold) == -torch.inf).all(2).double().mean().item()
        who = f"ours {sparsity:.0%} drop {share:.0%}"
        calls[who] = lambda given=given, least=threshold: kv_attention(*given, threshold=least)[0]
        off = error(calls[who](), q, kept_k, kept_v, torch.bfloat16, threshold)
        facts[who] = {
            "bytes": int(nbytes * (1 - share / 2)),
            "dropped": share,
            "threshold": threshold,
            "error": off,
        }
    common = {"kv_heads": heads, "group": group, "head_dim": d, "batch": batch, "tokens": tokens,
              "threads": options.threads, **machine.facts()}  # fmt: skip
    return [
        common
        | {"contender": who, **times, **facts[who]}
        | ({} if facts[who]["error"] <= 1 else {"us": None})
        for who, times in spgemm.measure(calls, options).items()
    ]


def is_ours(r: record.Record) -> bool:
    return r["contender"].startswith("ours")


def show(console: Console, records: list[record.Record]) -> None:
    dense = min((r["us"] for r in records if not is_ours(r) and "of" not in r and r["us"]), default=None)
    first = records[0]
    steps = {r["contender"]: r["us"] for r in records}
    size = f"{first['kv_heads']} x {first['group']} heads of {first['head_dim']}"
    table = Table("who", "us", "p10", "GB/s", "times dense", title=f"{size}, batch {first['batch']},"
                  f" {first['tokens']} tokens, {first['threads']} thread(s)")  # fmt: skip
    for r in records:
        us = r["us"]
        table.add_row(
            r["contender"],
            f"{us:.0f}" if us else "WRONG",
            f"{r['p10']:.0f}",
            f"{r['bytes'] / us / 1e3:.1f}" if us else "",
            f"{us / PAGE / steps[r['of']]:.1%} a token"
            if "of" in r and steps[r["of"]]
            else f"{dense / us:.2f}x"
            if us and dense and is_ours(r)
            else "",
            style="bold" if is_ours(r) else "",
        )
    console.print(table)


def main(argv: Sequence[str]) -> int:
    numbers = lambda text: [int(part) for part in text.split(",")]
    p = argparse.ArgumentParser(prog="sparsecore bench kv", description=__doc__)
    p.add_argument("--shapes", default="3x3x64,8x4x128,8x1x64", help="KV heads x group x head_dim, ...")
    p.add_argument("--tokens", type=numbers, default=[4096, 16384], metavar="N,...")
    p.add_argument("--batch", type=numbers, default=[1], metavar="B,...")
    p.add_argument(
        "--sparsity", type=lambda text: [float(s) for s in text.split(",")], default=[0.0, 0.5, 0.7]
    )
    shares = lambda text: [float(s) for s in text.split(",") if s]
    p.add_argument("--pages", type=shares, default=[0.25], help="shares of pages to attend to")
    p.add_argument("--threshold", type=shares, default=[0.01], help="thresholds, on keys of uneven pages")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--repeat", type=int, default=15, help="samples of each contender")
    p.add_argument("--seconds", type=float, default=1.0, help="for the samples of a contender")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="adds records to it")
    options = p.parse_args(argv)
    console = Console(width=100, highlight=False)
    torch.set_num_threads(options.threads)
    options.neighbours = spgemm.neighbours(min(options.seconds, 2.0))
    wrong = False
    for shape, batch, tokens in itertools.product(options.shapes.split(","), options.batch, options.tokens):
        heads, group, d = (int(n) for n in shape.split("x"))
        records = cell((heads, group, d), batch, tokens, options)
        show(console, records)
        if options.out:
            record.append(options.out, records)
        wrong |= any(is_ours(r) and r["us"] is None for r in records)
    return int(wrong)
