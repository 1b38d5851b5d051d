# SPDX-License-Identifier: Apache-2.0
"""Compressed tokens of K or V to dense ones."""

import torch
from torch import Tensor

from ..arguments import same_device


def kv_decompress(bitmask: Tensor, values: Tensor, head_dim: int) -> Tensor:
    """Dense tokens ``[..., head_dim]``, 0 where nothing is stored.

    Args:
        bitmask, values: as ``kv_compress`` gives them, contiguous.
        head_dim: channels of a token.

    Returns:
        ``[..., head_dim]`` of values' dtype. Differentiable in values.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for a token whose bits are
            not as many channels as values has; on CUDA that token is NaN instead.
    """
    return torch.ops.sparsecore.kv_decompress(bitmask, values, head_dim)


def kept(bitmask: Tensor, keep: int, head_dim: int) -> Tensor:
    """int64 ``[..., keep]``: the channels of a token that are stored, rising."""
    bits = (bitmask[..., None] >> torch.arange(8, device=bitmask.device) & 1).flatten(-2)[..., :head_dim]
    return (1 - bits.long()).sort(dim=-1, stable=True).indices[..., :keep]


def reference(bitmask: Tensor, values: Tensor, head_dim: int) -> Tensor:
    """The same in torch's operations, on any device."""
    channels = kept(bitmask, values.shape[-1], head_dim)
    dense = values.new_zeros(*values.shape[:-1], head_dim)
    return dense.scatter(-1, channels, values)


@torch.library.register_fake("sparsecore::kv_decompress")
def _(bitmask, values, head_dim):
    same_device(bitmask=bitmask, values=values)
    return values.new_empty(*values.shape[:-1], head_dim)


def _setup(ctx, inputs, output):
    bitmask, values, ctx.head_dim = inputs
    ctx.keep = values.shape[-1]
    ctx.save_for_backward(bitmask)


def _backward(ctx, grad):
    (bitmask,) = ctx.saved_tensors
    return None, grad.gather(-1, kept(bitmask, ctx.keep, ctx.head_dim)), None


torch.library.register_autograd("sparsecore::kv_decompress", _backward, setup_context=_setup)
