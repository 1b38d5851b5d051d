# SPDX-License-Identifier: Apache-2.0
"""kv_attention on CUDA as torch calls it, on a GPU. Without one nothing here runs, and says so:
test_cuda_kv.py has the cases on the emulated grid."""

import cases
import pytest
import sparsecore
import torch
import verify
from cases import kv_attention as samples
from cases.kv_attention import Cache
from sparsecore.ops.kv_attention import kv_attention
from sparsecore.ops.kv_compress import kv_compress
from test_cuda_kv import ALWAYS, KINDS
from test_device import there
from test_kv_attention import SMALL, expected, fault

pytestmark = pytest.mark.skipif(
    bool(sparsecore.cuda_missing), reason=f"not proven on a GPU: {sparsecore.cuda_missing}"
)


def home(answer: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(t.cpu() for t in answer)


@ALWAYS
def test_every_case(op):
    faults = []
    for case in samples.CUDA_CASES:
        inputs, exact, bounds = expected(case)
        if wrong := fault(home(kv_attention(**there(inputs))), exact, bounds, case.dtype):
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(samples.CUDA_CASES))


@pytest.mark.parametrize("kinds", KINDS[:3], ids=str)
@ALWAYS
def test_a_graph_replays_on_more_tokens(op, kinds):
    """Lengths and pages are the device's: a captured call follows them."""
    case = Cache((700, 90), 2, 4, 1, 128, (39, 39), 64, 3, kinds[0], kinds[1])
    inputs, exact, bounds = expected(case)
    placed = there(inputs)
    lengths = placed["lengths"].clone()
    placed["lengths"].fill_(1)
    kv_attention(**placed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = kv_attention(**placed)
    for _ in range(2):
        placed["lengths"].copy_(lengths)
        graph.replay()
        assert not fault(home(answer), exact, bounds, case.dtype)
        placed["lengths"].zero_()
        graph.replay()
        assert not answer[0].any() and (answer[1] == -torch.inf).all()


@ALWAYS
def test_pages_that_are_not_aligned(op):
    inputs = there(expected(SMALL)[0])
    answer = kv_attention(**inputs)
    for name in samples.POOLS:
        t = inputs[name]
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        inputs[name] = memory[1:].view(t.shape).copy_(t)
        assert inputs[name].data_ptr() % 16 != 0
    assert all(torch.equal(a, b) for a, b in zip(kv_attention(**inputs), answer, strict=True))


@ALWAYS
def test_wrong_arguments_are_errors_that_name_them(op):
    inputs = samples.inputs(SMALL)
    for _, wrong in samples.misfits(inputs):
        if isinstance(wrong["bias"], torch.Tensor) and wrong["bias"].shape[3:] == (1,):
            continue  # too few numbers for the keys: NaN on a device
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=r"(?m)(^|, )\w+: "):
            kv_attention(**there(wrong))
    for name, t in inputs.items():
        if isinstance(t, torch.Tensor) and name != "q":  # one argument left on the CPU
            with pytest.raises((RuntimeError, NotImplementedError)):
                kv_attention(**{**there(inputs), name: t})


@ALWAYS
def test_broken_pages_are_nan_and_the_device_lives_on(op):
    case = Cache((40, 300), 2, 2, head_dim=72)
    inputs = there(samples.inputs(case))
    answer = kv_attention(**inputs)
    for name, damaged in samples.damage(samples.inputs(case)):
        _, lse = kv_attention(**there(damaged))
        faulty = samples.broken_heads(damaged).repeat_interleave(case.group, 1)
        assert torch.equal(lse.isnan().cpu(), faulty[..., None]), name
    assert all(torch.equal(a, b) for a, b in zip(kv_attention(**inputs), answer, strict=True))


@ALWAYS
def test_opcheck_and_compile(op):
    inputs = there(samples.inputs(SMALL))
    torch.library.opcheck(torch.ops.sparsecore.kv_attention.default, tuple(inputs.values()))
    torch._dynamo.reset()
    compiled = torch.compile(kv_attention, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(**inputs), kv_attention(**inputs), strict=True))


@pytest.mark.parametrize("op", ["kv_compress"])
def test_compression_of_strided_tokens(op):
    """K as models make it, heads and tokens swapped."""
    x = torch.randn(2, 70, 3, 96, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    made, right = kv_compress(x, 31), cases.reference(op, {"x": x.cpu(), "keep": 31})
    assert all(torch.equal(a.cpu(), b) for a, b in zip(made, right, strict=True))
