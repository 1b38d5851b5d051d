# SPDX-License-Identifier: Apache-2.0
"""Calibration data and the walk over a decoder model: one block at a time, every block fed by pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def calibration_tokens(
    text: str | Path, tokenizer: Any, samples: int = 48, length: int = 512, seed: int = 0
) -> Tensor:
    """Cut ``samples`` disjoint windows of ``length`` tokens out of a text, spread over it at random.

    Args:
        text: the text itself, or a ``Path`` to a UTF-8 file.
        tokenizer: called as ``tokenizer(text)["input_ids"]``.
        seed: decides which windows, and their order.

    Returns:
        int64 [samples, length].

    Raises:
        ValueError: when the text has fewer than ``samples * length`` tokens.
    """
    if isinstance(text, Path):
        text = text.read_text(encoding="utf-8")
    if samples < 1 or length < 1:
        raise ValueError(f"samples, length: {samples} x {length} is not a positive number of tokens")
    ids = torch.as_tensor(tokenizer(text)["input_ids"], dtype=torch.int64).flatten()
    windows = ids.numel() // length
    if windows < samples:
        raise ValueError(f"text: {ids.numel()} tokens, fewer than samples * length = {samples * length}")
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:samples]
    return ids[: windows * length].view(windows, length)[order]


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the ModuleList of one class of block that holds most parameters.

    Raises:
        ValueError: when the model has no such list.
    """
    found = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(block) for block in module}) == 1
        and linears(module)
    ]
    if not found:
        raise ValueError("model: has no ModuleList of decoder blocks with nn.Linear inside")
    _, name, blocks = max(found, key=lambda item: item[0])
    return name, blocks


def linears(module: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """The nn.Linear modules inside, by dotted name."""
    return {
        f"{prefix}{name}": child for name, child in module.named_modules() if isinstance(child, nn.Linear)
    }


class _Stop(Exception):
    """Ends a forward as soon as what was to be recorded has been seen."""


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, tokens: Tensor) -> None:
    """Forward without a KV cache, or as much of it as a hook lets happen."""
    kwargs = {"use_cache": False} if hasattr(model, "config") else {}
    try:
        model(tokens, **kwargs)
    except _Stop:
        pass


def block_inputs(
    model: nn.Module, tokens: Tensor, blocks: nn.ModuleList
) -> tuple[Tensor, list[tuple[Any, Any]]]:
    """What the model feeds its blocks.

    Args:
        tokens: int64 [samples, length], no padding.

    Returns:
        Hidden states [samples, length, width] before the first block, and for every block the other
        positional and keyword arguments, recorded with one sample: they broadcast over samples.
    """
    hidden: list[Tensor] = []
    rest: list[tuple[Any, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest.append((args[1:], kwargs))

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0])
        raise _Stop

    with _hooks() as handles:
        handles += [b.register_forward_pre_hook(record, with_kwargs=True) for b in blocks]
        _run(model, tokens[:1])
    with _hooks() as handles:
        handles.append(blocks[0].register_forward_pre_hook(stop, with_kwargs=True))
        _run(model, tokens)
    return hidden[0].clone(), rest


def run_block(block: nn.Module, hidden: Tensor, rest: tuple[Any, Any]) -> Tensor:
    """One block on all samples at once; blocks that return a tuple carry the hidden states first."""
    out = block(hidden, *rest[0], **rest[1])
    return out[0] if isinstance(out, tuple) else out


def on_input(module: nn.Module, hook: Callable[[Tensor], None]) -> Any:
    """Call ``hook`` with what is about to enter ``module``; weights it changes are used at once."""
    return module.register_forward_pre_hook(lambda _, args: hook(args[0]))


def head_input(
    model: nn.Module,
    tokens: Tensor,
    blocks: nn.ModuleList,
    hidden: Tensor,
    rest: tuple[Any, Any],
    head: nn.Module,
) -> Tensor:
    """What enters ``head`` when the last block returns ``hidden``: the model runs without its blocks."""
    seen: list[Tensor] = []

    def stop(x: Tensor) -> None:
        seen.append(x)
        raise _Stop

    returns_tuple = isinstance(blocks[-1](hidden[:1], *rest[0], **rest[1]), tuple)
    stand_in = (hidden,) if returns_tuple else hidden
    try:
        for block in blocks:
            block.forward = lambda *args, **kwargs: stand_in  # type: ignore[method-assign]
        with _hooks() as handles:
            handles.append(on_input(head, stop))
            _run(model, tokens)
    finally:
        for block in blocks:
            del block.forward
    return seen[0]
