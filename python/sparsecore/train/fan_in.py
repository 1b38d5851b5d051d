# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose neurons have equally many weights, and of which nothing else is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsecore.formats import Csr
from sparsecore.nm import Nm
from sparsecore.train.linear import as_rows, stamp


class FanInLinear(nn.Module):
    """``y = x @ W.T + bias`` of a constant fan-in: condensed values and their columns, and no dense weight.

    The forward product is ``spmm_nm`` of the condensed weight; x's gradient is ``spmm_csr`` of its transpose,
    whose pattern is made when connections change. The values' gradient is taken from the dense ``grad.T @
    x``, which is needed whole where connections are to grow. An ablated neuron has no weights and is 0, its
    bias too.

    Connections are random at first and values those of ``layer`` there times sqrt(in_features / fan_in),
    which keeps the variance of y as it was drawn (Evci et al., "Gradient Flow in Sparse Neural Networks and
    How Lottery Tickets Win", 2022).

    Args:
        layer: nn.Linear that gives sizes, values, bias and dtype: float32, bfloat16 or float16.
        fan_in: weights of a neuron, in [1, in_features].

    Attributes:
        values: parameter ``[capacity]``, capacity = out_features * fan_in: neuron by neuron, in rising order
            of column. The neurons that remain share the weights of those that are ablated, and what does not
            divide lies unused at the end; so sizes never change, nor do those of an optimiser's state.
        positions: int16 or int32 ``[capacity]``, columns of values.
        alive: bool ``[out_features]``.
        watch: gather ``dense_grad`` in the next backward passes.
        dense_grad: ``[neurons, in_features]``, the gradient of every weight, stored or not; None when not
            asked for.

    Raises:
        ValueError: naming the argument.
    """

    positions: Tensor
    alive: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, fan_in: int) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer: {type(layer).__name__} is not an nn.Linear")
        if not 1 <= fan_in <= layer.in_features:
            raise ValueError(f"fan_in: {fan_in} is not in [1, in_features = {layer.in_features}]")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        self.bias = layer.bias
        self.watch = False
        self.dense_grad: Tensor | None = None
        self._stamp: tuple[int, ...] = ()
        mask = torch.rand_like(weight, dtype=torch.float32).argsort(1) < fan_in
        made = Nm.from_dense(weight * (self.in_features / fan_in) ** 0.5, fan_in, mask=mask)
        self.values = nn.Parameter(made.values.flatten())
        self.register_buffer("positions", made.positions.flatten())
        self.register_buffer("alive", torch.ones(self.out_features, dtype=torch.bool, device=weight.device))

    def _look(self) -> None:
        """What follows from positions and alive: neurons, fan-in, the transpose's pattern."""
        now = stamp(self.positions, self.alive)
        if now == self._stamp:
            return
        neurons = int(self.alive.sum())
        self._neurons = neurons
        self._fan_in = min(self.in_features, self.values.numel() // max(neurons, 1))
        self._alive_rows = self.alive.nonzero()[:, 0] if neurons < self.out_features else None
        columns = self.positions[: neurons * self._fan_in].long()
        self._order = columns.argsort(stable=True)
        counts = torch.bincount(columns, minlength=self.in_features)
        self._crow = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        self._rows = (self._order // max(self._fan_in, 1)).int()
        self._stamp = now

    @property
    def fan_in(self) -> int:
        """Weights of a neuron that is alive."""
        self._look()
        return self._fan_in

    @property
    def neurons(self) -> int:
        """How many are alive."""
        self._look()
        return self._neurons

    def condensed(self) -> Nm:
        """The weight of the neurons that are alive."""
        self._look()
        used = self._neurons * self._fan_in
        return Nm(
            self.values.detach()[:used].view(self._neurons, 1, self._fan_in),
            self.positions[:used].view(self._neurons, self._fan_in),
            (self._neurons, self.in_features),
        )

    def transposed(self) -> Csr:
        """Its transpose ``[in_features, neurons]``."""
        self._look()
        return Csr(
            self._crow, self._rows, self.values.detach()[self._order], (self.in_features, self._neurons)
        )

    def weight(self) -> Nm:
        """The whole weight ``[out_features, in_features]``; an ablated neuron's values are 0."""
        made = self.condensed()
        rows = self.alive.nonzero()[:, 0]
        values = made.values.new_zeros(self.out_features, 1, made.n)
        first = torch.arange(made.n, dtype=self.positions.dtype, device=values.device)
        positions = first.repeat(self.out_features, 1)
        return Nm(
            values.index_copy_(0, rows, made.values),
            positions.index_copy_(0, rows, made.positions),
            (self.out_features, self.in_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Args: x floating point [..., in_features]. Returns: [..., out_features], x's dtype."""
        self._look()
        rows, bias = self._alive_rows, self.bias
        y: Tensor = _Product.apply(x, self.values, bias if bias is None or rows is None else bias[rows], self)
        if rows is None:
            return y
        return y.new_zeros(*y.shape[:-1], self.out_features).index_copy(-1, rows, y)

    def _grew(self, outer: Tensor) -> None:
        if self.watch:
            self.dense_grad = outer if self.dense_grad is None else self.dense_grad + outer

    @torch.no_grad()
    def reconnect_(self, keep: Tensor, score: Tensor, alive: Tensor, *states: Tensor) -> None:
        """Let the neurons of ``alive`` have the weights of ``keep`` and, up to the new fan-in, those of
        largest score.

        Args:
            keep: bool ``[neurons, in_features]``, a subset of the weights that there are.
            score: ``[neurons, in_features]``, not negative.
            alive: bool ``[neurons]``, which of the neurons that are alive stay so.
            states: tensors like values, of an optimiser, to carry along; a weight that is new has 0 there, as
                its value is.
        """
        made = self.condensed()
        neurons = int(alive.sum())
        fan_in = min(self.in_features, self.values.numel() // neurons)
        chosen = torch.where(keep, torch.inf, score.to(torch.float32))[alive].topk(fan_in, 1).indices
        columns = chosen.sort(1).values
        for tensor in (self.values.detach(), *states):
            old = Nm(
                tensor[: made.values.numel()].view_as(made.values), made.positions, made.shape
            ).to_dense()
            tensor.zero_()
            tensor[: columns.numel()] = (old * keep)[alive].gather(1, columns).flatten()
        self.positions.zero_()
        self.positions[: columns.numel()] = columns.flatten().to(self.positions.dtype)
        self.alive[self.alive.nonzero()[:, 0][~alive]] = False

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, fan_in={self.fan_in}, neurons={self.neurons}"
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: FanInLinear) -> Tensor:
        made = layer.condensed()
        ctx.save_for_backward(x, made.positions)
        ctx.layer, ctx.capacity, ctx.dtype = layer, values.numel(), values.dtype
        ctx.back = layer.transposed() if ctx.needs_input_grad[0] else None
        return made.linear(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, positions = ctx.saved_tensors
        grad_x = grad_values = grad_bias = None
        if ctx.back is not None:
            grad_x = ctx.back.linear(grad)
        if ctx.needs_input_grad[1]:
            outer = (as_rows(grad).t() @ as_rows(x)).to(ctx.dtype)
            ctx.layer._grew(outer)
            grad_values = outer.new_zeros(ctx.capacity)
            grad_values[: positions.numel()] = outer.gather(1, positions.long()).flatten()
        if ctx.needs_input_grad[2]:
            grad_bias = as_rows(grad).sum(0)
        return grad_x, grad_values, grad_bias, None
