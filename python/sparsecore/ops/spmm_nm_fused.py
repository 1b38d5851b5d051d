# SPDX-License-Identifier: Apache-2.0
"""y = activation(x @ W.T + bias) + residual, W with n of every m columns stored: spmm_nm's kernels, one pass
of y."""

import torch
from torch import Tensor
from torch.nn import functional

from ..arguments import same_device
from . import spmm_nm

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


def code(activation: str | None) -> int:
    """Of an activation's name; None is "none".

    Raises:
        ValueError: naming the argument.
    """
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    return ACTIVATIONS.index(name)


def finished(z: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """``activation(z) + residual`` in torch's operations."""
    if residual is not None and residual.shape != z.shape:
        raise ValueError(f"residual: must be {list(z.shape)} as y, not {list(residual.shape)}")
    name = ACTIVATIONS[code(activation)]
    if name == "relu":
        z = functional.relu(z)
    elif name == "silu":
        z = functional.silu(z)
    elif name != "none":
        z = functional.gelu(z, approximate="tanh" if name == "gelu_tanh" else "none")
    return z if residual is None else z + residual


def spmm_nm_fused(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """``y = activation(x @ W.T + bias) + residual`` for an N:M weight.

    Args:
        x, values, positions, scales, bias: see :func:`spmm_nm`.
        residual: ``[..., rows]`` of x's dtype, any strides.
        activation: 0 to 4 for none, relu, gelu, gelu_tanh and silu, as torch.nn.functional has them.

    Returns:
        ``[..., rows]`` of x's dtype: sums, activation and residual in float32, rounded once. The gradient
        makes ``x @ W.T + bias`` once more where the activation's slope depends on it.

    Raises:
        RuntimeError: naming the argument, as spmm_nm does.
    """
    return torch.ops.sparsecore.spmm_nm_fused(x, values, positions, scales, bias, residual, activation)


def reference(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """The same in float64."""
    z = spmm_nm.reference(x, values, positions, scales, bias)
    return finished(z, ACTIVATIONS[activation], None if residual is None else residual.double())


@torch.library.register_fake("sparsecore::_spmm_nm_fused")
@torch.library.register_fake("sparsecore::spmm_nm_fused")
def _(x, values, positions, scales=None, bias=None, residual=None, activation=0):
    same_device(x=x, values=values, positions=positions, scales=scales, bias=bias, residual=residual)
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _setup(ctx, inputs, output):
    x, values, positions, scales, bias, residual, activation = inputs
    ctx.save_for_backward(x, values, positions, scales, bias)
    ctx.activation = ACTIVATIONS[activation]
    ctx.has_residual = residual is not None


def _backward(ctx, grad):
    x, values, positions, scales, bias = ctx.saved_tensors
    needs = [*ctx.needs_input_grad, False, False, False, False]
    g = grad
    if ctx.activation != "none" and any(needs[:5]):
        z = torch.ops.sparsecore._spmm_nm(x, values, positions, scales, bias)
        if ctx.activation == "relu":
            g = torch.ops.aten.threshold_backward(grad, z, 0)
        elif ctx.activation == "silu":
            g = torch.ops.aten.silu_backward(grad, z)
        else:
            approximate = "tanh" if ctx.activation == "gelu_tanh" else "none"
            g = torch.ops.aten.gelu_backward(grad, z, approximate=approximate)
    made = spmm_nm.gradients(x, values, positions, scales, g, needs[:4], bias is not None and needs[4])
    return *made, grad if ctx.has_residual and needs[5] else None, None


torch.library.register_autograd("sparsecore::spmm_nm_fused", _backward, setup_context=_setup)
