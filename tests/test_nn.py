# SPDX-License-Identifier: Apache-2.0
"""SparseLinear holds a format the way a module holds a parameter; sparsify_ converts a model once."""

import copy
import warnings
from collections.abc import Callable

import pytest
import tiny
import torch
from functorch.compile import make_boxed_func
from sparsecore import Nm
from sparsecore.formats import Bitmap, Csr
from sparsecore.nn import SparseLinear, merge, merge_, sparsify_
from torch._dynamo.backends.common import aot_autograd

FORMATS = ["csr", "bitmap"]


def _layer(
    n: int = 24, k: int = 70, density: float = 0.3, bias: bool = True, seed: int = 0
) -> torch.nn.Linear:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(k, n, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(n, k) < density)
    return layer


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 5), (0,)])
def test_forward_is_the_linear_it_replaces(format: str, bias: bool, lead: tuple[int, ...]) -> None:
    layer = _layer(bias=bias)
    sparse = SparseLinear.from_linear(layer, format=format)
    x = torch.randn(*lead, 70)
    torch.testing.assert_close(sparse(x), layer(x), rtol=1e-4, atol=1e-4)
    assert str(sparse).startswith("SparseLinear(in_features=70, out_features=24")
    assert not list(sparse.parameters())


def test_a_dense_weight_is_a_weight() -> None:
    layer = _layer()
    dense = SparseLinear(layer.weight, layer.bias, trainable=True)
    assert set(dict(dense.named_parameters())) == {"weight", "bias"}
    x = torch.randn(4, 70)
    torch.testing.assert_close(dense(x), layer(x))
    dense.load_state_dict(_layer(seed=1).state_dict())
    torch.testing.assert_close(dense(x), _layer(seed=1)(x))


@pytest.mark.parametrize("format", FORMATS)
def test_state_dict_roundtrip_with_another_pattern(format: str) -> None:
    source = SparseLinear.from_linear(_layer(density=0.4, seed=1), format=format)
    target = SparseLinear.from_linear(_layer(density=0.2, seed=2), format=format)
    state = source.state_dict()
    assert {"values", "bias"} < set(state)
    target.load_state_dict(state)
    x = torch.randn(3, 70)
    assert torch.equal(target(x), source(x))
    target.values.zero_()
    assert source.values.any()  # copied, not shared
    assigned = SparseLinear.from_linear(_layer(density=0.2, seed=2), format=format)
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned(x), source(x))


def test_a_broken_state_dict_is_refused() -> None:
    sparse = SparseLinear.from_linear(_layer(), format="bitmap")
    before = sparse(torch.ones(70))
    state = sparse.state_dict()
    with pytest.raises(ValueError, match=r"state_dict.*(values|row_offsets|bitmask)"):
        sparse.load_state_dict(state | {"values": state["values"][:-1]})
    with pytest.raises(ValueError, match=r"state_dict.*(row_offsets|bitmask)"):
        sparse.load_state_dict(state | {"bitmask": state["bitmask"].bitwise_not()})
    with pytest.raises(RuntimeError, match="row_offsets"):
        sparse.load_state_dict({name: t for name, t in state.items() if name != "row_offsets"})
    assert torch.equal(sparse(torch.ones(70)), before)


@pytest.mark.parametrize("format", FORMATS)
def test_copies_and_conversions_stay_whole(format: str) -> None:
    sparse = SparseLinear.from_linear(_layer(bias=False), format=format)
    x = torch.randn(2, 70)
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin(x), sparse(x))
    twin.values.zero_()
    assert not twin(x).any() and sparse(x).any()
    half = copy.deepcopy(sparse).to(torch.bfloat16)
    assert half.weight.dtype is torch.bfloat16 and half.weight.values is half.values
    torch.testing.assert_close(half(x), sparse(x), rtol=0.02, atol=0.05)
    assert sparse.to("meta").weight.device.type == "meta"


def test_int8_scales_survive_a_dtype() -> None:
    sparse = SparseLinear.from_linear(_layer(bias=False), dtype=torch.int8)
    assert sparse.weight.values.dtype is torch.int8
    x = torch.randn(2, 70)
    before = sparse(x)
    sparse.to(torch.bfloat16)
    assert sparse.scales.dtype is torch.float32
    assert torch.equal(sparse(x), before)


@pytest.mark.parametrize("format", FORMATS)
def test_values_train(format: str) -> None:
    layer = _layer()
    sparse = SparseLinear.from_linear(layer, format=format, trainable=True)
    assert set(dict(sparse.named_parameters())) == {"values", "bias"}
    assert sparse.weight.values is sparse.values
    x = torch.randn(8, 70)
    (sparse(x) ** 2).sum().backward()
    (layer(x) ** 2).sum().backward()
    wanted = layer.weight.grad[layer.weight != 0]
    torch.testing.assert_close(sparse.values.grad, wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sparse.bias.grad, layer.bias.grad, rtol=1e-4, atol=1e-3)
    before = sparse(x).detach()
    torch.optim.SGD(sparse.parameters(), lr=1e-2).step()
    assert (sparse(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("format", FORMATS)
def test_compiles_without_a_graph_break(format: str) -> None:
    sparse = SparseLinear.from_linear(_layer(), format=format)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    for rows in (1, 4):
        x = torch.randn(rows, 70)
        torch.testing.assert_close(compiled(x), sparse(x))
    sparse.load_state_dict(SparseLinear.from_linear(_layer(density=0.5, seed=3), format=format).state_dict())
    torch.testing.assert_close(compiled(x), sparse(x))


def _graph_of(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, str]:
    """What the compiled module gives, and the code of the graph that was traced."""
    code = []

    def keep(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        code.append(graph.code)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    y = torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(x)
    return y, "".join(code)


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_without_gradients_takes_the_op_without_a_formula(format: str) -> None:
    frozen = SparseLinear.from_linear(_layer(), format=format)
    x = torch.randn(4, 70)
    assert f"sparsecore._spmm_{format}." in _graph_of(frozen, x)[1]
    before = torch.nn.Linear(70, 70)
    model = torch.nn.Sequential(before, frozen)
    with torch.no_grad():
        assert f"sparsecore._spmm_{format}." in _graph_of(model, x)[1]
    # The weight is frozen, what it meets is not.
    y, code = _graph_of(model, x)
    assert f"sparsecore.spmm_{format}." in code
    (wanted,) = torch.autograd.grad((model(x) ** 2).sum(), [before.weight])
    (found,) = torch.autograd.grad((y**2).sum(), [before.weight])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_graph_keeps_the_formula(format: str) -> None:
    frozen = SparseLinear.from_linear(_layer(), format=format)
    exported = torch.export.export(frozen, (torch.randn(4, 70),))
    assert f"sparsecore.spmm_{format}." in exported.graph_module.code


class Attention(torch.nn.Module):
    """Three layers over one x, as transformers calls them."""

    def __init__(self, format: str, bias: bool = False, kinds: tuple[str, ...] = ("", "", "")) -> None:
        super().__init__()
        for i, (name, kind) in enumerate(zip(("q_proj", "k_proj", "v_proj"), kinds, strict=True)):
            layer = _layer(n=24 + 8 * i, density=0.2 + 0.1 * i, bias=bias, seed=i)
            if ":" in format:
                layer.weight.data = Nm.from_dense(layer.weight.detach(), 2, 4).to_dense()
            self.add_module(name, SparseLinear.from_linear(layer, format=kind or format))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


@pytest.mark.parametrize("format", [*FORMATS, "2:4"])
@pytest.mark.parametrize("bias", [False, True])
def test_siblings_share_one_product(format: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Attention(format, bias), torch.randn(3, 70)
    wanted, state = model(x), {name: t.clone() for name, t in model.state_dict().items()}
    assert merge_(torch.nn.Sequential(model)) == ["0"]
    calls = []
    real = merge.linear
    monkeypatch.setattr(merge, "linear", lambda *args: calls.append(args) or real(*args))
    for found, y in zip(model(x), wanted, strict=True):
        assert torch.equal(found, y)
    assert len(calls) == 1
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name])
    # In any order, and with another x between.
    other = torch.randn(3, 70)
    assert torch.equal(model.v_proj(x), wanted[2]) and torch.equal(model.k_proj(x), wanted[1])
    assert torch.equal(model.k_proj(other), Attention(format, bias).k_proj(other))
    assert torch.equal(model.q_proj(x), wanted[0]) and torch.equal(model.v_proj(x), wanted[2])
    copied = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(copied(x), wanted, strict=True))
    # What moves or loads is on its own again.
    del calls[:]
    model.load_state_dict(Attention(format, bias, (format,) * 3).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(x), wanted, strict=True)) and not calls
    torch._dynamo.reset()
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    for rows in (1, 4):
        y = torch.randn(rows, 70)
        for found, own in zip(compiled(y), Attention(format, bias)(y), strict=True):
            torch.testing.assert_close(found, own)


def test_siblings_that_differ_stay_apart() -> None:
    assert merge_(Attention("csr", kinds=("csr", "bitmap", "csr"))) == []
    assert merge_(Attention("csr"), [("q_proj", "gate_proj")]) == []
    with pytest.raises(ValueError, match="siblings"):
        merge_(Attention("csr"), [("q_proj",)])
    trained = Attention("csr")
    trained.k_proj = SparseLinear.from_linear(_layer(n=32), format="csr", trainable=True)
    with pytest.raises(ValueError, match="siblings"):
        merge_(trained)


@pytest.mark.parametrize("make", [Csr.from_dense, Bitmap.from_dense, lambda w: Nm.from_dense(w, 2, 4)])
def test_weights_stack_and_part(make: Callable) -> None:
    parts = [make(_layer(n=n, bias=False, seed=n).weight.detach()) for n in (3, 0, 5)]
    stacked = type(parts[0]).stack(parts)
    stacked.check()
    assert torch.equal(stacked.to_dense(), torch.cat([p.to_dense() for p in parts]))
    row = 0
    for part in parts:
        own = stacked.rows(row, row + part.shape[0])
        own.check()
        assert torch.equal(own.to_dense(), part.to_dense())
        row += part.shape[0]
    with pytest.raises(ValueError, match="begin"):
        stacked.rows(3, 9)
    with pytest.raises(ValueError, match="parts"):
        type(parts[0]).stack([])
    with pytest.raises(ValueError, match="parts"):
        type(parts[0]).stack([parts[0], make(torch.randn(3, 64))])


def test_bad_arguments_are_named() -> None:
    layer = _layer()
    with pytest.raises(ValueError, match="weight"):
        SparseLinear(torch.zeros(3))
    with pytest.raises(ValueError, match="bias"):
        SparseLinear(Csr.from_dense(layer.weight), torch.zeros(3))
    with pytest.raises(ValueError, match="trainable"):
        SparseLinear(Bitmap.from_dense(layer.weight, dtype=torch.int8), trainable=True)
    with pytest.raises(ValueError, match="layer"):
        SparseLinear.from_linear(torch.nn.ReLU())  # type: ignore[arg-type]
    broken = Bitmap.from_dense(layer.weight)
    broken.row_offsets[3] += 1
    with pytest.raises(ValueError, match="row_offsets"):
        SparseLinear(broken)


def test_sparsify_a_model_once() -> None:
    model = tiny.llama()
    tiny.zero_some(model, 0.6)
    ids = torch.arange(3, 19)[None]
    wanted = model(ids).logits
    report = sparsify_(model, progress=False)
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-3, atol=1e-3)
    assert isinstance(model.model.layers[0].mlp.up_proj, SparseLinear)
    assert isinstance(model.lm_head, torch.nn.Linear)  # shares the embedding's weight
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(report.layers) == 3 * 7 + 1
    row = next(row for row in report.layers if row.name.endswith("0.mlp.up_proj"))
    assert (row.shape, row.format) == ((128, 64), "bitmap float32")
    assert row.dense_bytes == 4 * 128 * 64 and row.density == pytest.approx(0.4, abs=0.05)
    assert row.estimated_speedup == pytest.approx(row.dense_bytes / row.sparse_bytes)
    assert report.total.dense_bytes == sum(r.dense_bytes for r in report.layers)
    modules = dict(model.named_modules())
    again = sparsify_(model, progress=False)
    assert str(again) == str(report)
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())


def test_sparsify_filters_and_dtype() -> None:
    model = tiny.llama(tied=False)
    tiny.zero_some(model, 0.6)
    report = sparsify_(
        model, include=["*.mlp.*", "lm_head"], exclude="*.2.*", dtype=torch.bfloat16, progress=False
    )
    assert {row.name.split(".")[-1] for row in report.layers} == {
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    }
    assert not any(".2." in row.name for row in report.layers)
    assert all(row.format == "bitmap bfloat16" for row in report.layers)
    assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    with pytest.raises(ValueError, match="include"):
        sparsify_(model, include="nothing", progress=False)


def test_a_dense_layer_stays_and_the_report_says_so() -> None:
    model = torch.nn.Sequential(_layer(density=1.0), torch.nn.ReLU(), _layer(10, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = sparsify_(model, progress=False)
    assert isinstance(model[0], torch.nn.Linear) and isinstance(model[2], SparseLinear)
    assert [row.format for row in report.layers] == ["dense", "bitmap float32"]
    text = str(report)
    assert "estimate" in text and "total" in text and len(text.splitlines()) == 4


def test_report_as_a_rich_table() -> None:
    rich = pytest.importorskip("rich.console", reason="rich is not installed: the table is not proven")
    report = sparsify_(torch.nn.Sequential(_layer()), progress=False)
    console = rich.Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(report)
    assert "not a measurement" in console.export_text()
