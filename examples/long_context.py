# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M over a long real text: perplexity and tokens/s by context length, KV cache dense and pruned.

    python examples/long_context.py                     text and model come with installed packages
    python examples/long_context.py --text book.txt

The rivals in one model: transformers' own cache with scaled_dot_product_attention, and SparseCache at 0 %,
50 % and 70 % zeros. A context is prefilled once, dense; every cache is filled from that. Perplexity is of
the tokens that follow, seen 64 at a time; then all caches take turns, token by token, in the timing. Prints a
table, draws demo_out/long_context.png. Model and text are those of smollm2.py.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from smollm2 import VALUES, language_reference, load_dense
from sparsecore.cache import SparseCache
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

PART = 64  # tokens that are looked at together: fewer than stay dense
VALUES = {**VALUES, "fp16": torch.float16}


@dataclass
class Run:
    """One kind of cache at one context length, over all texts."""

    name: str
    context: int
    losses: list[float] = field(default_factory=list)
    """A token's."""
    steps: list[float] = field(default_factory=list)
    """Milliseconds of a generated token."""
    nbytes: int = 0

    @property
    def perplexity(self) -> float:
        return math.exp(sum(self.losses) / len(self.losses))

    @property
    def ms(self) -> float:
        return min(self.steps)


def losses(model: Any, ids: Tensor, cache: Any, context: int, count: int) -> list[float]:
    """Of the `count` tokens of int64 [length] after `context`, which the cache holds but for the last."""
    found: list[float] = []
    for begin in range(context - 1, context - 1 + count, PART):
        end = min(begin + PART, context - 1 + count)
        logits = model(ids[None, begin:end], past_key_values=cache).logits[0].float()
        found += torch.nn.functional.cross_entropy(
            logits, ids[begin + 1 : end + 1], reduction="none"
        ).tolist()
    return found


def dense_bytes(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def race(model: Any, caches: dict[str, Any], token: Tensor, runs: dict[str, Run], steps: int) -> None:
    """Greedy tokens, one from each cache in turn. The first of a cache is not counted."""
    tokens = dict.fromkeys(caches, token)
    for step in range(steps + 1):
        for name, cache in caches.items():
            begin = time.perf_counter()
            tokens[name] = model(tokens[name], past_key_values=cache).logits[:, -1:].argmax(-1)
            if step:
                runs[name].steps.append(1e3 * (time.perf_counter() - begin))


@torch.inference_mode()
def measure(
    model: Any, texts: list[Tensor], contexts: list[int], kinds: dict[str, dict], count: int, steps: int
) -> Iterator[dict[str, Run]]:
    """{name: run} of each context, the dense one first, once every text has been read so far.

    Args:
        texts: int64 [length], each longer than the last context and `count` tokens.
        kinds: options of SparseCache by name.
        count: tokens after a context that perplexity is measured on.
        steps: tokens generated in the timing, on the first text.
    """
    model.set_attn_implementation("sparsecore")  # with transformers' own cache that is sdpa
    pasts = [DynamicCache(config=model.config) for _ in texts]
    for context in contexts:
        runs = {name: Run(name, context) for name in ("dense", *kinds)}
        for i, (ids, past) in enumerate(zip(texts, pasts, strict=True)):
            while (done := past.get_seq_length()) < context - 1:
                model(ids[None, done : min(done + 512, context - 1)], past_key_values=past, logits_to_keep=1)
            caches: dict[str, Any] = {"dense": past}
            for name, options in kinds.items():
                caches[name] = SparseCache(model.config, **options)
                for j, layer in enumerate(past.layers):
                    caches[name].update(layer.keys, layer.values, j)
            for name, cache in caches.items():
                runs[name].losses += losses(model, ids, cache, context, count)
                runs[name].nbytes = cache.nbytes if isinstance(cache, SparseCache) else dense_bytes(cache)
            if i == 0:
                race(model, caches, ids[None, context + count - 1 : context + count], runs, steps)
            past.crop(context - 1 - past.get_seq_length())
        yield runs


def table(results: list[dict[str, Run]]) -> Table:
    """A row a context and cache; ratios are to the dense cache."""
    made = Table(title="SmolLM2-135M, batch 1, greedy: the fastest token of each; KV cache in MB")
    for column in ("context", "cache", "perplexity", "x dense", "tokens/s", "x dense", "MB", "x dense"):
        made.add_column(column, justify="left" if column == "cache" else "right", no_wrap=True)
    for runs in results:
        dense = runs["dense"]
        for i, run in enumerate(runs.values()):
            made.add_row(
                str(run.context) if i == 0 else "",
                run.name,
                f"{run.perplexity:.3f}",
                f"{run.perplexity / dense.perplexity:.4f}",
                f"{1e3 / run.ms:.1f}",
                f"{dense.ms / run.ms:.2f}",
                f"{run.nbytes / 1e6:.0f}",
                f"{run.nbytes / dense.nbytes:.2f}",
                end_section=i == len(runs) - 1,
            )
    return made


def picture(results: list[dict[str, Run]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    contexts = [runs["dense"].context for runs in results]
    for name in results[0]:
        mine = [runs[name] for runs in results]
        axes[0].plot(contexts, [run.perplexity for run in mine], marker="o", label=name)
        axes[1].plot(contexts, [1e3 / run.ms for run in mine], marker="o")
        axes[2].plot(contexts, [run.nbytes / 1e6 for run in mine], marker="o")
    axes[0].set(title="perplexity of what follows (lower is better)")
    axes[0].legend()
    axes[1].set(title="decode speed", ylabel="tokens / s", ylim=(0, None))
    axes[2].set(title="KV cache", ylabel="MB", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("context, tokens")
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="UTF-8 text; default: Python's language reference")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 7680])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5, 0.7])
    parser.add_argument("--values", choices=VALUES, default="bf16", help="dtype of SparseCache's pages")
    parser.add_argument("--window", type=int, default=128, help="latest tokens that stay dense")
    parser.add_argument("--texts", type=int, default=2, help="disjoint parts of the text")
    parser.add_argument("--count", type=int, default=256, help="tokens that perplexity is measured on, each")
    parser.add_argument("--steps", type=int, default=16, help="tokens generated in the timing")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    return parser.parse_args()


def main() -> None:
    args, begin, console = arguments(), time.perf_counter(), Console(width=118)
    import transformers

    transformers.logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_dense()
    text = args.text.read_text(encoding="utf-8") if args.text else language_reference()
    ids = torch.tensor(tokenizer(text)["input_ids"])
    longest = max(args.contexts) + args.count + args.steps + 1
    parts = list(ids.split(longest)[: args.texts])
    if len(parts) < args.texts or len(parts[-1]) < longest:
        raise SystemExit(f"the text has {len(ids)} tokens, and {args.texts} parts of {longest} are asked for")
    kinds = {
        f"{100 * sparsity:.0f} %, {args.values}": {
            "keep": 1 - sparsity,
            "window": args.window,
            "dtype": VALUES[args.values],
        }
        for sparsity in args.sparsity
    }
    contexts = sorted(args.contexts)
    found = measure(model, parts, contexts, kinds, args.count, args.steps)
    results = list(tqdm(found, total=len(contexts), desc="contexts", unit="context"))
    console.print(table(results))
    picture(results, args.out / "long_context.png")
    console.print(
        f"dense: transformers' cache in float32. Perplexity on {args.texts} x {args.count} tokens. "
        f"{args.out / 'long_context.png'} shows the same.\n{time.perf_counter() - begin:.0f} s, "
        f"{torch.get_num_threads()} threads."
    )


if __name__ == "__main__":
    main()
