# SPDX-License-Identifier: Apache-2.0
"""The ``sparse-bitmask`` and ``sparse-24-bitmask`` checkpoints of compressed-tensors up to 0.14.

One [R, C] weight ``X`` (keys ``X.shape`` ... or ``X.weight.shape`` ...):

    shape        integer [2]         R, C
    compressed   float [nnz]         stored elements in row order
    bitmask      uint8 [R, ceil(C/8)]  bit j of byte b of row i: column 8 b + j is stored
    row_offsets  integer [R]         where row i begins in ``compressed``

or, 2:4 in every row: no row_offsets, shape [2] or [2, 1], compressed [R, C/2].

The bits decide what is stored: a stored zero of either sign stays a stored element.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsecore.formats import Bitmap
from sparsecore.io.files import naming, read_json, read_tensors, shard_files
from sparsecore.nm import Nm
from sparsecore.ops.bitmap_to_dense import bits

_PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_INTEGERS = (
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_DIRECT = (torch.float32, torch.bfloat16, torch.float16)
# Every float8 value is a bfloat16 value: 8 significand bits and 8 exponent bits hold either layout.
_WIDENED = (torch.float8_e4m3fn, torch.float8_e5m2)


def _indices(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"{name}: {tensor.dtype} is not an integer dtype")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: {list(tensor.shape)} is not {list(shape)}")
    return tensor.to(torch.int64)


def _bitmap(parts: Mapping[str, Tensor]) -> Bitmap:
    """The tensors of one weight as a checked Bitmap; sizes are compared before anything is allocated."""
    missing = [part for part in _PARTS if part not in parts]
    if missing:
        raise ValueError(f"{missing[0]}: missing")
    rows, columns = _indices("shape", parts["shape"], (2,)).tolist()
    bitmask, values = parts["bitmask"], parts["compressed"]
    if (
        rows < 0
        or columns < 0
        or bitmask.dtype is not torch.uint8
        or bitmask.shape != (rows, (columns + 7) // 8)
    ):
        raise ValueError(
            f"bitmask: {bitmask.dtype} {list(bitmask.shape)} does not hold the shape [{rows}, {columns}]"
        )
    if values.dim() != 1 or values.dtype not in (*_DIRECT, *_WIDENED):
        raise ValueError(f"compressed: {values.dtype} {list(values.shape)} is not float8, 16 or 32 [nnz]")
    begins = _indices("row_offsets", parts["row_offsets"], (rows,))
    width = (columns + 63) // 64 * 8
    padded = torch.nn.functional.pad(bitmask, (0, width - bitmask.shape[1])) if rows and columns else None
    if padded is None:
        padded = torch.zeros(rows, width, dtype=torch.uint8)
    row_offsets = torch.cat([begins, torch.tensor([values.numel()])])
    if rows and begins[0] != 0:
        raise ValueError(f"row_offsets: the first row begins at {int(begins[0])}, not at 0")
    values = values.to(torch.bfloat16) if values.dtype in _WIDENED else values
    weight = Bitmap(padded, row_offsets, values, (rows, columns))
    weight.check()
    return weight


def _two_of_four(parts: Mapping[str, Tensor]) -> Nm:
    """The tensors of one 2:4 weight; sizes are compared before anything is allocated."""
    missing = [part for part in _PARTS[:3] if part not in parts]
    if missing:
        raise ValueError(f"{missing[0]}: missing")
    rows, columns = _indices("shape", parts["shape"].flatten(), (2,)).tolist()
    bitmask, values = parts["bitmask"], parts["compressed"]
    if rows < 0 or columns < 0 or columns % 4:
        raise ValueError(f"shape: [{rows}, {columns}] is not 2:4, whose columns come by fours")
    if bitmask.dtype is not torch.uint8 or bitmask.shape != (rows, (columns + 7) // 8):
        raise ValueError(
            f"bitmask: {bitmask.dtype} {list(bitmask.shape)} does not hold the shape [{rows}, {columns}]"
        )
    if values.dtype not in (*_DIRECT, *_WIDENED) or values.shape != (rows, columns // 2):
        raise ValueError(
            f"compressed: {values.dtype} {list(values.shape)} is not float8, 16 or 32 "
            f"[{rows}, {columns // 2}]"
        )
    mask = bits(bitmask, bitmask.shape[1] * 8)
    if mask[:, columns:].any():
        raise ValueError(f"bitmask: a bit is set past column {columns}")
    mask = mask[:, :columns].contiguous()
    wrong = (mask.view(rows, columns // 4, 4).sum(-1) != 2).nonzero()
    if len(wrong):
        row, group = wrong[0].tolist()
        raise ValueError(f"bitmask: row {row}, group {group} of 4 columns has not 2 bits set")
    values = values.to(torch.bfloat16) if values.dtype in _WIDENED else values
    dense = torch.zeros(rows, columns, dtype=values.dtype)
    dense[mask] = values.flatten()
    return Nm.from_dense(dense, 2, 4, mask=mask)


def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Split into the parts of each bitmask weight, by layer name without ``.weight``, and all the others."""
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    prefixes = {name.removesuffix(".bitmask") for name in tensors if name.endswith(".bitmask")}
    prefixes |= {name.removesuffix(".compressed") for name in tensors if name.endswith(".compressed")}
    for name, tensor in tensors.items():
        prefix, _, part = name.rpartition(".")
        if prefix in prefixes and part in _PARTS:
            group = layers.setdefault(prefix.removesuffix(".weight"), {})
            if part in group:
                raise ValueError(f"{name}: given twice, with and without .weight")
            group[part] = tensor
        else:
            others[name] = tensor
    return layers, others


def read_sparse_bitmask(path: Path) -> tuple[dict[str, Bitmap | Nm], dict[str, Tensor]]:
    """Bitmask weights by layer name, and the remaining tensors, of a file or a model directory."""
    tensors: dict[str, Tensor] = {}
    for file in shard_files(path) if path.is_dir() else [path]:
        read, _ = read_tensors(file)
        if both := set(read) & set(tensors):
            raise ValueError(f"{file}: {sorted(both)[0]}: is in another shard too")
        tensors |= read
    with naming(path):
        layers, others = grouped(tensors)
    loaded: dict[str, Bitmap | Nm] = {}
    for name, parts in layers.items():
        two_of_four = "row_offsets" not in parts and "compressed" in parts and parts["compressed"].dim() == 2
        with naming(path, name):
            loaded[name] = _two_of_four(parts) if two_of_four else _bitmap(parts)
    return loaded, others


def load_sparse_bitmask(path: str | Path) -> dict[str, Bitmap | Nm]:
    """The sparse weights of a ``sparse-bitmask`` or ``sparse-24-bitmask`` checkpoint, on the CPU.

    Args:
        path: a safetensors file, or a model directory with ``model.safetensors`` or its sharded index.

    Returns:
        By layer name, without ``.weight``: a Bitmap, or a 2:4 Nm. Values keep float32, bfloat16 or float16;
        float8 becomes bfloat16, exactly.

    Raises:
        ValueError: naming file, layer and tensor, when anything is cut short, missing or inconsistent.
        FileNotFoundError: no such file.
    """
    return read_sparse_bitmask(Path(path))[0]


def save_sparse_bitmask(weights: Mapping[str, Bitmap], path: str | Path) -> None:
    """Write weights as ``sparse-bitmask``, keys with ``.weight``.

    Raises:
        ValueError: a weight with int8 values, which the format has no scales for.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.scales is not None:
            raise ValueError(f"weights: {name!r}: sparse-bitmask has no scales for {weight.dtype} values")
        columns = weight.shape[1]
        parts = {
            "shape": torch.tensor(weight.shape, dtype=torch.int64),
            "compressed": weight.values,
            "bitmask": weight.bitmask[:, : (columns + 7) // 8],
            "row_offsets": weight.row_offsets[:-1],
        }
        tensors |= {
            f"{name}.weight.{part}": t.detach().cpu().contiguous().clone() for part, t in parts.items()
        }
    save_file(tensors, path, metadata={"format": "pt"})


def is_sparse_bitmask(directory: Path) -> bool:
    """Whether a model directory's configuration says its weights are of one of these formats."""
    config = read_json(directory / "config.json")
    found = [config.get(key) for key in ("sparsity_config", "quantization_config", "compression_config")]
    found += [entry.get("sparsity_config") for entry in found if isinstance(entry, dict)]
    return any(
        isinstance(entry, dict) and entry.get("format") in ("sparse-bitmask", "sparse-24-bitmask")
        for entry in found
    )
