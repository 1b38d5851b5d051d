# SPDX-License-Identifier: Apache-2.0
"""One file of named weights.

A safetensors file whose metadata entry ``sparsecore`` is JSON:

    {"schema": 1, "weights": {"<name>": {"format": "bitmap", "shape": [n, k], "dtype": "bfloat16"}, ...}}

The tensors of a weight are called ``<name>.<tensor>``, by the names of its format: bitmask, row_offsets,
values, scales; crow_indices, col_indices, values; values, positions, scales. A dense weight (``"dense"``)
is ``<name>.values``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecore.formats import Bitmap, Csr
from sparsecore.io.files import naming, read_tensors
from sparsecore.nm import Nm

SCHEMA = 1
FORMATS: dict[str, type[Bitmap] | type[Csr] | type[Nm]] = {"bitmap": Bitmap, "csr": Csr, "nm": Nm}


def describe(weight: Tensor | Csr | Bitmap | Nm) -> dict[str, Any]:
    """The schema's entry for one weight.

    Raises:
        ValueError: a weight of another class.
    """
    kind = (
        "dense"
        if isinstance(weight, Tensor)
        else {cls: name for name, cls in FORMATS.items()}.get(type(weight))
    )
    if kind is None:
        raise ValueError(f"weight: {type(weight).__name__} is not a Tensor, Csr, Bitmap or Nm")
    return {"format": kind, "shape": [int(size) for size in weight.shape], "dtype": _dtype_name(weight.dtype)}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assemble(entry: Any, tensors: Mapping[str, Tensor]) -> Tensor | Csr | Bitmap | Nm:
    """The weight that an untrusted entry and the tensors under its name make, checked.

    Raises:
        ValueError: naming the field or the tensor.
    """
    if not isinstance(entry, dict):
        raise ValueError("a description of the weight is missing")
    kind, shape = entry.get("format"), entry.get("shape")
    if not isinstance(shape, list) or not all(type(s) is int and 0 <= s < 1 << 62 for s in shape):
        raise ValueError(f"shape: {shape!r} is not a list of sizes")
    if "values" not in tensors:
        raise ValueError("values: missing")
    if entry.get("dtype") != _dtype_name(tensors["values"].dtype):
        raise ValueError(f"values: {tensors['values'].dtype} is not the dtype {entry.get('dtype')!r}")
    if kind == "dense":
        if set(tensors) != {"values"}:
            raise ValueError(f"values: a dense weight is one tensor, not {sorted(tensors)}")
        if list(tensors["values"].shape) != shape:
            raise ValueError(f"values: {list(tensors['values'].shape)} is not the shape {shape}")
        return tensors["values"]
    if kind not in FORMATS:
        raise ValueError(f"format: {kind!r} is not one of {sorted([*FORMATS, 'dense'])}")
    if len(shape) != 2:
        raise ValueError(f"shape: {shape} is not [out_features, in_features]")
    return FORMATS[kind].from_tensors(dict(tensors), (shape[0], shape[1]))  # type: ignore[return-value]


def check_schema(header: Mapping[str, Any]) -> None:
    """Raises ValueError for any schema but this one."""
    if header.get("schema") != SCHEMA:
        raise ValueError(f"schema: {header.get('schema')!r} is not {SCHEMA}, the one this version reads")


def save_weights(weights: Mapping[str, Tensor | Csr | Bitmap | Nm], path: str | Path) -> None:
    """Write named weights to one safetensors file.

    Raises:
        ValueError: a weight of no known format.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    entries = {}
    for name, weight in weights.items():
        entries[name] = describe(weight)
        parts = {"values": weight} if isinstance(weight, Tensor) else weight.tensors()
        for part, tensor in parts.items():
            tensors[f"{name}.{part}"] = tensor.detach().cpu().contiguous().clone()
    metadata = {"sparsecore": json.dumps({"schema": SCHEMA, "weights": entries})}
    save_file(tensors, path, metadata=metadata)


def load_weights(path: str | Path) -> dict[str, Tensor | Csr | Bitmap | Nm]:
    """Read what :func:`save_weights` wrote, in its order, on the CPU.

    Raises:
        ValueError: naming the file and what is wrong in it: not safetensors, cut short, another schema,
            missing or unknown tensors, or arrays that break their format's rules.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    with naming(path, "metadata"):
        try:
            header = json.loads(metadata.get("sparsecore", "null"))
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        if not isinstance(header, dict) or not isinstance(header.get("weights"), dict):
            raise ValueError("sparsecore: no description of weights")
        check_schema(header)
    grouped: dict[str, dict[str, Tensor]] = {name: {} for name in header["weights"]}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        if owner not in grouped:
            raise ValueError(f"{path}: {name}: belongs to no weight of the metadata")
        grouped[owner][part] = tensor
    loaded = {}
    for name, entry in header["weights"].items():
        with naming(path, name):
            loaded[name] = assemble(entry, grouped[name])
    return loaded
