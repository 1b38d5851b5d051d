# SPDX-License-Identifier: Apache-2.0
"""Train one network dense, 2:4 by SR-STE and 90 % sparse by SRigL, step by step beside each other.

    pip install sparsecore[train]
    python examples/train_digits.py                          one to three minutes on two cores
    python examples/train_digits.py --recipes dense bdwp     other recipes of sparsecore.train

The data are the 1797 handwritten digits that come with scikit-learn, a fifth of them held out; the network
has 64, width, width and 10 neurons. Every step is made by each recipe in turn, so that a disturbance of the
machine hits them all. Prints a table: accuracy, milliseconds a step, bytes held while training and to serve.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sparsecore import Nm, train
from torch import Tensor, nn
from tqdm import tqdm

HEAD = "4"  # 10 neurons, which stay dense
RECIPES: dict[str, tuple[str, Callable[[nn.Module, int], Any]]] = {
    "dense": ("dense", lambda model, steps: None),
    "sr_ste": ("SR-STE 2:4", lambda model, steps: train.sr_ste_(model, 2, 4, exclude=HEAD)),
    "bdwp": ("BDWP 2:8", lambda model, steps: train.bdwp_(model, 2, 8, exclude=HEAD)),
    "flow": (
        "decaying flow 1:8",
        lambda model, steps: train.decaying_flow_(model, 1, 8, steps=steps * 3 // 4, exclude=HEAD),
    ),
    "cast": (
        "CAST decay 2:4",
        lambda model, steps: train.cast_(model, 2, 4, steps=steps * 3 // 4, decay=1e-3, exclude=HEAD),
    ),
    "srigl": (
        "SRigL 90 %",
        lambda model, steps: train.srigl_(model, 0.9, steps=steps * 3 // 4, interval=10, exclude=HEAD),
    ),
}


@dataclass
class Run:
    """One network, the optimiser that changes it, and what was measured of it."""

    title: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    times: list[float] = field(default_factory=list)

    def step(self, x: Tensor, labels: Tensor) -> None:
        begin = time.perf_counter()
        loss = nn.functional.cross_entropy(self.model(x), labels)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        self.times.append(1e3 * (time.perf_counter() - begin))

    def held(self) -> int:
        """Bytes that last from step to step: parameters, gradients, optimiser's state, operands, masks."""
        tensors: list[Tensor] = [*self.model.buffers()]
        for parameter in self.model.parameters():
            tensors += [parameter, *([] if parameter.grad is None else [parameter.grad])]
            tensors += [t for t in self.optimizer.state[parameter].values() if isinstance(t, Tensor)]
        for layer in self.model.modules():
            for value in vars(layer).values():
                for part in value if isinstance(value, tuple) else (value,):
                    tensors += part.tensors().values() if isinstance(part, Nm) else []
                    tensors += [part] if isinstance(part, Tensor) else []
        return sum(t.nbytes for t in {t.data_ptr(): t for t in tensors}.values())


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def started(name: str, width: int, seed: int, steps: int, lr: float) -> Run:
    title, recipe = RECIPES[name]
    model = network(width, seed)
    made = recipe(model, steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    if made is not None:
        made.attach(optimizer)
    return Run(title, model, optimizer)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    return 100 * (model(x).argmax(1) == labels).float().mean().item()


def weight_bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def one_row(model: nn.Module, x: Tensor) -> float:
    """Least microseconds of a forward pass of one row."""
    times = []
    with torch.inference_mode():
        for _ in range(300):
            begin = time.perf_counter()
            model(x[:1])
            times.append(1e6 * (time.perf_counter() - begin))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["dense", "sr_ste", "srigl"])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()

    digits = load_digits()
    x, labels = torch.tensor(digits.data / 16 - 0.3, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train_at, test_at = order[len(x) // 5 :], order[: len(x) // 5]
    steps = args.epochs * (len(train_at) // args.batch)

    scores: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        runs = [started(name, args.width, seed, steps, args.lr) for name in args.recipes]
        shuffle = torch.Generator().manual_seed(seed)
        with tqdm(total=steps, desc=f"seed {seed}", unit="step", dynamic_ncols=True) as bar:
            for _ in range(args.epochs):
                shuffled = train_at[torch.randperm(len(train_at), generator=shuffle)]
                for batch in shuffled.split(args.batch)[: len(train_at) // args.batch]:
                    for run in runs:
                        run.step(x[batch], labels[batch])
                    bar.update()
        for run in runs:
            scores.setdefault(run.title, []).append(accuracy(run.model, x[test_at], labels[test_at]))
            times.setdefault(run.title, []).extend(run.times)

    table = Table(title=f"digits, 64-{args.width}-{args.width}-10, batch {args.batch}, {steps} steps")
    for column in (
        "",
        "accuracy %",
        "of seeds",
        "ms/step",
        "least",
        "training MB",
        "served MB",
        "one row us",
    ):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for run in runs:
        served = train.finish_(copy.deepcopy(run.model)).eval()
        table.add_row(
            run.title,
            f"{statistics.mean(scores[run.title]):.1f}",
            f"{min(scores[run.title]):.1f}-{max(scores[run.title]):.1f}",
            f"{statistics.median(times[run.title]):.1f}",
            f"{min(times[run.title]):.1f}",
            f"{run.held() / 1e6:.1f}",
            f"{weight_bytes(served) / 1e6:.2f}",
            f"{one_row(served, x[test_at]):.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
