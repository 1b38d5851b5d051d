# SPDX-License-Identifier: Apache-2.0
"""An N:M weight to a dense one, and what its positions say."""

import torch
from torch import Tensor

from ..arguments import same_device

PACKED = ((1, 2), (2, 4), (4, 8), (6, 8), (1, 4), (2, 8), (1, 8), (1, 16))
COLUMNS = 64  # packed rows are padded to a multiple


def nm_to_dense(values: Tensor, positions: Tensor, scales: Tensor | None, k: int) -> Tensor:
    """W ``[rows, k]``: 0 where nothing is stored.

    Args:
        values: ``[rows, G, n]`` float32, bfloat16, float16, or int8 or float8_e4m3fn with scales.
        positions: uint8 ``[rows, bytes]`` of packed groups, or int16 or int32 ``[rows, n]`` of a constant
            fan-in; see ``sparsecore.Nm``.
        scales: ``[rows]`` float32, with values of 8 bits only: weight = scale of its row * value.
        k: in_features.

    Returns:
        ``[rows, k]`` of values' dtype, float32 when scaled. Differentiable in values and scales.

    Raises:
        RuntimeError: naming the argument, for wrong dtypes, shapes or devices, and for positions that break
            the format's invariants.
    """
    return torch.ops.sparsecore.nm_to_dense(values, positions, scales, k)


def is_mask(n: int, m: int) -> bool:
    """Whether a group's code is a mask of its columns, and not their positions."""
    return m == 8 and n >= 4


def field_bits(m: int) -> int:
    return 1 if m == 2 else 2 if m == 4 else 4


def row_bytes(n: int, m: int, k: int) -> int:
    """Of packed positions."""
    return -(-k // COLUMNS) * (COLUMNS // m * (8 if is_mask(n, m) else n * field_bits(m)) // 8)


def group_size(values: Tensor, positions: Tensor, k: int) -> int:
    """m of n:m, which shapes tell; k for a constant fan-in."""
    if positions.dtype is not torch.uint8:
        return k
    groups, n = values.shape[1:]
    if groups == 0:
        return 2 if n == 1 else 4 if n == 2 else 8
    return -(-k // COLUMNS) * COLUMNS // groups


def columns(values: Tensor, positions: Tensor, k: int) -> Tensor:
    """int64 ``[rows, stored]``: the column of each stored element, some of them past k where k was padded."""
    rows, groups, n = values.shape
    if positions.dtype is not torch.uint8:
        return positions.long()
    m = group_size(values, positions, k)
    if is_mask(n, m):
        shifts = torch.arange(8, device=positions.device)
        bits = (positions[:, :, None] >> shifts & 1).bool()
        found = (~bits).long().sort(dim=-1, stable=True).indices[..., :n]
    else:
        width = field_bits(m)
        shifts = torch.arange(0, 8, width, device=positions.device)
        fields = positions.long()[:, :, None] >> shifts & (m - 1)
        found = fields.flatten(1)[:, : groups * n].reshape(rows, groups, n)
    return (found + m * torch.arange(groups, device=positions.device)[:, None]).flatten(1)


def scatter(values: Tensor, cols: Tensor, k: int) -> Tensor:
    """``[rows, k]`` of values ``[rows, stored]``; a column past k is dropped."""
    width = max(k, int(-(-k // COLUMNS) * COLUMNS))
    dense = values.new_zeros(values.shape[0], width)
    return dense.scatter(1, cols, values)[:, :k]


def reference(values: Tensor, positions: Tensor, scales: Tensor | None, k: int) -> Tensor:
    """The same in torch's operations, on any device."""
    flat = values.flatten(1)
    if scales is not None:
        flat = flat.float() * scales[:, None]
    return scatter(flat, columns(values, positions, k), k).contiguous()


@torch.library.register_fake("sparsecore::nm_to_dense")
def _(values, positions, scales, k):
    same_device(values=values, positions=positions, scales=scales)
    return values.new_empty(values.shape[0], k, dtype=values.dtype if scales is None else torch.float32)


def _setup(ctx, inputs, output):
    values, positions, scales, ctx.k = inputs
    ctx.save_for_backward(values, positions, scales)


def gathered(dense: Tensor, values: Tensor, positions: Tensor, k: int) -> Tensor:
    """A dense gradient ``[rows, k]`` at the stored elements, of values' shape; 0 past k."""
    padded = torch.nn.functional.pad(dense, (0, -k % COLUMNS))
    return padded.gather(1, columns(values, positions, k)).view(values.shape)


def _backward(ctx, grad):
    values, positions, scales = ctx.saved_tensors
    grad_values = grad_scales = None
    if ctx.needs_input_grad[0]:
        grad_values = gathered(grad, values, positions, ctx.k)
    if ctx.needs_input_grad[2]:
        grad_scales = (grad * nm_to_dense(values, positions, torch.ones_like(scales), ctx.k)).sum(1)
    return grad_values, None, grad_scales, None


torch.library.register_autograd("sparsecore::nm_to_dense", _backward, setup_context=_setup)
