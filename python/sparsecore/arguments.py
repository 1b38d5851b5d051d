# SPDX-License-Identifier: Apache-2.0
"""What ops ask of their tensor arguments in Python."""

import torch
from torch import Tensor


def same_device(**arguments: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors share a device. One meta tensor is enough to reach a fake."""
    devices = {name: t.device for name, t in arguments.items() if t is not None}
    first, *rest = devices.items()
    for name, device in rest:
        if device != first[1]:
            raise RuntimeError(f"{name}: is on {device}, but {first[0]} is on {first[1]}")


def _needs_grad(arguments: tuple[Tensor | None, ...]) -> bool:
    if torch.is_grad_enabled():
        for t in arguments:
            if t is not None and t.requires_grad:
                return True
    return False


def wants_grad(*arguments: Tensor | None) -> bool:
    """Whether a call must take the op with an autograd formula. The one without saves 10 us of Python a call,
    eager and compiled: dynamo guards what is asked here. An exported graph keeps the formula."""
    return _needs_grad(arguments) or torch.compiler.is_exporting()


def refuse_grad(*arguments: Tensor | None) -> None:
    """Raise RuntimeError if an out= call would lose a gradient, as torch's own ops do."""
    if _needs_grad(arguments):
        raise RuntimeError("out: functions with out=... don't support automatic differentiation")
