# SPDX-License-Identifier: Apache-2.0
"""What each contender computed against float64, before anything is timed."""

from dataclasses import dataclass, field

import torch
from sparsecore import testing
from torch import Tensor

from .cases import Case
from .contender import Contender, Weight


@dataclass
class Checker:
    """Compares with float64 within testing.error_bound, of exactly the operands a contender was given."""

    weight: Weight
    case: Case
    _known: dict[tuple[torch.dtype, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def error(self, c: Contender, y: Tensor) -> float:
        """The largest error in units of the bound: right where it is at most 1."""
        key = c.dtype, c.value
        w = self.weight.exact(c.value)
        if key not in self._known:
            x = self.case.x().reshape(-1, self.case.k).to(c.dtype)
            bias = self.case.bias_or_none()
            bias = None if bias is None else bias.to(c.dtype)
            exact = x.double() @ w.T + (0 if bias is None else bias.double())
            # one rounding more than any op has beside its stored elements
            self._known[key] = exact, testing.error_bound(x, w, bias, exact, extra_roundings=2)
        exact, bound = self._known[key]
        if y.shape != exact.shape or y.dtype is not c.dtype:
            return float("inf")
        error = (y.double() - exact).abs()
        ratio = torch.where(error == 0, 0.0, error / bound).nan_to_num(nan=float("inf"))
        return float(ratio.max())
