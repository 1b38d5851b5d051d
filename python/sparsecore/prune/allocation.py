# SPDX-License-Identifier: Apache-2.0
"""How much each block gives up when the model as a whole must reach one sparsity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecore.prune import calibration


@torch.no_grad()
def owl_sparsity(
    model: nn.Module, tokens: Tensor, sparsity: float, *, outlier: float = 5.0, spread: float = 0.08
) -> dict[str, float]:
    """Sparsity by block, lower where more weights matter far above the average (OWL).

    A block's score is the share of its weights with ``|W_ij| * ||X_j||_2 > outlier * mean``; scores are
    mapped to an interval of width ``2 * spread`` with their mean at ``sparsity``.

    Args:
        model: a dense decoder model, left as it is.
        tokens: int64 [samples, length]; a few samples are enough.
        sparsity: mean over the blocks, in ``[2 * spread, 1 - 2 * spread)``.
        outlier: a multiple of the mean score of the block's weights.
        spread: half the widest difference between two blocks.

    Returns:
        Glob pattern of a block's layers to sparsity, for ``sparsity=`` of the recipes.

    Raises:
        ValueError: naming the argument.

    Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", 2024.
    """
    if not 0.0 <= 2 * spread <= sparsity < 1.0 - 2 * spread:
        raise ValueError(f"spread: {spread} around a sparsity of {sparsity} leaves [0, 1)")
    prefix, blocks = calibration.decoder_blocks(model)
    hidden, rest = calibration.block_inputs(model, tokens, blocks)
    shares = []
    for block, arguments in zip(blocks, rest, strict=True):
        scores: list[Tensor] = []

        def score(layer: nn.Linear, args: tuple[Tensor, ...], scores: list[Tensor] = scores) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            scores.append((layer.weight.float().abs() * x.square().sum(0).sqrt()).flatten())

        handles = [layer.register_forward_pre_hook(score) for layer in calibration.linears(block).values()]
        try:
            hidden = calibration.run_block(block, hidden, arguments)
        finally:
            for handle in handles:
                handle.remove()
        everything = torch.cat(scores)
        shares.append((everything > outlier * everything.mean()).float().mean())
    share = torch.stack(shares).double()
    scaled = (share - share.min()) / (share.max() - share.min()).clamp_min(1e-12) * 2 * spread
    return {
        f"{prefix}.{i}.*": sparsity - deviation
        for i, deviation in enumerate((scaled - scaled.mean()).tolist())
    }
