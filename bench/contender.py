# SPDX-License-Identifier: Apache-2.0
"""Who computes y = x @ W.T in a run: our ops and dense torch; the sparse peers are in `peers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from sparsecore import Nm, formats, testing
from torch import Tensor
from torch.nn import functional as F

from . import cases, machine, timing
from .cases import Case, f32


@dataclass
class Contender:
    name: str
    kind: str  # "ours", "dense" or "peer"
    dtype: torch.dtype  # of x
    value: torch.dtype  # of the weight
    styles: dict[str, Callable[[], Any]]  # ways to call it
    result: Callable[[Any], Tensor]  # what a call returned, as y [m, n]
    nbytes: int  # that must move at least once
    flops: int
    own_threads: bool = False  # beside torch's
    style: str = ""
    kernel: str = ""
    roundings: int = 1
    threads: int | None = None  # where it can't use the run's
    neighbours: timing.Neighbours | None = None
    others: list[Contender] = field(default_factory=list)  # the same over other copies of W
    cold: bool = False  # each call meets the next copy
    turn: int = 0

    def call(self) -> Any:
        if not self.cold:
            return self.styles[self.style]()
        self.turn = (self.turn + 1) % (1 + len(self.others))
        return (self.others[self.turn - 1] if self.turn else self).styles[self.style]()

    def sample(self) -> tuple[float, bool]:
        return timing.sample(self.call)

    def settle(self) -> Tensor:
        """Keeps the fastest style; returns y."""
        self.cold = False
        seconds, y = {}, None
        for style, call in self.styles.items():
            y = call()
            if len(self.styles) > 1:
                seconds[style] = min(timing.sample(call)[0] for _ in range(3))
        self.style = min(seconds, key=seconds.__getitem__, default=next(iter(self.styles)))
        self.styles = {self.style: self.styles[self.style]}
        if self.kind == "ours":
            self.kernel = testing.last_kernel()
        return self.result(y if len(seconds) < 2 else self.call())


def _bound_to_format(inputs: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The call of sparsecore.linear where these are the tensors of a weight format."""
    tensors = {name: t for name, t in inputs.items() if name not in ("x", "bias")}
    for kind in (formats.Csr, formats.Bitmap, Nm):
        if set(tensors) == set(kind.names):
            k = inputs["x"].shape[-1]
            offsets = tensors.get("crow_indices", tensors.get("row_offsets"))
            n = tensors["values"].shape[0] if offsets is None else offsets.numel() - 1
            weight = kind(**tensors, shape=(n, k))
            return lambda x: weight.linear(x, inputs["bias"])
    return None


_x = lru_cache(maxsize=4)(Case.x)


@dataclass
class Weight:
    """One W and everybody's copy of it, each made when it is first asked for."""

    case: Case  # float32, m = 1
    _inputs: dict[tuple[str, Case], dict[str, Any]] = field(default_factory=dict)
    _exact: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _dense: dict[torch.dtype, Tensor] = field(default_factory=dict)
    csr: formats.Csr = field(init=False)

    def __post_init__(self) -> None:
        self._dense[f32] = self.case.dense()
        self._exact[f32] = self._dense[f32].double()
        self.csr = formats.Csr.from_dense(self._dense[f32])

    def dense(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._dense:
            self._dense[dtype] = self._dense[f32].to(dtype)
            self._exact.setdefault(dtype, self._dense[dtype].double())
        return self._dense[dtype]

    def exact(self, value: torch.dtype) -> Tensor:
        return self._exact[value]

    def inputs(self, op: str, case: Case) -> dict[str, Any]:
        """Of `op` for this case; the weight's part is made once for all rows of x."""
        key = op, replace(case, m=1, dtype=f32)
        if key not in self._inputs:
            inputs = cases.of(op).inputs(key[1])
            exact = cases.of(op).weight(inputs)
            known = self._exact.setdefault(case.value, exact)
            if not torch.equal(exact, known):
                raise ValueError(f"{op}: {case.name}: its weight is not that of the others with {case.value}")
            self._inputs[key] = inputs
        return {**self._inputs[key], "x": _x(case), "bias": case.bias_or_none()}


@dataclass
class Copy:
    """A Weight's tensors at other addresses."""

    weight: Weight

    @property
    def csr(self) -> formats.Csr:
        return replace(
            self.weight.csr, **{name: getattr(self.weight.csr, name).clone() for name in formats.Csr.names}
        )

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.weight.dense(dtype).clone()

    def inputs(self, op: str, case: Case) -> dict[str, Any]:
        found = self.weight.inputs(op, case)
        return {name: t if t is None or name == "x" else t.clone() for name, t in found.items()}


def with_copies(
    make: Callable[[Weight | Copy], Contender], weight: Weight, case: Case, most: int
) -> Contender:
    """A contender over so many copies of W, at most `most`, that they fill the last cache twice."""
    c = make(weight)
    rows = case.x().numel() // case.k
    of_weight = max(1, c.nbytes - rows * (case.n + case.k) * c.dtype.itemsize)
    count = min(most, 2 * machine.last_cache_bytes() // of_weight + 2)
    c.others = [make(Copy(weight)) for _ in range(count - 1)]
    return c


def ours(weight: Weight | Copy, op: str, case: Case) -> Contender:
    sample, inputs = cases.of(op), weight.inputs(op, case)
    linear = _bound_to_format(inputs)
    call = (lambda: linear(inputs["x"])) if linear else (lambda: cases.function(op)(**inputs))
    return Contender(
        op, "ours", case.dtype, case.value, {"linear": call}, lambda y: y.reshape(-1, case.n),
        sample.nbytes(inputs), sample.flops(inputs), roundings=sample.roundings(inputs),
    )  # fmt: skip


@dataclass
class InCache:
    """The same call with as many rows of W as half of the cores' own caches hold, and with a quarter of them:
    what it would take if all of W lay there, so its instructions."""

    rows: tuple[int, int]
    contenders: tuple[Contender, Contender]

    @classmethod
    def of(cls, op: str, case: Case, nbytes: int, threads: int) -> InCache:
        held = threads * machine.own_cache_bytes() // 2
        most = min(case.n, max(64, held * case.n // max(1, nbytes) // 64 * 64))
        rows = most, max(1, most // 4)
        few = [replace(case, n=n) for n in rows]
        weights = [Weight(replace(c, m=1, dtype=f32, value=f32)) for c in few]
        made = [ours(weight, op, c) for weight, c in zip(weights, few, strict=True)]
        for c in made:
            c.settle()
        return cls(rows, (made[0], made[1]))

    def us(self, times: Sequence[timing.Times], n: int) -> float | None:
        """Of n rows, by the fastest tenths, being a limit; None where the quarter took as long."""
        more, fewer = (t.summary()["p10"] for t in times)
        a_row = (more - fewer) / (self.rows[0] - self.rows[1])
        return more + a_row * (n - self.rows[0]) if more > fewer else None


def dense(weight: Weight | Copy, case: Case, dtype: torch.dtype) -> Contender:
    w, x, bias = weight.dense(dtype), _x(case).to(dtype), case.bias_or_none()
    bias = None if bias is None else bias.to(dtype)
    m = x.numel() // case.k
    return Contender(
        "torch_dense", "dense", dtype, dtype, {"linear": lambda: F.linear(x, w, bias)},
        lambda y: y.reshape(-1, case.n),
        (w.numel() + x.numel() + m * case.n) * w.element_size(), 2 * m * w.numel(),
    )  # fmt: skip
