# SPDX-License-Identifier: Apache-2.0
"""One linear for every weight format."""

import torch
from torch import Tensor

from .formats import Bitmap, Csr
from .nm import Nm


def linear(
    x: Tensor, weight: Tensor | Csr | Bitmap | Nm, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """``y = x @ weight.T + bias``, as torch.nn.functional.linear, for any weight format.

    Args:
        x: ``[..., in_features]`` float32, bfloat16 or float16, any leading shape and strides.
        weight: ``[out_features, in_features]``: a Csr, a Bitmap, an Nm or a dense tensor.
        bias: ``[out_features]`` of x's dtype.
        out: ``[..., out_features]`` of x's dtype, contiguous, overlapping no other argument.

    Returns:
        ``[..., out_features]`` of x's dtype.

    Raises:
        ValueError: x's last dimension is not in_features.
        TypeError: weight is of no known format.
        RuntimeError: from the op, naming the argument.
    """
    if isinstance(weight, (Csr, Bitmap, Nm)):
        return weight.linear(x, bias, out)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: must be a Tensor, Csr, Bitmap or Nm, not {type(weight).__name__}")
    if weight.layout is torch.sparse_csr:
        return Csr.from_torch(weight).linear(x, bias, out)
    y = torch.nn.functional.linear(x, weight, bias)
    return y if out is None else out.copy_(y)
