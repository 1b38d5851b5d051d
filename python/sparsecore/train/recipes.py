# SPDX-License-Identifier: Apache-2.0
"""Recipes that train N:M weights: each replaces a model's linear layers and follows its optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecore.nn.convert import selected
from sparsecore.nn.linear import SparseLinear
from sparsecore.train.fan_in import FanInLinear
from sparsecore.train.linear import NmLinear

Patterns = str | Sequence[str] | None
SHAPES = ("exponential", "linear")


class Recipe:
    """What a recipe does beside each step of the optimiser that it is attached to.

    Attributes:
        layers: the layers that it replaced, by name.
        step: optimiser steps that it has seen.
    """

    def __init__(self, layers: dict[str, Any], interval: int) -> None:
        self.layers = layers
        self.interval = interval
        self.step = 0
        self.optimizer: Optimizer | None = None

    def attach(self, optimizer: Optimizer) -> Recipe:
        """Follow every ``optimizer.step()`` from now on; the training loop stays as it is.

        Raises:
            ValueError: optimizer: does not hold a layer's weight (it was made before the recipe), or the
                recipe follows another.
        """
        if self.optimizer is not None:
            raise ValueError("optimizer: this recipe is attached already")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self.layers.items():
            if id(self.parameter(layer)) not in held:
                raise ValueError(
                    f"optimizer: does not hold the weight of layer {name!r}; make it after the recipe"
                )
        self.optimizer = optimizer
        optimizer.register_step_pre_hook(lambda *_: self._before())
        optimizer.register_step_post_hook(lambda *_: self._after())
        return self

    @staticmethod
    def parameter(layer: nn.Module) -> Any:
        """The weight of a layer that the optimiser changes."""
        made: Any = layer.weight if isinstance(layer, NmLinear) else layer.values
        return made

    @torch.no_grad()
    def _before(self) -> None:
        for layer in self.layers.values():
            if self.parameter(layer).grad is not None:
                self.before(layer)

    @torch.no_grad()
    def _after(self) -> None:
        self.step += 1
        for layer in self.layers.values():
            self.after(layer)
        for layer in self.layers.values():
            if isinstance(layer, NmLinear) and self.step % self.interval == 0:
                layer.refresh()

    def before(self, layer: Any) -> None:
        """Gradients are there, the weights are about to change."""

    def after(self, layer: Any) -> None:
        """The weights have changed; masks have not yet."""

    def state_dict(self) -> dict[str, Any]:
        """The step, and the masks of every layer that has some."""
        masks = {n: list(layer.masks()) for n, layer in self.layers.items() if isinstance(layer, NmLinear)}
        return {"step": self.step, "masks": masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; the model's own state comes first."""
        self.step = int(state["step"])
        for name, masks in state["masks"].items():
            self.layers[name].set_masks(masks)


class _Decayed(Recipe):
    def __init__(self, layers: dict[str, NmLinear], interval: int, decay: float) -> None:
        super().__init__(layers, interval)
        self.decay = decay

    def before(self, layer: NmLinear) -> None:
        if self.decay:
            weight = layer.weight.detach()
            _grad(layer).add_(weight - layer.operands()[0].to_dense(), alpha=self.decay)


def sr_ste_(
    model: nn.Module,
    n: int = 2,
    m: int = 4,
    *,
    decay: float = 2e-4,
    interval: int = 1,
    transposable: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Recipe:
    """SR-STE: masks by magnitude, straight-through gradients, and decay of what is left out.

    ``W -= lr * (dL/dW~ + decay * (W - W~))``, W~ = mask * W, by whatever optimiser follows. x's gradient is
    that of W~; with ``transposable`` an N:M product too.

    Args:
        model: changed in place: its nn.Linear become :class:`NmLinear` with the same parameters. One whose
            weight another module shares stays.
        n, m: see :class:`NmLinear`.
        decay: lambda_W of the paper.
        interval: optimiser steps from one choice of masks to the next.
        transposable: one mask for both directions, see :func:`transposable_mask`; choose it seldom.
        include, exclude: glob patterns of dotted module names; all, but for the excluded, by default.

    Returns:
        The recipe: ``attach`` an optimiser to it.

    Raises:
        ValueError: naming the argument.

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021.
    """
    backward = "transposable" if transposable else "masked"
    return _Decayed(_nm_layers(model, n, m, backward, interval, include, exclude), interval, decay)


def bdwp_(
    model: nn.Module,
    n: int = 2,
    m: int = 8,
    *,
    decay: float = 2e-4,
    interval: int = 1,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Recipe:
    """BDWP: weights pruned N:M along the input for y and, on their own, along the output for x's gradient.

    Both products are N:M, the weight's gradient is dense and straight-through, with the decay of
    :func:`sr_ste_` on what the forward product leaves out. Arguments, result and errors are those of
    :func:`sr_ste_`.

    Source: Fang et al., "Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow
    Co-Design", 2023."""
    return _Decayed(_nm_layers(model, n, m, "bidirectional", interval, include, exclude), interval, decay)


class _Flow(Recipe):
    """leak = flow(step), then exactly 0."""

    def __init__(self, layers: dict[str, NmLinear], interval: int, flow: Callable[[int], float]) -> None:
        super().__init__(layers, interval)
        self.flow = flow
        for layer in layers.values():
            layer.leak = flow(0)

    def before(self, layer: NmLinear) -> None:
        if layer.leak == 0.0:  # the product of W * mask alone: its gradient reaches nothing else
            _grad(layer).mul_(layer.mask)

    def after(self, layer: NmLinear) -> None:
        layer.leak = self.flow(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for layer in self.layers.values():
            layer.leak = self.flow(self.step)


def decaying_flow_(
    model: nn.Module,
    n: int = 1,
    m: int = 8,
    *,
    steps: int,
    shape: str = "exponential",
    interval: int = 1,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Recipe:
    """Decaying gradient flow, for high sparsity: weights that are left out count beta of themselves, and so
    do their gradients, while beta falls from 1 to 0; W~ = (mask + beta * (1 - mask)) * W, differentiated as
    it stands.

    Until beta is 0, after ``steps``, products are dense; then they are N:M and only what is selected learns.

    Args:
        steps: optimiser steps from beta = 1 to beta = 0, such as three quarters of all.
        shape: "exponential", beta = 0.001^(t / steps), or "linear", 1 - t / steps.

    The other arguments, result and errors are those of :func:`sr_ste_`.

    Source: Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers",
    2024 (there MdGf)."""
    if steps < 1:
        raise ValueError(f"steps: {steps} is not at least 1")
    if shape not in SHAPES:
        raise ValueError(f"shape: {shape!r} is none of {', '.join(SHAPES)}")

    def flow(t: int) -> float:
        if t >= steps:
            return 0.0
        return 1e-3 ** (t / steps) if shape == "exponential" else 1.0 - t / steps

    return _Flow(_nm_layers(model, n, m, "masked", interval, include, exclude), interval, flow)


class _Cast(_Flow):
    def __init__(self, layers: dict[str, NmLinear], interval: int, steps: int, decay: float) -> None:
        super().__init__(layers, interval, lambda t: float(t < steps))
        self.decay, self.warmup = decay, max(1, steps // 2)

    def after(self, layer: NmLinear) -> None:
        if layer.leak:
            assert self.optimizer is not None
            lr, scale = _adam_scale(self.optimizer, layer.weight)
            reach = lr * self.decay * min(1.0, self.step / self.warmup)
            weight = layer.weight.detach()
            shrunk = weight.sign() * (weight.abs() - reach / scale).clamp_min(0)
            weight.copy_(torch.where(layer.mask, weight, shrunk))
        super().after(layer)


def cast_(
    model: nn.Module,
    n: int = 2,
    m: int = 4,
    *,
    steps: int,
    decay: float = 1e-4,
    interval: int = 10,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Recipe:
    """CAST's adaptive decay: products stay dense and smooth while L1 decay takes what is not selected to 0.

    After each step of an Adam, ``W -= lr * lambda(t) / (sqrt(v) + eps) * sign(W)`` where the mask is 0, not
    beyond 0: divided as Adam divides gradients, so that it is the same share of them in every layer, but in
    no moment of them. lambda rises to ``decay`` in the first half of ``steps``; after ``steps`` products are
    N:M and what is selected goes on learning. The paper's weight scaling and distillation are not part of it.

    Args:
        steps: optimiser steps until products are N:M.
        decay: the largest lambda, in units of the loss's gradients.
        interval: optimiser steps from one choice of masks to the next.

    The other arguments, result and errors are those of :func:`sr_ste_`; a step by an optimiser without
    ``exp_avg_sq`` is a ValueError.

    Source: Huang et al., "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for
    Large Language Models", 2025."""
    if steps < 1:
        raise ValueError(f"steps: {steps} is not at least 1")
    return _Cast(_nm_layers(model, n, m, "masked", interval, include, exclude), interval, steps, decay)


def _grad(layer: NmLinear) -> Tensor:
    assert layer.weight.grad is not None
    return layer.weight.grad


def _adam_scale(optimizer: Optimizer, weight: Tensor) -> tuple[float, Tensor]:
    """lr and sqrt(v) + eps, v corrected for its start, as this optimiser's last step had them."""
    state = optimizer.state[weight]
    if "exp_avg_sq" not in state:
        raise ValueError(f"optimizer: {type(optimizer).__name__} keeps no exp_avg_sq; use an Adam")
    group = next(g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return float(group["lr"]), corrected.sqrt_().add_(group["eps"])


class _Srigl(Recipe):
    def __init__(
        self, layers: dict[str, FanInLinear], interval: int, steps: int, drop: float, salient: float
    ) -> None:
        super().__init__(layers, interval)
        self.steps, self.drop, self.salient = steps, drop, salient
        for layer in layers.values():
            layer.watch = self._due()

    def _due(self) -> bool:
        """Whether connections change after the next step."""
        return (self.step + 1) % self.interval == 0 and self.step + 1 < self.steps

    def after(self, layer: FanInLinear) -> None:
        if layer.dense_grad is not None:
            gradient, layer.dense_grad = layer.dense_grad, None
            self._reconnect(layer, gradient)
        layer.watch = self._due()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for layer in self.layers.values():
            layer.watch = self._due()

    def _reconnect(self, layer: FanInLinear, gradient: Tensor) -> None:
        assert self.optimizer is not None
        made = layer.condensed()
        there = torch.zeros(made.shape, dtype=torch.bool, device=gradient.device)
        there.scatter_(1, made.positions.long(), True)
        count = round(self.drop / 2 * (1 + math.cos(math.pi * self.step / self.steps)) * made.nnz)
        magnitude = torch.where(there, made.to_dense().abs(), torch.inf)
        keep = there.flatten().clone()
        keep[magnitude.flatten().topk(count, largest=False).indices] = False
        keep = keep.view_as(there)
        score = gradient.abs()
        grown = torch.zeros_like(there).flatten()
        grown[torch.where(there, -1.0, score).flatten().topk(count).indices] = True
        weighty = (keep | (grown.view_as(there) & ~there)).sum(1)
        alive = weighty >= max(1.0, self.salient * made.n)
        fewest = -(-made.nnz // layer.in_features)  # neurons that hold all weights
        alive[weighty.topk(min(fewest, len(weighty))).indices] = True
        states = [
            t
            for t in self.optimizer.state[layer.values].values()
            if isinstance(t, Tensor) and t.shape == layer.values.shape
        ]
        layer.reconnect_(keep, score, alive, *states)


def srigl_(
    model: nn.Module,
    sparsity: float = 0.9,
    *,
    steps: int,
    interval: int = 100,
    drop: float = 0.3,
    salient: float = 0.3,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Recipe:
    """SRigL: a constant fan-in throughout; connections are dropped and grown, weak neurons ablated.

    Every ``interval`` steps the smallest weights of a layer are dropped, a share of ``drop / 2 * (1 + cos(pi
    * t / steps))`` of them. A neuron of whose fan-in fewer than ``salient`` would be kept, or are among as
    many of the layer's largest gradients of weights that are not there, is ablated, and its weights go to the
    others. Those grow the weights of their largest gradients, from 0, up to the new fan-in. Momentum of a
    weight goes with it.

    Args:
        model: changed in place: its nn.Linear become :class:`FanInLinear`, with new parameters, so make the
            optimiser afterwards.
        sparsity: in [0, 1), of every layer: a fan-in of round((1 - sparsity) * in_features), at least 1.
        steps: optimiser steps until connections stay, such as three quarters of all.
        drop: the share dropped at first.
        salient: gamma_sal of the paper; 0 ablates only neurons without any salient weight.
        interval, include, exclude: as in :func:`sr_ste_`.

    Returns, raises: as :func:`sr_ste_`.

    Source: Lasby et al., "Dynamic Sparse Training with Structured Sparsity", 2024.
    """
    for name, value in (("drop", drop), ("salient", salient)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: {value} is not in [0, 1]")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity: {sparsity} is not in [0, 1)")
    if steps < 1:
        raise ValueError(f"steps: {steps} is not at least 1")
    layers = _replace(
        model,
        lambda layer: FanInLinear(layer, max(1, round((1 - sparsity) * layer.in_features))),
        interval,
        include,
        exclude,
    )
    return _Srigl(layers, interval, steps, drop, salient)


def finish_(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace the layers of a recipe by :class:`sparsecore.nn.SparseLinear` of their N:M weights, to serve.

    Args:
        dtype: of the stored values, as in ``Nm.from_dense``; default the weight's.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, NmLinear):
            made, bias = layer.operands()[0], layer.bias
        elif isinstance(layer, FanInLinear):
            made = layer.weight()
            bias = None if layer.bias is None else layer.bias.detach() * layer.alive
        else:
            continue
        if dtype not in (None, made.dtype):
            kind = (made.n, None if made.positions.dtype is not torch.uint8 else made.m)
            made = type(made).from_dense(made.to_dense(), *kind, dtype=dtype)
        _put(model, name, SparseLinear(made, bias).train(layer.training))
    return model


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    if not name:
        raise ValueError("model: is itself the layer; put it into a module")
    model.set_submodule(name, layer)


def _nm_layers(
    model: nn.Module, n: int, m: int, backward: str, interval: int, include: Patterns, exclude: Patterns
) -> dict[str, NmLinear]:
    return _replace(model, lambda layer: NmLinear(layer, n, m, backward=backward), interval, include, exclude)


def _replace(
    model: nn.Module, make: Callable[[nn.Linear], Any], interval: int, include: Patterns, exclude: Patterns
) -> dict[str, Any]:
    if interval < 1:
        raise ValueError(f"interval: {interval} is not at least 1")
    layers = {}
    for name, layer, alone in selected(model, nn.Linear, include, exclude):
        if alone:
            layers[name] = make(layer).train(layer.training)
            _put(model, name, layers[name])
    if not layers:
        raise ValueError("model: has no nn.Linear that the patterns select")
    return layers
