# SPDX-License-Identifier: Apache-2.0
"""A linear layer that learns a dense weight and multiplies by its N:M part, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsecore.nm import Nm
from sparsecore.ops.nm_to_dense import PACKED
from sparsecore.train.masks import transposable_mask

BACKWARDS = ("masked", "bidirectional", "transposable")


def stamp(*tensors: Tensor) -> tuple[int, ...]:
    """Changes when a tensor is written in place, or is another one."""
    return tuple(number for t in tensors for number in (t.data_ptr(), t._version))


def as_rows(t: Tensor) -> Tensor:
    """``[..., k]`` as ``[m, k]``."""
    return t.flatten(0, -2) if t.dim() > 1 else t[None]


class NmLinear(nn.Module):
    """``y = x @ (mask * weight).T + bias`` with the parameters of an nn.Linear, which stay dense.

    The forward product and, but for "masked", that of x's gradient are of N:M weights, ``spmm_nm``. The
    weight's gradient is dense, ``grad.T @ x``, as if nothing were masked (straight-through), so that weights
    which are left out learn too. Masks are the largest magnitudes at the last ``refresh()``; they are no part
    of the state dict, which is the nn.Linear's, and loading one refreshes. A recipe's state has them.

    Args:
        layer: the nn.Linear whose parameters it takes over, float32, bfloat16 or float16.
        n, m: 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8 or 1:16, along the input.
        backward: x's gradient, ``g @ V``. "masked": V = mask * weight, which is the gradient of y, in a dense
            product. "bidirectional": V holds the n largest of every m along the output instead, N:M in this
            direction (BDWP, Fang et al., 2023). "transposable": the mask is N:M both ways and V = mask *
            weight.

    Attributes:
        leak: what is not selected counts this much in the forward product: W * (mask + leak * (1 - mask)).
            Above 0 the product is dense and differentiated as it stands.

    Raises:
        ValueError: naming the argument.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Linear, n: int, m: int, *, backward: str = "masked") -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer: {type(layer).__name__} is not an nn.Linear")
        if (n, m) not in PACKED:
            raise ValueError(f"n: {n}:{m} is none of {', '.join(f'{a}:{b}' for a, b in PACKED)}")
        if backward not in BACKWARDS:
            raise ValueError(f"backward: {backward!r} is none of {', '.join(BACKWARDS)}")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.n, self.m, self.backward = n, m, backward
        self.leak = 0.0
        self.weight, self.bias = layer.weight, layer.bias
        self._forget()

    def _forget(self) -> None:
        self._made: tuple[Nm, ...] = ()
        self._masks: tuple[Tensor, ...] = ()
        self._stamp: tuple[int, ...] = ()

    def _sides(self) -> tuple[Tensor, ...]:
        """What is N:M along its rows: the weight, and where x's gradient is such a product its transpose."""
        weight = self.weight.detach()
        return (weight,) if self.backward == "masked" else (weight, weight.t())

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose the masks from the weight as it is."""
        sides = self._sides()
        if self.backward == "transposable":
            mask = transposable_mask(sides[0].abs(), self.n, self.m)
            self.set_masks((mask, mask.t().contiguous()))
        else:
            self._masks = ()
            self._made = tuple(Nm.from_dense(side, self.n, self.m) for side in sides)
            self._stamp = stamp(self.weight)

    def masks(self) -> tuple[Tensor, ...]:
        """bool: of the weight, and where x's gradient is an N:M product of its transpose."""
        if not self._made:
            self.refresh()
        self._masks = self._masks or tuple(
            Nm(torch.ones_like(made.values), made.positions, made.shape).to_dense() != 0
            for made in self._made
        )
        return self._masks

    @property
    def mask(self) -> Tensor:
        """bool ``[out_features, in_features]``: what the forward product multiplies by."""
        return self.masks()[0]

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Masks as ``masks()`` gave them."""
        self._masks = tuple(masks)
        self._made = tuple(
            Nm.from_dense(side, self.n, self.m, mask=mask)
            for side, mask in zip(self._sides(), self._masks, strict=True)
        )
        self._stamp = stamp(self.weight)

    def operands(self) -> tuple[Nm, Nm | None]:
        """The N:M weight of the forward product, and of x's gradient its transpose; of the weight as it is
        now."""
        if not self._made:
            self.refresh()
        elif self._stamp != stamp(self.weight):
            self.set_masks(self.masks())
        return self._made[0], self._made[1] if len(self._made) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Args: x floating point [..., in_features]. Returns: [..., out_features], x's dtype."""
        if self.leak == 0.0:
            y: Tensor = _Product.apply(x, self.weight, self.bias, *self.operands())
            return y
        weight = self.weight
        if self.leak != 1.0:
            weight = weight * torch.where(self.mask, 1.0, self.leak).to(weight.dtype)
        return nn.functional.linear(x, weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NmLinear:
        super()._apply(fn, recurse)
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.n}:{self.m}, backward={self.backward}"
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ahead: Nm, back: Nm | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ahead, ctx.back = ahead, back
        return ahead.linear(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            back = ctx.back
            grad_x = back.linear(grad) if back is not None else grad @ ctx.ahead.to_dense().to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (as_rows(grad).t() @ as_rows(x)).to(ctx.ahead.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = as_rows(grad).sum(0)
        return grad_x, grad_weight, grad_bias, None, None
