# SPDX-License-Identifier: Apache-2.0
"""nn.Linear with a weight of any format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.formats import Bitmap, Csr
from sparsecore.linear import linear
from sparsecore.nm import Nm
from sparsecore.sparsify import sparsify


class SparseLinear(nn.Module):
    """``y = x @ weight.T + bias`` with a Csr, Bitmap, Nm or dense weight ``[out_features, in_features]``.

    The state dict holds the format's plain tensors under their own names (``values``, ``bitmask``,
    ``row_offsets``, ...; ``weight`` when dense); ``.to(...)``, ``deepcopy`` and ``load_state_dict`` keep
    ``self.weight``, the format made of them, in step. Loading accepts another number of nonzeros.

    Args:
        weight: Csr, Bitmap, Nm or dense floating-point tensor; checked once, here.
        bias: [out_features] or None.
        trainable: the values (not where they are) and the bias become parameters, else buffers.

    Raises:
        ValueError: naming the argument: a broken weight, a bias of another length, values of 8 bits to train.
    """

    weight: Tensor | Csr | Bitmap | Nm
    bias: Tensor | None
    _siblings: Callable[[Tensor], Tensor] | None

    def __init__(
        self, weight: Tensor | Csr | Bitmap | Nm, bias: Tensor | None = None, *, trainable: bool = False
    ) -> None:
        super().__init__()
        if isinstance(weight, Tensor) and (weight.dim() != 2 or not weight.is_floating_point()):
            raise ValueError(f"weight: {weight.dtype} {list(weight.shape)} is not floating point [out, in]")
        self.out_features, self.in_features = (int(size) for size in weight.shape)
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"bias: {list(bias.shape)} is not [{self.out_features}]")
        if trainable and (not weight.dtype.is_floating_point or weight.dtype.itemsize == 1):
            raise ValueError(f"trainable: {weight.dtype} values can't be trained")
        self.dense_itemsize = weight.dtype.itemsize
        """Bytes per element of the dense weight this layer stands for."""
        self._format = None if isinstance(weight, Tensor) else type(weight)
        if not isinstance(weight, Tensor):
            weight.check()
        tensors = {"weight": weight} if isinstance(weight, Tensor) else weight.tensors()
        for name, tensor in tensors.items():
            self._register(name, tensor, trainable and name in ("values", "weight"))
        self._register("bias", bias, trainable)
        self._assemble()

    def _register(self, name: str, tensor: Tensor | None, trainable: bool) -> None:
        if tensor is not None:
            tensor = tensor.detach()
        if trainable and tensor is not None:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _plain(self) -> dict[str, Tensor]:
        held = {**self._parameters, **self._buffers}
        return {name: t for name, t in held.items() if name != "bias" and t is not None}

    def _assemble(self) -> None:
        """Make ``weight`` of the registered tensors: a plain attribute, so forward looks up no buffer."""
        self._siblings = None
        if self._format is not None:
            self.__dict__["weight"] = self._format(
                **self._plain(), shape=(self.out_features, self.in_features)
            )

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        *,
        dtype: torch.dtype | None = None,
        format: str = "auto",
        trainable: bool = False,
    ) -> SparseLinear:
        """The layer's nonzeros as they are now, in ``format`` (see :func:`sparsecore.sparsify`)."""
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer: {type(layer).__name__} is not an nn.Linear")
        weight = sparsify(layer.weight.detach(), dtype=dtype, format=format)
        made = cls(weight, layer.bias, trainable=trainable).train(layer.training)
        made.dense_itemsize = layer.weight.element_size()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Args: x floating point [..., in_features]. Returns: [..., out_features], x's dtype."""
        if self._siblings is not None:
            return self._siblings(x)
        return linear(x, self.weight, self.bias)

    def share(self, product: Callable[[int, Tensor], Tensor], place: int, weight: Csr | Bitmap | Nm) -> None:
        """Leave forward to ``product(place, x)``, whose weight has this one's rows; see :func:`merge_`."""
        self._buffers.update(weight.tensors())
        self._assemble()
        self._siblings = partial(product, place)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        fixed = {name: t for name in ("values", "scales") if (t := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        if "scales" in fixed:
            # No dtype conversion reaches values of 8 bits; scales are float32 by format.
            for name, tensor in fixed.items():
                self._buffers[name] = tensor.to(self._buffers[name].device)  # type: ignore[union-attr]
        self._assemble()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._fit(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._assemble()

    def _fit(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Room for as many nonzeros as are about to be loaded, after a look at all the incoming tensors."""
        names = self._plain()
        incoming = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if self._format is None or len(incoming) < len(names):
            return  # torch reports missing keys
        try:
            self._format.from_tensors(incoming, (self.out_features, self.in_features))
        except ValueError as error:
            raise ValueError(f"state_dict: {prefix.rstrip('.')}: {error}") from error
        for name in {"values", "col_indices", "positions"} & set(names):
            if names[name].shape != incoming[name].shape:
                names[name].data = names[name].new_empty(incoming[name].shape)

    def extra_repr(self) -> str:
        weight = self.weight
        what = (
            "dense"
            if isinstance(weight, Tensor)
            else f"{type(weight).__name__}, density={weight.density:.3f}"
        )
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {what}, {str(weight.dtype).removeprefix('torch.')}"
        )
