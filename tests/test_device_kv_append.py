# SPDX-License-Identifier: Apache-2.0
"""kv_append on CUDA as torch calls it, on a GPU. Without one nothing here runs, and says so:
test_cuda_kv_append.py has the cases on the emulated grid."""

from dataclasses import replace

import pytest
import sparsecore
import torch
import verify
from cases import kv_append as samples
from sparsecore.ops.kv_append import kv_append, reference
from test_cuda_kv_append import ALWAYS, without_faults
from test_device import there
from test_kv_append import BROKEN, difference, expected, fresh, state

pytestmark = pytest.mark.skipif(
    bool(sparsecore.cuda_missing), reason=f"not proven on a GPU: {sparsecore.cuda_missing}"
)


def home(inputs: dict) -> tuple[torch.Tensor, ...]:
    return tuple(t.cpu() for t in state(inputs))


@ALWAYS
def test_every_case(op):
    faults = []
    for case in samples.CASES:
        inputs, exact = expected(case)
        placed = there(inputs)
        assert kv_append(**placed) is None
        if wrong := difference(home(placed), exact):
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(samples.CASES))


@pytest.mark.parametrize("recent", [1, 2])
@ALWAYS
def test_a_graph_of_one_token_is_replayed_through_pages(op, recent):
    """Lengths, tables and pages are the device's: replays of a captured step leave what one call leaves."""
    case = replace(BROKEN, lengths=(37, 5), tokens=70, recent=recent, value=torch.bfloat16)
    inputs = samples.inputs(case)
    exact, placed = reference(**inputs), there(inputs)
    k, v = (placed[half][:, :, :1].clone() for half in "kv")
    step, begin = {**placed, "k": k, "v": v}, placed["lengths"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kv_append(**step)
    assert torch.equal(placed["lengths"], begin)
    for t in range(case.tokens):
        k.copy_(placed["k"][:, :, t : t + 1])
        v.copy_(placed["v"][:, :, t : t + 1])
        graph.replay()
    assert not difference(home(placed), exact)


@ALWAYS
def test_a_sequence_with_a_fault_stays_and_the_device_lives_on(op):
    for name, damaged in list(samples.damage(samples.inputs(BROKEN)))[:-2]:
        placed = there(fresh(damaged))
        kv_append(**placed)
        assert not difference(home(placed), without_faults(damaged)), name


@ALWAYS
def test_wrong_arguments_are_errors_that_name_them(op):
    inputs = samples.inputs(replace(BROKEN, head_dim=64))
    for _, wrong in samples.misfits(inputs):
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=r"(?m)(^|, )\w+: "):
            kv_append(**there(wrong))
    for name, t in inputs.items():
        if isinstance(t, torch.Tensor) and name != "k":  # one argument left on the CPU
            with pytest.raises((RuntimeError, NotImplementedError)):
                kv_append(**{**there(inputs), name: t})
    for name in ("k_bitmask", "v_bitmask"):
        t = inputs[name]
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        with pytest.raises(RuntimeError, match=f"{name}: must begin at a multiple of 4 bytes"):
            kv_append(**{**there(inputs), name: memory[1:].view(t.shape)})


@ALWAYS
def test_opcheck_and_compile(op):
    inputs = samples.inputs(BROKEN)
    torch.library.opcheck(torch.ops.sparsecore.kv_append.default, tuple(there(inputs).values()))
    torch._dynamo.reset()
    placed = there(fresh(inputs))
    torch.compile(kv_append, fullgraph=True, backend="aot_eager")(**placed)
    exact = reference(**inputs)
    assert not difference(home(placed), exact)
