# SPDX-License-Identifier: Apache-2.0
"""Reading untrusted safetensors and JSON: whatever is wrong becomes a ValueError that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

JSON_LIMIT = 64 << 20
"""Bytes. The largest published shard index is below 1 MB."""


@contextmanager
def naming(path: Path, what: str = "") -> Iterator[None]:
    """Put the file, and the entry ``what``, in front of the message of a ValueError from inside."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {what + ': ' if what else ''}{error}") from error


def read_tensors(
    path: Path, wanted: Callable[[str], bool] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, in the file's order, and the header's metadata.

    The file is mapped and its header checked against its length before anything is allocated, so what a
    header claims costs no memory.

    Args:
        wanted: which names to read; all by default.

    Raises:
        ValueError: not a whole safetensors file.
        FileNotFoundError: no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if wanted is None or wanted(name)]
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: not JSON, not an object, too deep, or longer than 64 MiB.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path}: longer than {JSON_LIMIT} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a JSON object is wanted, not {type(data).__name__}")
    return data


def shard_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: those of the shard index, else ``model.safetensors``.

    Raises:
        ValueError: the index names a file outside the directory.
        FileNotFoundError: neither is there.
    """
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: weight_map: a map from tensor names to file names is wanted")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: weight_map: {name!r} is not the name of a safetensors file beside it")
    return [directory / name for name in names]
