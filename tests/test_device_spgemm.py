# SPDX-License-Identifier: Apache-2.0
"""spgemm on CUDA as torch calls it, on a GPU. Without one nothing here runs, and says so: test_cuda_spgemm.py
has the cases on the emulated grid."""

from dataclasses import replace

import cases
import pytest
import sparsecore
import torch
import verify
from cases import spgemm as samples
from sparsecore import Csr
from sparsecore.ops import spgemm as op
from test_cuda_spgemm import HEAVY, OPS, spoiled
from test_device import there
from test_spgemm import SMALL, expected, fault
from test_spgemm_bad_input import hostile_plans

pytestmark = pytest.mark.skipif(
    bool(sparsecore.cuda_missing), reason=f"not proven on a GPU: {sparsecore.cuda_missing}"
)
ALWAYS = pytest.mark.parametrize("name", OPS)


def home(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(t.cpu() for t in tensors)


@ALWAYS
def test_every_case(name):
    """In one call, in two phases, within little memory: the same bits; by atomics too."""
    faults = []
    for case in samples.CUDA_CASES:
        inputs = there(expected(case)[0])
        arrays = [inputs[n] for n in samples.NAMES]
        answer = op.spgemm(**inputs)
        wrong = fault(home(*answer), case)
        crow, col = op.pattern(*arrays[:2], *arrays[3:5], case.n)
        if not (torch.equal(crow, answer[0]) and torch.equal(col, answer[1])):
            wrong = wrong or "pattern() gives another pattern"
        if not torch.equal(op.values(*arrays, crow, col, case.n), answer[2]):
            wrong = wrong or "values() gives other bits"
        for memory in (1, 1 << 18):
            little = op.spgemm(**inputs, memory=memory)
            if not all(torch.equal(x, y) for x, y in zip(answer, little, strict=True)):
                wrong = wrong or "little memory gives other bits"
        wrong = wrong or fault(home(*op.spgemm(**inputs, deterministic=False)), case)
        crow, col, values = home(*op.spgemm(**inputs, sorted=False, deterministic=False))
        order = (torch.arange(case.m).repeat_interleave(crow.diff()) * max(case.n, 1) + col).argsort()
        wrong = wrong or fault((crow, col[order], values[order]), case)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(samples.CUDA_CASES))


@ALWAYS
def test_a_large_product_is_right_and_the_same_each_time(name):
    """Rows of all levels at once, on many blocks; against float64 on the CPU."""
    n, g = 20_000, torch.Generator().manual_seed(1)
    lengths = (3e4 / (1 + torch.arange(n))).clamp(4, 6000).long()[torch.randperm(n, generator=g)]
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    col = torch.randint(n, (int(crow[-1]),), generator=g)
    values = samples.numbers(col.numel(), torch.float32, 2)
    a = [t.cuda() for t in (crow, col, values)]
    answers = [op.spgemm(*a, *a, n) for _ in range(3)]
    for other in answers[1:]:
        assert all(torch.equal(x, y) for x, y in zip(answers[0], other, strict=True))
    exact = op.spgemm(crow, col, values.double(), crow, col, values.double(), n)
    sizes = op.spgemm(crow, col, values.double().abs(), crow, col, values.double().abs(), n)[2]
    assert torch.equal(exact[0], answers[0][0].cpu()) and torch.equal(exact[1], answers[0][1].cpu())
    assert ((answers[0][2].cpu() - exact[2]).abs() <= 6000 * 2.0**-24 * sizes).all()


@ALWAYS
def test_a_graph_of_a_plan_replays_on_new_numbers(name):
    for case in (cases.Case(20, 130, 30, 0.2), HEAVY[0]):
        inputs = there(expected(case)[0])
        arrays = [inputs[n] for n in samples.NAMES]
        crow, col, _ = op.spgemm(**inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            op.values(*arrays, crow, col, case.n)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = op.values(*arrays, crow, col, case.n)
        for seed in (1, 2):
            torch.manual_seed(seed)
            arrays[2].normal_()
            arrays[5].normal_()
            graph.replay()
            assert torch.equal(made, op.spgemm(**inputs)[2])


@ALWAYS
def test_the_current_stream_is_used(name):
    inputs = there(expected(cases.Case(20, 130, 30, 0.2))[0])
    want = op.spgemm(**inputs)
    right, busy = inputs["a_values"].clone(), torch.randn(4096, 4096, device="cuda")
    inputs["a_values"].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy
        inputs["a_values"].copy_(right)
        made = op.spgemm(**inputs)
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(want, made, strict=True))


@ALWAYS
def test_wrong_arguments_are_errors_that_name_them(name):
    inputs = samples.inputs(SMALL)
    for at_fault, wrong in samples.misfits(inputs):
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=rf"(?m)(^|, ){at_fault}: "):
            op.spgemm(**there(wrong))
    for side in samples.NAMES:  # one argument left on the CPU
        with pytest.raises((RuntimeError, NotImplementedError)):
            op.spgemm(**{**there(inputs), side: inputs[side]})
    with pytest.raises((RuntimeError, NotImplementedError)):
        op.spgemm(**there({**inputs, "a_values": inputs["a_values"].to(torch.complex64)}))


@ALWAYS
def test_broken_indices_are_errors_that_name_them(name):
    inputs = samples.inputs(cases.Case(50, 150, 40, 0.3))
    want = op.spgemm(**there(inputs))
    for at_fault, damaged in samples.damage(inputs):
        with pytest.raises(RuntimeError, match=rf"^{at_fault}: "):
            op.spgemm(**there(damaged))
    assert torch.equal(op.spgemm(**there(inputs))[2], want[2])


@ALWAYS
def test_broken_rows_of_a_plan_are_nan(name):
    case = cases.Case(20, 100, 30, 0.3)
    inputs, reference, _ = expected(case)
    crow, col, _ = reference
    arrays = [inputs[n].cuda() for n in samples.NAMES]
    for bad_crow, bad_col in hostile_plans(crow, col, case.n):
        made = op.values(*arrays, bad_crow.cuda(), bad_col.cuda(), case.n)
        assert set(made.isnan().nonzero().flatten().tolist()) == spoiled(inputs, bad_crow, bad_col)


@ALWAYS
def test_more_nonzeros_than_int32_counts(name):
    m, n = 2**16 + 1, 2**15
    a = torch.arange(m + 1, dtype=torch.int32), torch.zeros(m, dtype=torch.int32), torch.ones(m)
    b = torch.tensor([0, n], dtype=torch.int32), torch.arange(n, dtype=torch.int32), torch.ones(n)
    with pytest.raises(RuntimeError, match=rf"^a_crow_indices: the product has {m * n} nonzeros"):
        op.spgemm(*(t.cuda() for t in (*a, *b)), n)


@ALWAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_those_of_the_cpu(name, dtype):
    for layout in samples.LAYOUTS:
        case = cases.Case(14, 90, 33, 0.2, value=torch.float32, layout=layout)
        inputs = samples.inputs(case)
        grads = []
        for device, kind in (("cpu", torch.float32 if dtype is torch.bfloat16 else dtype), ("cuda", dtype)):
            moved = there(inputs, device)
            moved |= {n: moved[n].to(kind).requires_grad_() for n in ("a_values", "b_values")}
            op.spgemm(**moved)[2].square().sum().backward()
            grads.append([moved[n].grad.double().cpu() for n in ("a_values", "b_values")])
        tolerance = 100 * torch.finfo(dtype).eps if dtype is not torch.bfloat16 else 0.2
        for mine, theirs in zip(grads[1], grads[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * 10)


@ALWAYS
def test_opcheck_and_compile(name):
    inputs = there(samples.inputs(SMALL))
    arrays = [inputs[n] for n in samples.NAMES]
    crow, col, values = op.spgemm(**inputs)
    for which, args in (
        ("spgemm", (*arrays, SMALL.n)),
        ("spgemm_pattern", (*arrays[:2], *arrays[3:5], SMALL.n)),
        ("spgemm_values", (*arrays, crow, col, SMALL.n)),
        ("_spgemm_masked", (*arrays, crow, col, SMALL.n)),
    ):
        torch.library.opcheck(getattr(torch.ops.sparsecore, which).default, args)
    torch._dynamo.reset()
    compiled = torch.compile(lambda **k: op.spgemm(**k)[2].relu(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs), values.relu())


@ALWAYS
def test_matrices(name):
    case = replace(SMALL, index=torch.int32)
    inputs = there(samples.inputs(case))
    a, b = (Csr(*(inputs[f"{s}_{n}"] for n in ("crow_indices", "col_indices", "values")), shape)
            for s, shape in (("a", (case.m, case.k)), ("b", (case.k, case.n))))  # fmt: skip
    c = sparsecore.spgemm(a, b)
    assert c.device.type == "cuda"
    torch.testing.assert_close(c.to_dense(), a.to_dense() @ b.to_dense(), rtol=1e-5, atol=1e-5)
    plan = sparsecore.spgemm_plan(a, b)
    assert torch.equal(plan(a, b).values, c.values)
    tensor = sparsecore.spgemm(a.to_torch(), b.to_torch())
    assert tensor.layout is torch.sparse_csr and torch.equal(tensor.values(), c.values)
