# SPDX-License-Identifier: Apache-2.0
"""What is written comes back bit for bit; what is broken is a ValueError that names the file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sparsecore import io
from sparsecore.formats import Bitmap, Csr
from sparsecore.nn import SparseLinear, sparsify_

Weight = torch.Tensor | Csr | Bitmap


def _dense(n: int = 9, k: int = 70, density: float = 0.4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n * 1000 + k)
    w = torch.randn(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < density)
    return w.to(dtype)


def _weights() -> dict[str, Weight]:
    return {
        "a.csr": Csr.from_dense(_dense()),
        "a.wide": Csr.from_dense(_dense(), index_dtype=torch.int64),
        "b": Bitmap.from_dense(_dense(5, 64, dtype=torch.bfloat16)),
        "b.int8": Bitmap.from_dense(_dense(3, 129), dtype=torch.int8),
        "none": Bitmap.from_dense(_dense(0, 8)),
        "plain": _dense(2, 3),
    }


def _same(a: Weight, b: Weight) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    x, y = a.tensors(), b.tensors()
    same = type(a) is type(b) and a.shape == b.shape and set(x) == set(y)
    return same and all(x[name].dtype == y[name].dtype and torch.equal(x[name], y[name]) for name in x)


def test_weights_roundtrip(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", _weights()
    io.save_weights(weights, path)
    loaded = io.load_weights(path)
    assert list(loaded) == list(weights)
    assert all(_same(loaded[name], weights[name]) for name in weights)
    with pytest.raises(FileNotFoundError):
        io.load_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="ndarray"):
        io.save_weights({"x": torch.zeros(1).numpy()}, path)  # type: ignore[dict-item]


def _rewrite(path: Path, edit: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Change tensors and description of a weights file, and write it again."""
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    header, tensors = json.loads(metadata["sparsecore"]), load_file(path)
    edit(tensors, header)
    save_file(tensors, path, metadata={"sparsecore": json.dumps(header)})


def _set(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    return lambda tensors, header: tensors.update({key: change(tensors[key]).contiguous()})


def _entry(name: str, **fields: Any) -> Callable[..., None]:
    return lambda tensors, header: header["weights"][name].update(fields)


BROKEN = {
    "popcount": (_set("b.bitmask", lambda t: t | 1), "b: .*(bitmask|row_offsets|values)"),
    "padding": (_set("b.int8.bitmask", lambda t: t | 128), "b.int8: .*(bitmask|row_offsets)"),
    "offsets fall": (_set("b.row_offsets", lambda t: t.flip(0)), "b: .*row_offsets"),
    "offsets overflow": (_set("b.row_offsets", lambda t: t + (1 << 62)), "b: .*row_offsets"),
    "offsets short": (_set("b.row_offsets", lambda t: t[:-1]), "b: .*row_offsets"),
    "offsets dtype": (_set("b.row_offsets", lambda t: t.int()), "b: .*row_offsets"),
    "values short": (_set("b.values", lambda t: t[:-1]), "b: .*(values|row_offsets)"),
    "values dtype": (_set("b.values", lambda t: t.float()), "b: .*values"),
    "scales gone": (lambda tensors, header: tensors.pop("b.int8.scales"), "b.int8: .*scales"),
    "extra tensor": (lambda tensors, header: tensors.update({"b.more": torch.zeros(1)}), "b: .*more"),
    "owner unknown": (lambda tensors, header: tensors.update({"zz.values": torch.zeros(1)}), "zz.values"),
    "tensor gone": (lambda tensors, header: tensors.pop("a.csr.col_indices"), "a.csr: .*col_indices"),
    "columns out": (_set("a.csr.col_indices", lambda t: t + 60), "a.csr: .*col_indices"),
    "columns negative": (_set("a.csr.col_indices", lambda t: -t), "a.csr: .*col_indices"),
    "crow falls": (_set("a.wide.crow_indices", lambda t: t.flip(0)), "a.wide: .*crow_indices"),
    "schema": (lambda tensors, header: header.update(schema=2), "schema: 2"),
    "no schema": (lambda tensors, header: header.pop("schema"), "schema"),
    "format": (_entry("b", format="pickle"), "format: 'pickle'"),
    "shape": (_entry("b", shape=[5, 63]), "b: "),
    "shape bigger": (_entry("b", shape=[5, 1 << 61]), "b: .*bitmask"),
    "shape overflows": (_entry("b", shape=[1 << 63, 64]), "b: .*shape"),
    "shape negative": (_entry("b", shape=[-5, 64]), "b: .*shape"),
    "shape float": (_entry("b", shape=[5.0, 64]), "b: .*shape"),
    "shape of three": (_entry("a.csr", shape=[9, 70, 1]), "a.csr: .*shape"),
    "csr of many rows": (_entry("a.csr", shape=[1 << 61, 70]), "a.csr: .*crow_indices"),
    "plain": (_entry("plain", shape=[3, 2]), "plain: .*values"),
    "entry": (lambda tensors, header: header["weights"].update(b=3), "b: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_weights_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.safetensors"
    io.save_weights(_weights(), path)
    edit, message = BROKEN[name]
    _rewrite(path, edit)
    with pytest.raises(ValueError, match=f"w.safetensors: .*{message}"):
        io.load_weights(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_value_error_or_a_checked_weight(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "w.safetensors"
    io.save_weights({"b": Bitmap.from_dense(_dense(3, 20)), "c": Csr.from_dense(_dense(3, 20))}, path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        loaded = io.load_weights(path)
    except ValueError as error:
        assert "w.safetensors" in str(error)
    else:
        for weight in loaded.values():
            weight.check()  # type: ignore[union-attr]
            assert weight.to_dense().shape == weight.shape  # type: ignore[union-attr]


def _bitmask_parts(w: torch.Tensor, offsets: torch.dtype = torch.int64) -> dict[str, torch.Tensor]:
    """The published layout, from its definition."""
    rows, columns = w.shape
    stored = w != 0
    bits = torch.zeros(rows, (columns + 7) // 8 * 8, dtype=torch.uint8)
    bits[:, :columns] = stored
    packed = (bits.view(rows, -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)
    begins = stored.sum(1).cumsum(0) - stored.sum(1)
    return {
        "shape": torch.tensor([rows, columns]),
        "compressed": w[stored],
        "bitmask": packed,
        "row_offsets": begins.to(offsets),
    }


def _prefixed(prefix: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}


@pytest.mark.parametrize("key", ["m.proj", "m.proj.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("offsets", [torch.int32, torch.int64])
@pytest.mark.parametrize("columns", [1, 8, 63, 64, 70])
def test_sparse_bitmask_is_read(
    tmp_path: Path, key: str, dtype: torch.dtype, offsets: torch.dtype, columns: int
) -> None:
    w = _dense(6, columns).to(dtype).float()
    parts = _bitmask_parts(w, offsets)
    parts["compressed"] = parts["compressed"].to(dtype)
    path = tmp_path / "model.safetensors"
    save_file(_prefixed(key, parts) | {"m.norm.weight": torch.ones(3)}, path)
    for place in (path, tmp_path):
        loaded = io.load_sparse_bitmask(place)
        assert list(loaded) == ["m.proj"]
        assert torch.equal(loaded["m.proj"].to_dense().float(), w)
        assert loaded["m.proj"].dtype is (torch.bfloat16 if dtype.itemsize == 1 else dtype)


def test_stored_zeros_stay_stored(tmp_path: Path) -> None:
    parts = _bitmask_parts(torch.tensor([[1.0, 0, 2], [0, 3, 0]]))
    parts["compressed"] = torch.tensor([-0.0, 0.0, torch.nan])
    save_file(_prefixed("x", parts), tmp_path / "w.safetensors")
    weight = io.load_sparse_bitmask(tmp_path / "w.safetensors")["x"]
    assert weight.nnz == 3
    assert weight.values.signbit().tolist()[:2] == [True, False]
    io.save_sparse_bitmask({"x": weight}, tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    for name, tensor in parts.items():
        assert torch.equal(again[f"x.weight.{name}"].nan_to_num(7), tensor.nan_to_num(7))
    with pytest.raises(ValueError, match="int8"):
        io.save_sparse_bitmask({"x": Bitmap.from_dense(_dense(), dtype=torch.int8)}, tmp_path / "no")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("shape", lambda t: t + 1),
        ("shape", lambda t: t * (1 << 55)),
        ("shape", lambda t: -t),
        ("shape", lambda t: t[:1]),
        ("shape", lambda t: t.float()),
        ("bitmask", lambda t: t | 128),
        ("bitmask", lambda t: ~t),
        ("bitmask", lambda t: t[:, :-1]),
        ("bitmask", lambda t: t.int()),
        ("compressed", lambda t: t[1:]),
        ("compressed", lambda t: t.int()),
        ("compressed", lambda t: t[None]),
        ("row_offsets", lambda t: t + 1),
        ("row_offsets", lambda t: t.flip(0)),
        ("row_offsets", lambda t: t[:-1]),
        ("row_offsets", lambda t: t.double()),
        ("row_offsets", None),
        ("compressed", None),
        ("shape", None),
        ("bitmask", None),
    ],
)
def test_a_broken_sparse_bitmask_is_named(tmp_path: Path, part: str, change: Any) -> None:
    parts = _bitmask_parts(_dense(6, 70))
    if change is None:
        del parts[part]
    else:
        parts[part] = change(parts[part]).contiguous()
    path = tmp_path / "w.safetensors"
    save_file(_prefixed("x.weight", parts), path)
    with pytest.raises(ValueError, match=rf"w.safetensors: x: .*({'|'.join(parts | {part: 0})}|values)"):
        io.load_sparse_bitmask(path)


def test_a_model_roundtrip(tmp_path: Path) -> None:
    model = tiny.llama()
    tiny.zero_some(model, 0.6)
    sparsify_(model, dtype=torch.bfloat16, progress=False)
    io.save_model(model, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "config.json").is_file()
    loaded: Any = io.load_model(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = torch.arange(3, 19)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    into = tiny.llama(seed=9)
    assert io.load_model(tmp_path, into) is into
    assert torch.equal(into(ids).logits, model(ids).logits)
    assert torch.equal(
        loaded.generate(ids, max_new_tokens=4, do_sample=False),
        model.generate(ids, max_new_tokens=4, do_sample=False),
    )


def test_a_plain_module_roundtrip(tmp_path: Path) -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(20, 12), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 5)
        ).eval()

    model = make(0)
    tiny.zero_some(model, 0.6)
    sparsify_(model, include="0", progress=False)
    io.save_model(model, tmp_path)
    loaded = io.load_model(tmp_path, make(1))
    x = torch.randn(3, 20)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(ValueError, match=r"model.safetensors: 0: shape"):
        io.load_model(tmp_path, torch.nn.Sequential(torch.nn.Linear(20, 13)))
    with pytest.raises(ValueError, match=r"model.safetensors: 0: bias"):
        io.load_model(tmp_path, torch.nn.Sequential(torch.nn.Linear(20, 12, bias=False)))
    with pytest.raises(ValueError, match=r"model.safetensors: 0: .*no such layer"):
        io.load_model(tmp_path, torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"model.safetensors: 1.bias: the model has no such tensor"):
        io.load_model(tmp_path, torch.nn.Sequential(torch.nn.Linear(20, 12)))
    with pytest.raises(ValueError, match=r"model.safetensors: 3.bias: missing, and 1 more"):
        io.load_model(tmp_path, torch.nn.Sequential(*make(1), torch.nn.Linear(5, 5)))


def test_a_broken_model_directory_is_named(tmp_path: Path) -> None:
    model = tiny.llama()
    tiny.zero_some(model, 0.6)
    sparsify_(model, progress=False)
    io.save_model(model, tmp_path)
    described, config = tmp_path / "sparsecore.json", tmp_path / "config.json"
    good, good_config = described.read_text(), config.read_text()
    header = json.loads(good)

    def refused(text: str, message: str) -> None:
        described.write_text(text)
        with pytest.raises(ValueError, match=message):
            io.load_model(tmp_path)
        described.write_text(good)

    refused(good[:-3], r"sparsecore.json: not JSON")
    refused("[" * 100_000, r"sparsecore.json: not JSON")
    refused("[]", r"sparsecore.json: a JSON object")
    refused(json.dumps(header | {"schema": 99}), r"sparsecore.json: schema: 99")
    refused(json.dumps(header | {"layers": []}), r"sparsecore.json: layers")
    refused(json.dumps(header | {"tied": {"a": "b"}}), r"model.safetensors: tied: 'a'")
    refused(json.dumps(header | {"layers": {}}), r"model.safetensors: .*: the model has no such tensor")
    for text, message in (
        (good_config.replace("LlamaForCausalLM", "os.system"), "config.json: architectures"),
        (good_config.replace('"hidden_size": 64', '"hidden_size": 128'), "model.safetensors: .*shape"),
        (good_config.replace('"hidden_size": 64', '"hidden_size": "x"'), "config.json"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            io.load_model(tmp_path)
    config.write_text(good_config)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable"):
        io.load_model(tmp_path)
    file.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable"):
        io.load_model(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_sparse_bitmask_model_directory(tmp_path: Path, sharded: bool) -> None:
    model = tiny.llama()
    tiny.zero_some(model, 0.6)
    ids = torch.arange(3, 19)[None]
    wanted = model(ids).logits
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight"):
            tensors |= _prefixed(name, _bitmask_parts(tensor))
        elif name != "lm_head.weight":
            tensors[name] = tensor.clone()
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = {"sparsity_config": {"format": "sparse-bitmask"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if sharded:
        # The parts of one weight may lie in different shards.
        names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        shards: list[dict[str, torch.Tensor]] = [dict(list(tensors.items())[i::3]) for i in range(3)]
        for file, shard in zip(names, shards, strict=True):
            save_file(shard, tmp_path / file)
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    loaded: Any = io.load_model(tmp_path)
    assert isinstance(loaded.model.layers[2].mlp.down_proj, SparseLinear)
    torch.testing.assert_close(loaded(ids).logits, wanted, rtol=1e-3, atol=1e-3)
    if sharded:
        index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
        with pytest.raises(ValueError, match="weight_map"):
            io.load_model(tmp_path)
