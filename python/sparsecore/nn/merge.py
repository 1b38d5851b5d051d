# SPDX-License-Identifier: Apache-2.0
"""One product for layers that are given the same x: fewer calls, each with more to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.linear import linear
from sparsecore.nn.linear import SparseLinear

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that Llama, Mistral, Qwen, SmolLM and others of transformers have."""


class Siblings:
    """The weights of some layers under one another.

    The first one's call makes everyone's y, which the others take if theirs is the same x, and the last one
    lets go. Any other order or x gives the same, by more work.
    """

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weights: list[Any] = [layer.weight for layer in layers]
        self.weight = type(weights[0]).stack(weights)
        self.bias = None
        if any(layer.bias is not None for layer in layers):
            like = next(layer.bias for layer in layers if layer.bias is not None)
            self.bias = torch.cat(
                [like.new_zeros(m.out_features) if m.bias is None else m.bias for m in layers]
            )
        self.made: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def __call__(self, place: int, x: Tensor) -> Tensor:
        made = self.made
        if place == 0 or made is None or made[0] is not x:
            made = x, linear(x, self.weight, self.bias).split(self.sizes, dim=-1)
        self.made = None if place == len(self.sizes) - 1 else made
        return made[1][place]


def merge_(model: nn.Module, siblings: Sequence[Sequence[str]] = SIBLINGS) -> list[str]:
    """Let sibling layers share one product, in place, for inference.

    Where a module has SparseLinear children of all the names of a group, with weights of one format, dtype
    and number of columns, their weights are laid under one another, and the first child's call computes for
    all. State dict, names and memory stay as they are: the children keep views. ``.to(...)`` and
    ``load_state_dict`` part them again.

    Args:
        model: any module.
        siblings: groups of child names, in the order in which the model calls them. They must be meant for
            the same x: nothing may write to it between the first call and the last.

    Returns:
        Dotted names of the modules whose children were merged, once for each group.

    Raises:
        ValueError: siblings: a group has fewer than two names, or holds weights that train.
    """
    merged = []
    for group in siblings:
        if len(group) < 2:
            raise ValueError(f"siblings: {tuple(group)} are not two names or more")
        for name, module in model.named_modules():
            children = [getattr(module, child, None) for child in group]
            layers = [m for m in children if isinstance(m, SparseLinear) and not isinstance(m.weight, Tensor)]
            if len(layers) < len(group) or len(set(layers)) < len(group):
                continue
            if any(p.requires_grad for layer in layers for p in layer.parameters()):
                raise ValueError(f"siblings: {name} has weights that train")
            try:
                shared = Siblings(layers)
            except ValueError:
                continue  # not alike
            row = 0
            for place, layer in enumerate(layers):
                own = shared.weight.rows(row, row + layer.out_features)
                layer.share(shared, place, own)
                row += layer.out_features
            merged.append(name)
    return merged
