# SPDX-License-Identifier: Apache-2.0
"""What a weight op must give for a case, and what is wrong with what it gave."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cases
import torch
from sparsecore import testing

CSRC = Path(__file__).parents[1] / "csrc" / "ops"
LONG_ROW = 500  # stored elements from which the statistical bound is asserted as well


@dataclass(frozen=True)
class Expected:
    inputs: dict
    y: torch.Tensor  # float64
    bound: torch.Tensor
    strict: torch.Tensor  # bound, the statistical one for long rows
    exact: torch.Tensor  # [n] rows with nothing stored
    constant: torch.Tensor  # their value

    def fault(self, y: torch.Tensor) -> str:
        """'' when y is right, else the worst element."""
        x = self.inputs["x"]
        if y.dtype is not x.dtype or y.shape != self.y.shape:
            return f"{y.dtype} {list(y.shape)} instead of {x.dtype} {list(self.y.shape)}"
        error = (y.double() - self.y).abs()
        for name, bound in (("", self.bound), ("statistical ", self.strict)):
            wrong = ~(error <= bound)
            if wrong.any():
                at = tuple(int(i) for i in wrong.nonzero()[0])
                off, allowed = error[at].item(), bound[at].item()
                return (
                    f"y{list(at)} = {y[at].item()!r}, reference {self.y[at].item()!r}: off by {off:.3g},"
                    f" {name}bound {allowed:.3g}; {int(wrong.sum())} of {wrong.numel()} elements"
                )
        if not torch.equal(y[..., self.exact], self.constant.expand(*y.shape[:-1], -1)):
            return "an empty row is not exactly its bias, or zero"
        return ""


@cache
def expected(op: str, case: cases.Case) -> Expected:
    sample = cases.of(op)
    inputs = sample.inputs(case)
    weight, bias = sample.weight(inputs), inputs["bias"]
    y = cases.reference(op, inputs)
    arguments = (inputs["x"], weight, bias, y)
    bound = testing.error_bound(*arguments, extra_roundings=sample.roundings(inputs))
    statistical = testing.error_bound(*arguments, extra_roundings=sample.roundings(inputs), statistical=True)
    stored = (weight != 0).sum(1)
    empty = stored == 0
    constant = bias[empty] if bias is not None else torch.zeros(int(empty.sum()), dtype=inputs["x"].dtype)
    return Expected(inputs, y, bound, torch.where(stored >= LONG_ROW, statistical, bound), empty, constant)


def as_tuple(answer) -> tuple[torch.Tensor, ...]:
    return (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)


def isas(op: str) -> list[str]:
    """ISAs that op has kernel files for, of every processor."""
    return sorted(f.stem.removeprefix(f"{op}_") for f in (CSRC / op).glob(f"{op}_*.cpp"))


def op_isas() -> list[tuple[str, str]]:
    return [(op, isa) for op in cases.ops() for isa in isas(op)]


def report(faults: list[str], ran: int) -> None:
    """Fails with the first few faults; also when nothing ran."""
    assert ran, "no case ran"
    assert not faults, f"{len(faults)} of {ran} wrong:\n" + "\n".join(faults[:8])
