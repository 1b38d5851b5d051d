# SPDX-License-Identifier: Apache-2.0
"""Tokens of K or V to their bits and values in a compressed page."""

import torch
from torch import Tensor

from ..arguments import same_device


def kv_compress(x: Tensor, keep: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Keep the `keep` channels of largest magnitude of every token (the per-token rule of Mustafar, 2025).

    With `weight` the magnitudes are multiplied by it before they are compared; what is stored is x as it is.
    So the sum of ``|q|`` over recent queries of a KV head chooses channels of K by what scores owe to them,
    the paper's output-aware rule. Every token keeps as many channels as any other, for that is what lets the
    format do without offsets. So a threshold could only turn kept values into stored zeros, which save no
    byte and no work; there is none.

    Takes no gradient: what is kept is not smooth in x.

    Args:
        x: ``[..., head_dim]`` float32, bfloat16 or float16, any strides; head_dim in [32, 256], a multiple
            of 8.
        keep: channels of a token, at most head_dim. Of equal magnitudes the lowest channels are kept; NaN
            comes before all numbers.
        weight: float32, contiguous, x's shape without the dimension of tokens, ``[..., head_dim]``: leading
            dimensions may be left out, as ``[kv_heads, head_dim]`` for x ``[batch, kv_heads, tokens,
            head_dim]``. Its sign does not count; products are compared as float32 rounds them.

    Returns:
        bitmask uint8 ``[..., 4 ceil(head_dim / 32)]``, bit j (least significant first) of byte b for channel
        8b + j, and values ``[..., keep]`` of x's dtype, a token's in rising order of channel.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices.
    """
    return torch.ops.sparsecore.kv_compress(x, keep, weight)


def mask_bytes(head_dim: int) -> int:
    """Bytes of a token's bits: whole words of 32 channels."""
    return (head_dim + 31) // 32 * 4


def reference(x: Tensor, keep: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same in torch's operations, on any device."""
    d = x.shape[-1]
    wide = x.float()
    if weight is not None:
        wide = wide * (weight.unsqueeze(-2) if x.dim() > 1 else weight)
    keys = torch.where(wide.isnan(), 1 << 31, wide.abs().view(torch.int32).long())
    # The order of a key and then of the lower channel.
    keys = keys * (d + 1) - torch.arange(d, device=x.device)
    found = keys.topk(keep, -1).indices.sort(-1).values if keep else keys[..., :0]
    taken = torch.zeros(*x.shape[:-1], 8 * mask_bytes(d), dtype=torch.long, device=x.device)
    taken.scatter_(-1, found, 1)
    bits = taken.unflatten(-1, (-1, 8)) << torch.arange(8, device=x.device)
    return bits.sum(-1).to(torch.uint8), x.gather(-1, found)


@torch.library.register_fake("sparsecore::kv_compress")
def _(x, keep, weight=None):
    same_device(x=x, weight=weight)
    lead = x.shape[:-1]
    return x.new_empty(*lead, mask_bytes(x.shape[-1]), dtype=torch.uint8), x.new_empty(*lead, keep)
