# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning of a model in place: by magnitude, Wanda, SparseGPT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.progress import bar
from sparsecore.prune import calibration
from sparsecore.prune.checkpoint import Checkpoint, fingerprint
from sparsecore.prune.masks import NM, Sparsity, keep_mask, sparsity_of
from sparsecore.prune.sparsegpt import inverse_factor, refit_matrix_, sparsegpt_matrix_

Plan = Sparsity | Mapping[str, Sparsity]


def magnitude_(model: nn.Module, sparsity: Plan, *, per_row: bool = False) -> nn.Module:
    """Zero the weights of least magnitude in every nn.Linear (Han et al., 2015).

    Args:
        model: changed in place; a tied output embedding is left alone.
        sparsity: see :func:`sparsegpt_`.
        per_row: the same count in every row, instead of over the matrix.

    Returns:
        ``model``.
    """
    tied = _tied_weights(model)
    with torch.no_grad():
        for name, linear in calibration.linears(model).items():
            target = sparsity_of(name, sparsity)
            if target and linear.weight not in tied:
                linear.weight.mul_(keep_mask(linear.weight.abs(), target, per_row=per_row))
    return model


def wanda_(
    model: nn.Module,
    tokens: Tensor,
    sparsity: Plan,
    *,
    head_sparsity: Sparsity = 0.0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> nn.Module:
    """Zero, in every row, the weights of least ``|W_ij| * ||X_j||_2``; the others stay as they are.

    Arguments, result and errors are :func:`sparsegpt_`'s. Source: Sun et al., "A Simple and Effective
    Pruning Approach for Large Language Models", 2023.
    """

    def statistic(x: Tensor) -> Tensor:
        return x.square().sum(0).sqrt_()

    def prune(weight: Tensor, norms: Tensor, target: float | NM) -> Tensor:
        return weight * keep_mask(weight.abs() * norms, target, per_row=True)

    settings = {"method": "wanda", "sparsity": sparsity, "head_sparsity": head_sparsity}
    return _walk(model, tokens, settings, statistic, prune, checkpoint, progress)


def sparsegpt_(
    model: nn.Module,
    tokens: Tensor,
    sparsity: Plan,
    *,
    head_sparsity: Sparsity = 0.0,
    damp: float = 0.01,
    block: int = 128,
    refit: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> nn.Module:
    """Prune the nn.Linear modules of a decoder model with SparseGPT, block after block.

    A block runs once on all calibration samples together; each Linear is pruned at the moment its input
    arrives, so everything after it, inside the block too, is calibrated on pruned predecessors. The widest
    activation of one block, ``samples * length * width`` floats, must fit in memory.

    Args:
        model: a decoder model called as ``model(tokens)``; changed in place.
        tokens: int64 [samples, length], from :func:`calibration_tokens`.
        sparsity: fraction of zeros; or "n:m", n kept of every m along the input; or a mapping from glob
            patterns of module names to either, the first match deciding, no match meaning dense.
        head_sparsity: the same for the output embedding; when not 0, a tied one is untied from the input
            embedding first, which stays dense.
        damp: share of the Hessian's mean diagonal added to its diagonal.
        block: columns per lazy batch of updates.
        refit: conjugate-gradient steps of least squares on the final support, 0 for plain SparseGPT.
        checkpoint: directory where finished blocks are kept; a run with the same arguments, tokens and
            dense weights continues there, with bit-identical results.

    Returns:
        ``model``.

    Raises:
        ValueError: naming the argument: a sparsity out of range, widths not a multiple of m, a model
            without decoder blocks, a checkpoint of another run.

    Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    2023; refit: Meng et al., "ALPS", 2024.
    """

    def statistic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian = x.t() @ x
        return hessian, *inverse_factor(hessian, damp)

    def prune(weight: Tensor, stat: tuple[Tensor, Tensor, Tensor], target: float | NM) -> Tensor:
        hessian, upper, dead = stat
        pruned = sparsegpt_matrix_(weight.clone(), upper, dead, target, block=block)
        return refit_matrix_(pruned, weight, hessian, damp=damp, steps=refit) if refit else pruned

    settings = {"method": "sparsegpt", "sparsity": sparsity, "head_sparsity": head_sparsity}
    settings |= {"damp": damp, "block": block, "refit": refit}
    return _walk(model, tokens, settings, statistic, prune, checkpoint, progress)


@torch.no_grad()
def _walk(
    model: nn.Module,
    tokens: Tensor,
    settings: dict[str, Any],
    statistic: Callable[[Tensor], Any],
    prune: Callable[[Tensor, Any, float | NM], Tensor],
    checkpoint: str | Path | None,
    progress: bool,
) -> nn.Module:
    """Prune blocks in order, then the head; ``statistic`` sees float32 [tokens, k], once per input."""
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or not tokens.numel():
        raise ValueError(f"tokens: {tokens.dtype} {list(tokens.shape)} is not int64 [samples, length]")
    prefix, blocks = calibration.decoder_blocks(model)
    stages = {
        f"{prefix}.{i}": {
            name: (linear, target)
            for name, linear in calibration.linears(block, f"{prefix}.{i}.").items()
            if (target := sparsity_of(name, settings["sparsity"]))
        }
        for i, block in enumerate(blocks)
    }
    head_target = sparsity_of("head", settings["head_sparsity"])
    if head_target:
        head_name, head = _untied_head(model)
        stages[head_name] = {head_name: (head, head_target)}

    store = None
    if checkpoint is not None:
        everything = {n: lin for stage in stages.values() for n, (lin, _) in stage.items()}
        store = Checkpoint(checkpoint, fingerprint(settings, tokens, everything))
    pending = [
        s
        for s, plan in stages.items()
        if not (store and store.restore(s, {n: p[0] for n, p in plan.items()}))
    ]
    if not pending:
        return model

    was_training = model.training
    model.eval()
    hidden, rest = calibration.block_inputs(model, tokens, blocks)
    for i, (stage, plan) in enumerate(bar(stages.items(), progress, "prune", "block")):
        worker = _Pruner(plan if stage in pending else {}, statistic, prune)
        if i < len(blocks):
            with worker.attached():
                hidden = calibration.run_block(blocks[i], hidden, rest[i])
        elif stage in pending:
            worker.apply(stage, calibration.head_input(model, tokens, blocks, hidden, rest[-1], head))
        if worker.todo:
            raise ValueError(f"model: {', '.join(worker.todo)} never ran on the calibration tokens")
        if store and stage in pending:
            store.save(stage, {name: linear for name, (linear, _) in plan.items()})
    model.train(was_training)
    return model


class _Pruner:
    """Prunes the Linears of one stage, each when its first input arrives; equal inputs share a statistic."""

    def __init__(
        self,
        plan: Mapping[str, tuple[nn.Linear, float | NM]],
        statistic: Callable[[Tensor], Any],
        prune: Callable[[Tensor, Any, float | NM], Tensor],
    ) -> None:
        self.todo = dict(plan)
        self.statistic, self.prune = statistic, prune
        self.last: tuple[Tensor | None, Any] = (None, None)

    def apply(self, name: str, x: Tensor) -> None:
        if name not in self.todo:
            return
        linear, target = self.todo.pop(name)
        if self.last[0] is not x:
            self.last = (x, self.statistic(x.reshape(-1, x.shape[-1]).float()))
        linear.weight.copy_(self.prune(linear.weight.float(), self.last[1], target))

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            linear.register_forward_pre_hook(lambda _, args, name=name: self.apply(name, args[0]))
            for name, (linear, _) in self.todo.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _output_embedding(model: Any) -> tuple[str, nn.Linear]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in model.named_modules():
        if module is head and isinstance(module, nn.Linear):
            return name, module
    raise ValueError("head_sparsity: the model has no output embedding that is an nn.Linear")


def _tied_weights(model: nn.Module) -> set[Tensor]:
    return {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}


def _untied_head(model: Any) -> tuple[str, nn.Linear]:
    """The output embedding with a weight of its own; the configuration then says so too."""
    name, head = _output_embedding(model)
    if head.weight in _tied_weights(model):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return name, head
