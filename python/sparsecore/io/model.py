# SPDX-License-Identifier: Apache-2.0
"""A whole sparse model in a directory.

model.safetensors      the state dict; a tensor that several names share is there once
sparsecore.json        {"schema": 1,
                        "layers": {"<module>": {"format": "bitmap", "shape": [n, k], "dtype": "float16"}},
                        "tied": {"<name>": "<name that is in the file>"}}
config.json ...        of a transformers model, as transformers writes them
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecore.formats import Bitmap, Csr
from sparsecore.io.bitmask import is_sparse_bitmask, read_sparse_bitmask
from sparsecore.io.files import naming, read_json, read_tensors
from sparsecore.io.weights import SCHEMA, assemble, check_schema, describe
from sparsecore.nm import Nm
from sparsecore.nn import SparseLinear


def save_model(model: Any, directory: str | Path, *, tokenizer: Any = None) -> None:
    """Write a model with :class:`~sparsecore.nn.SparseLinear` layers.

    Args:
        model: any module; the configuration of a transformers model goes along.
        directory: made if absent; files of the same names are replaced.
        tokenizer: a transformers tokenizer to put there too.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    layers = {name: describe(module.weight) for name, module in _sparse_layers(model).items()}
    header = {"schema": SCHEMA, "layers": layers, "tied": tied}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "sparsecore.json").write_text(json.dumps(header, indent=1), encoding="utf-8")
    if hasattr(model, "config"):
        config = model.config.to_dict()
        # The weights are what the state dict says, whatever they were read from.
        config.pop("quantization_config", None)
        config["architectures"] = [type(model).__name__]
        (directory / "config.json").write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def load_model(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save_model` wrote, or a transformers directory of ``sparse-bitmask`` or
    ``sparse-24-bitmask`` weights.

    Args:
        directory: nothing in it is trusted, and nothing of it is run.
        model: the module to load into, with its nn.Linear layers still dense; by default the transformers
            class that config.json names, made without allocating its weights.

    Returns:
        The model, on the CPU, in eval mode.

    Raises:
        ValueError: naming the file and what is wrong in it: cut short, another schema, missing or unknown
            tensors, a layer the model does not have, arrays that break their format's rules.
        FileNotFoundError: a file is not there.
        ImportError: transformers is needed and missing.
    """
    directory = Path(directory)
    tied: dict[str, str] = {}
    if not (directory / "sparsecore.json").is_file() and is_sparse_bitmask(directory):
        source = directory
        weights, tensors = read_sparse_bitmask(directory)
        layers: dict[str, Tensor | Csr | Bitmap | Nm] = dict(weights)
    else:
        source = directory / "model.safetensors"
        layers, tensors, tied = _read(directory)
    if model is None:
        model = _skeleton(directory)
    for name, weight in layers.items():
        with naming(source, name):
            _put(model, name, weight, tensors)
    with naming(source):
        _fill(model, tensors, tied)
    return model.eval()


def _sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear) and not isinstance(module.weight, Tensor)
    }


def _read(directory: Path) -> tuple[dict[str, Tensor | Csr | Bitmap | Nm], dict[str, Tensor], dict[str, str]]:
    """Checked layers, the other tensors, and the ties."""
    described = directory / "sparsecore.json"
    header = read_json(described)
    entries, tied = header.get("layers"), header.get("tied")
    with naming(described):
        check_schema(header)
        if not isinstance(entries, dict):
            raise ValueError("layers: a map from module names to descriptions is wanted")
        if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
            raise ValueError("tied: a map from names to names is wanted")
    source = directory / "model.safetensors"
    tensors, _ = read_tensors(source)
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in entries}
    for name in list(tensors):
        owner, _, part = name.rpartition(".")
        if owner in parts and part != "bias":
            parts[owner][part] = tensors.pop(name)
    layers: dict[str, Tensor | Csr | Bitmap | Nm] = {}
    for name, entry in entries.items():
        with naming(source, name):
            layers[name] = assemble(entry, parts[name])
    return layers, tensors, tied


def _skeleton(directory: Path) -> nn.Module:
    """The transformers class that config.json names, its parameters without storage."""
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise ImportError("load_model needs transformers: pip install sparsecore[model]") from error
    path = directory / "config.json"
    names = read_json(path).get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"{path}: architectures: {names!r} does not name a transformers model")
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = cls(config)
        if (directory / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
    except Exception as error:  # a configuration can be wrong in any way
        raise ValueError(f"{path}: {name} can't be made of it: {error}") from error
    return model


def _put(model: nn.Module, name: str, weight: Tensor | Csr | Bitmap | Nm, tensors: dict[str, Tensor]) -> None:
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the model has no such layer ({error})") from error
    if not isinstance(layer, (nn.Linear, SparseLinear)) or not name:
        raise ValueError(f"the model's {type(layer).__name__} is not a linear layer")
    if tuple(weight.shape) != (layer.out_features, layer.in_features):
        raise ValueError(
            f"shape: {list(weight.shape)} is not the model's [{layer.out_features}, {layer.in_features}]"
        )
    bias = tensors.pop(f"{name}.bias", None)
    if (bias is None) != (layer.bias is None):
        raise ValueError("bias: missing" if bias is None else "bias: the model's layer has none")
    made = SparseLinear(weight, bias)
    made.dense_itemsize = (
        layer.weight.dtype.itemsize if isinstance(layer, nn.Linear) else layer.dense_itemsize
    )
    model.set_submodule(name, made)


def _fill(model: nn.Module, tensors: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Dense tensors and ties; afterwards every parameter has its data."""
    sparse = {
        f"{name}.{part}" for name, layer in _sparse_layers(model).items() for part in layer.state_dict()
    }
    wanted = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in sparse}
    for name, tensor in tensors.items():
        if name not in wanted:
            raise ValueError(f"{name}: the model has no such tensor")
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name}: {list(tensor.shape)} is not the model's {list(wanted[name].shape)}")
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise ValueError(f"{name}: {tensor.dtype} does not go into the model's {wanted[name].dtype}")
    if not tied:
        tied = _tied_embeddings(model, tensors)
    for name, source in tied.items():
        if source not in tensors or name not in wanted or tensors[source].shape != wanted[name].shape:
            raise ValueError(f"tied: {name!r} can't share {source!r}")
    missing = sorted(set(wanted) - set(tensors) - set(tied))
    if missing:
        raise ValueError(
            f"{missing[0]}: missing" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        source_owner, _, source_attribute = source.rpartition(".")
        shared = getattr(model.get_submodule(source_owner), source_attribute)
        setattr(model.get_submodule(owner), attribute, shared)


def _tied_embeddings(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What a transformers configuration ties: an output embedding that the file leaves out."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    source = f"{names[id(model.get_input_embeddings())]}.weight"  # type: ignore[operator]
    target = f"{names[id(model.get_output_embeddings())]}.weight"  # type: ignore[operator]
    return {target: source} if source in tensors and target not in tensors else {}
