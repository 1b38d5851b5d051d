# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels as torch calls them, on a GPU: every case, streams, graphs, gradients, wrong arguments.

Without a GPU nothing here runs, and says so; tests/test_cuda_kernels.py has the cases on the emulated grid.
"""

from dataclasses import replace

import cases
import pytest
import sparsecore
import torch
import verify
from sparsecore import Bitmap, Nm
from test_conversions import difference
from test_cuda_kernels import CONVERSIONS, CUDA, WEIGHTS

pytestmark = pytest.mark.skipif(
    bool(sparsecore.cuda_missing), reason=f"not proven on a GPU: {sparsecore.cuda_missing}"
)
CASE = cases.Case(4, 10, 30, 0.4, bias=True)


def there(inputs: dict, device: str = "cuda") -> dict:
    """The inputs on the GPU, with the strides they have."""

    def move(t: torch.Tensor) -> torch.Tensor:
        size = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
        memory = torch.as_strided(t, (size,), (1,), t.storage_offset()).to(device)
        return memory.as_strided(t.shape, t.stride()) if t.numel() else t.to(device)

    return {n: move(t) if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}


@pytest.mark.parametrize("op", [*WEIGHTS, *CONVERSIONS])
def test_every_case(op):
    faults = []
    for case in cases.of(op).CASES:
        if op in WEIGHTS:
            expected = verify.expected(op, case)
            y = cases.function(op)(**there(expected.inputs))
            wrong = expected.fault(y.cpu()) or (
                "" if y.is_cuda and y.is_contiguous() else "not a result like x"
            )
        else:
            inputs = cases.of(op).inputs(case)
            exact = verify.as_tuple(cases.reference(op, inputs))
            made = verify.as_tuple(cases.function(op)(**there(inputs)))
            wrong = difference(tuple(t.cpu() for t in made), exact)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(cases.of(op).CASES))


def dispatched(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsecore::{op}", "CUDA")


@pytest.mark.parametrize("op", CUDA)
def test_every_op_with_kernels_is_registered(op):
    assert dispatched(op)


@pytest.mark.parametrize("op", WEIGHTS)
def test_a_graph_replays_on_new_numbers(op):
    """Capture forbids a wait for the device, and an allocation past torch's allocator."""
    inputs = there(cases.of(op).inputs(cases.Case(3, 40, 700, 0.4)))
    function, side = cases.function(op), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = function(**inputs)
    for seed in (1, 2):
        torch.manual_seed(seed)
        inputs["x"].normal_()
        inputs["values"].normal_()
        graph.replay()
        assert torch.equal(y, function(**inputs))


@pytest.mark.parametrize("op", CONVERSIONS)
def test_a_graph_of_a_conversion(op):
    inputs = there(cases.of(op).inputs(cases.Case(0, 40, 700, 0.4)))
    expected = verify.as_tuple(cases.function(op)(**inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = verify.as_tuple(cases.function(op)(**inputs))
    graph.replay()
    assert not difference(tuple(t.cpu() for t in made), tuple(t.cpu() for t in expected))


@pytest.mark.parametrize("op", WEIGHTS)
def test_the_current_stream_is_used(op):
    """The answer waits for what the stream does before: a long product, then x is written."""
    inputs = there(cases.of(op).inputs(cases.Case(3, 40, 700, 0.4)))
    expected = cases.function(op)(**inputs)
    right, busy = inputs["x"].clone(), torch.randn(4096, 4096, device="cuda")
    inputs["x"].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy
        inputs["x"].copy_(right)
        y = cases.function(op)(**inputs)
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("op", WEIGHTS)
def test_wrong_arguments_are_errors_that_name_them(op):
    inputs, sample = cases.of(op).inputs(CASE), cases.of(op)
    for name, wrong in sample.misfits(inputs):
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=rf"(?m)(^|, ){name}: "):
            cases.function(op)(**there(wrong))
    for name, t in inputs.items():
        if t is not None and name != "x":  # one argument left on the CPU
            with pytest.raises((RuntimeError, NotImplementedError)):
                cases.function(op)(**{**there(inputs), name: t})


@pytest.mark.parametrize("op", WEIGHTS)
def test_a_broken_row_is_nan_and_the_device_lives_on(op):
    inputs = cases.of(op).inputs(cases.Case(5, 50, 120, 0.4))
    expected = cases.function(op)(**there(inputs))
    for _, damaged in cases.of(op).damage(inputs):
        y = cases.function(op)(**there(damaged))
        assert {i for i in range(50) if y[:, i].isnan().all()} == cases.of(op).broken_rows(damaged)
    assert torch.equal(cases.function(op)(**there(inputs)), expected)


@pytest.mark.parametrize("op", WEIGHTS)
def test_words_that_are_not_aligned(op):
    inputs = there(cases.of(op).inputs(CASE))
    expected = cases.function(op)(**inputs)
    for name in {"spmm_bitmap": ("bitmask",), "spmm_nm": ("values", "positions")}[op]:
        t = inputs[name]
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        inputs[name] = memory[1:].view(t.shape).copy_(t)
        assert inputs[name].data_ptr() % 16 != 0
    assert torch.equal(cases.function(op)(**inputs), expected)


@pytest.mark.parametrize("op", WEIGHTS)
def test_out(op):
    inputs = there(cases.of(op).inputs(CASE))
    out = torch.full((4, 10), float("nan"), device="cuda")
    assert cases.function(op)(**inputs, out=out) is out
    assert torch.equal(out, cases.function(op)(**inputs))
    with pytest.raises(RuntimeError, match="out: "):
        cases.function(op)(**inputs, out=out[:, :9])


@pytest.mark.parametrize("op", WEIGHTS)
def test_gradients_are_those_of_the_cpu(op):
    case = replace(CASE, m=6, n=20, k=40)
    grads = []
    for device in ("cpu", "cuda"):
        inputs = there(cases.of(op).inputs(case), device)
        leaves = {n: inputs[n].requires_grad_() for n in ("x", "values", "bias")}
        cases.function(op)(**inputs).square().sum().backward()
        grads.append({n: t.grad.cpu() for n, t in leaves.items()})
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", WEIGHTS)
def test_opcheck_and_compile(op):
    inputs = there(cases.of(op).inputs(CASE))
    torch.library.opcheck(getattr(torch.ops.sparsecore, op).default, tuple(inputs.values()))
    torch._dynamo.reset()
    compiled = torch.compile(cases.function(op), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs), cases.function(op)(**inputs))


def test_nm_on_the_gpu():
    """The format is made there and used there; a mask that selects too many is refused."""
    w = torch.randn(70, 270, device="cuda", dtype=torch.bfloat16)
    for n, m in ((2, 4), (4, 8), (1, 16), (30, None)):
        made = Nm.from_dense(w, n, m)
        made.check()
        on_cpu = Nm.from_dense(w.cpu(), n, m)
        assert torch.equal(made.to_dense().cpu(), on_cpu.to_dense())
        assert torch.equal(made.positions.cpu(), on_cpu.positions)
        x = torch.randn(5, 270, dtype=torch.bfloat16)
        torch.testing.assert_close(sparsecore.linear(x.cuda(), made).cpu(), sparsecore.linear(x, on_cpu))
        residual = torch.randn(5, 70, dtype=torch.bfloat16)
        for name in ("relu", "gelu", "gelu_tanh", "silu"):
            y = sparsecore.linear(x.cuda(), made, activation=name, residual=residual.cuda())
            torch.testing.assert_close(
                y.cpu(), sparsecore.linear(x, on_cpu, activation=name, residual=residual)
            )
    with pytest.raises(ValueError, match=r"^mask: row 0 selects more than 2 in a group of 4"):
        Nm.from_dense(w, 2, 4, mask=w != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_bitmap_on_the_gpu(dtype):
    """The format goes there and back, and `linear` takes the kernels."""
    w = CASE.dense().repeat(7, 9)
    bitmap = Bitmap.from_dense(w, dtype=dtype)
    moved = bitmap.to("cuda")
    moved.check()
    broken = replace(moved, row_offsets=moved.row_offsets + 1)
    with pytest.raises(ValueError, match="row_offsets: "):
        broken.check()
    assert torch.equal(moved.to_dense().cpu(), bitmap.to_dense())
    x = torch.randn(5, w.shape[1], dtype=torch.bfloat16)
    torch.testing.assert_close(sparsecore.linear(x.cuda(), moved).cpu(), sparsecore.linear(x, bitmap))
