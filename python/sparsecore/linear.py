# SPDX-License-Identifier: Apache-2.0
"""One linear for every weight format."""

import torch
from torch import Tensor

from .formats import Bitmap, Csr
from .nm import Nm
from .ops.spmm_nm_fused import finished


def linear(
    x: Tensor,
    weight: Tensor | Csr | Bitmap | Nm,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``y = activation(x @ weight.T + bias) + residual``, for any weight format.

    Args:
        x: ``[..., in_features]`` float32, bfloat16 or float16, any leading shape and strides.
        weight: ``[out_features, in_features]``: a Csr, a Bitmap, an Nm or a dense tensor.
        bias: ``[out_features]`` of x's dtype.
        activation: "relu", "gelu", "gelu_tanh" or "silu", as torch.nn.functional has them; None or "none"
            leaves torch.nn.functional.linear(x, weight, bias).
        residual: ``[..., out_features]`` of x's dtype, added last. An Nm on a CPU takes both in the pass that
            stores y, the others in passes of their own.
        out: ``[..., out_features]`` of x's dtype, contiguous, overlapping no other argument.

    Returns:
        ``[..., out_features]`` of x's dtype.

    Raises:
        ValueError: x's last dimension is not in_features; an activation that is not there; residual's shape.
        TypeError: weight is of no known format.
        RuntimeError: from the op, naming the argument.
    """
    if isinstance(weight, Nm):
        return weight.linear(x, bias, out, activation, residual)
    if activation is not None or residual is not None:
        y = finished(linear(x, weight, bias), activation, residual)
    elif isinstance(weight, (Csr, Bitmap)):
        return weight.linear(x, bias, out)
    elif not isinstance(weight, Tensor):
        raise TypeError(f"weight: must be a Tensor, Csr, Bitmap or Nm, not {type(weight).__name__}")
    elif weight.layout is torch.sparse_csr:
        return Csr.from_torch(weight).linear(x, bias, out)
    else:
        y = torch.nn.functional.linear(x, weight, bias)
    return y if out is None else out.copy_(y)
