# SPDX-License-Identifier: Apache-2.0
"""Every wrong argument is a Python error that names it, and no array's content can crash the process."""

import re

import cases
import pytest
import torch
from sparsecore import testing

CASE = cases.Case(4, 10, 30, 0.4, bias=True)


def refused(op: str, name: str, inputs: dict, **more) -> str:
    """The error's text, which names the argument first, after torch's own preamble if any."""
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        cases.function(op)(**inputs, **more)
    text = str(caught.value).split("\n")[0]
    assert re.search(rf"(^|, )({name}): ", text), f"{op}: an error about {name} says: {text}"
    return text


def common_misfits(inputs: dict):
    """(argument, inputs in which it alone is of a wrong dtype or shape), for what every op takes."""
    x, bias, values = inputs["x"], inputs["bias"], inputs["values"]
    wrong = {
        "x": [*(x.to(d) for d in (torch.float64, torch.int32, torch.complex64, torch.bool)), x[0, 0]],
        "bias": [bias[:-1], bias[None], bias[0], bias.half(), bias.double(), cases.strided(bias)],
        "values": [values.double(), values.int(), values[:, None], cases.strided(values)],
    }
    yield from ((name, {**inputs, name: t}) for name, tensors in wrong.items() for t in tensors)


@pytest.mark.parametrize("op", cases.ops())
def test_shapes_and_dtypes(op):
    inputs, ran = cases.of(op).inputs(CASE), 0
    for name, wrong in [*common_misfits(inputs), *cases.of(op).misfits(inputs)]:
        refused(op, name, wrong)
        ran += 1
    assert ran > 15


@pytest.mark.parametrize("op", cases.ops())
def test_in_features_differ(op):
    """x narrower than a stored column, or than the format's own width."""
    inputs = cases.of(op).inputs(cases.Case(3, 10, 100, 1.0))
    narrow = {**inputs, "x": inputs["x"][:, :30]}
    refused(op, r"\w+", narrow)


@pytest.mark.parametrize("device", ["meta"])
@pytest.mark.parametrize("op", cases.ops())
def test_devices(op, device):
    inputs = cases.of(op).inputs(CASE)
    for name, t in inputs.items():
        if t is not None and name != "x":
            refused(op, name, {**inputs, name: t.to(device)})
    everywhere = {n: None if t is None else t.to(device) for n, t in inputs.items()}
    assert cases.function(op)(**everywhere).shape == (4, 10)


@pytest.mark.parametrize("op", cases.ops())
def test_out(op):
    inputs = cases.of(op).inputs(cases.Case(4, 30, 30, 0.5, bias=True))
    good = torch.empty(4, 30)
    for out in (
        good[:3],
        good[:, :-1],
        good.double(),
        good.half(),
        good[None],
        cases.strided(good),
        good.T.contiguous().T,
    ):
        refused(op, "out", inputs, out=out)
    refused(op, "out", inputs, out=good.to("meta"))
    refused(op, "out", inputs, out=inputs["x"])
    memory = torch.zeros(300)
    memory[:120] = inputs["x"].flatten()
    refused(op, "out", {**inputs, "x": memory[:120].view(4, 30)}, out=memory[119:239].view(4, 30))
    cases.function(op)(**{**inputs, "x": memory[:120].view(4, 30)}, out=memory[120:240].view(4, 30))
    # Every other array that out could lie over.
    for name, t in inputs.items():
        if t is not None and name != "x":
            size = max(t.numel() * t.element_size(), 480) + 480
            shared = torch.zeros(size, dtype=torch.uint8)
            inner = shared[: t.numel() * t.element_size()].view(t.dtype).view(t.shape)
            inner.copy_(t)
            refused(op, "out", {**inputs, name: inner}, out=shared[:480].view(torch.float32).view(4, 30))


@pytest.mark.parametrize("op", cases.ops())
def test_out_and_gradients_do_not_mix(op):
    inputs = cases.of(op).inputs(CASE)
    inputs["x"] = inputs["x"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="out"):
        cases.function(op)(**inputs, out=torch.empty(4, 10)).sum().backward()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("op", cases.ops())
def test_broken_invariants(op, threads):
    """Offsets that fall or run past nnz, columns out of range, out of order or doubled, stray bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    usable = [isa for o, _, isa, missing in testing.kernels() if o == op and not missing]
    rows, ran = 50 if threads == 1 else 700, 0
    try:
        for index in {case.index for case in cases.of(op).CASES}:
            for m in (1, 9):
                inputs = cases.of(op).inputs(cases.Case(m, rows, 150, 0.5, index=index))
                for name, damaged in cases.of(op).damage(inputs):
                    for isa in usable:
                        with testing.force_isa(isa):
                            text = refused(op, name, damaged)
                            assert re.search(r"-?\d", text), f"no number in: {text}"
                            ran += 1
    finally:
        torch.set_num_threads(before)
    assert ran > 30


@pytest.mark.parametrize("op", cases.ops())
def test_sizes_that_overflow(op):
    """Strides of zero make sizes whose products pass 2^63, or that no memory holds."""
    inputs = cases.of(op).inputs(cases.Case(1, 10, 30, 0.4))
    for rows in (2**40, 2**58):
        wide = inputs["x"].expand(rows, 30)
        with pytest.raises((RuntimeError, MemoryError)):
            cases.function(op)(**{**inputs, "x": wide})
    for columns in (2**31, 2**40, 2**62):
        refused(op, "x|k|bitmask", {**inputs, "x": torch.empty(0, columns)})


def test_linear_names_its_arguments():
    import sparsecore

    w = sparsecore.Csr.from_dense(torch.eye(4))
    with pytest.raises(ValueError, match=r"^x: last dimension must be in_features = 4, not 5"):
        sparsecore.linear(torch.zeros(2, 5), w)
    with pytest.raises(TypeError, match=r"^weight"):
        sparsecore.linear(torch.zeros(2, 4), "w")
