# SPDX-License-Identifier: Apache-2.0
"""Every op as torch sees it: schema, fake, autograd, compile, inference mode."""

import cases
import pytest
import torch
from sparsecore import testing
from torch._subclasses.fake_tensor import FakeTensorMode

FEW = [
    cases.Case(5, 12, 20, bias=True),
    cases.Case(1, 12, 20),
    cases.Case(4, 12, 20, layout="batch", bias=True),
    cases.Case(3, 0, 20),
    cases.Case(3, 12, 20, dtype=torch.bfloat16, value=torch.float16),
]
SMOOTH = ("x", "values", "bias")  # arguments that take a gradient


def overload(op: str, name: str = "default"):
    return getattr(getattr(torch.ops.sparsecore, op), name)


def differentiable(inputs: dict) -> dict:
    """The inputs as fresh leaves that ask for gradients."""
    return {
        n: t.detach().clone().requires_grad_() if t is not None and n in SMOOTH else t
        for n, t in inputs.items()
    }


@pytest.mark.parametrize("case", FEW, ids=lambda c: c.name)
@pytest.mark.parametrize("op", cases.ops())
def test_opcheck(op, case):
    inputs = cases.of(op).inputs(case)
    torch.library.opcheck(overload(op), tuple(inputs.values()))
    torch.library.opcheck(overload(op), tuple(differentiable(inputs).values()))


@pytest.mark.parametrize("case", FEW[:3], ids=lambda c: c.name)
@pytest.mark.parametrize("op", cases.ops())
def test_opcheck_out(op, case):
    inputs = cases.of(op).inputs(case)
    out = torch.empty(*inputs["x"].shape[:-1], case.n, dtype=case.dtype)
    torch.library.opcheck(overload(op, "out"), tuple(inputs.values()), {"out": out})


@pytest.mark.parametrize("op", cases.ops())
def test_the_fake_has_the_shape_dtype_and_strides_of_the_result(op):
    for layout in ("plain", *cases.LAYOUTS):
        case = cases.Case(4, 12, 20, dtype=torch.bfloat16, layout=layout)
        inputs = cases.of(op).inputs(case)
        real = cases.function(op)(**inputs)
        with FakeTensorMode() as mode:
            like = {n: None if t is None else mode.from_tensor(t) for n, t in inputs.items()}
            fake = cases.function(op)(**like)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride()), layout


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
@pytest.mark.parametrize("op", cases.ops())
def test_gradcheck(op):
    """In float32: the op is linear in each argument, so that wide steps make no error but rounding."""
    for case in (
        cases.Case(3, 5, 9, 0.5, bias=True),
        cases.Case(1, 5, 9, 0.5),
        cases.Case(4, 5, 9, 0.5, layout="batch"),
    ):
        inputs = differentiable(cases.of(op).inputs(case))
        names = [n for n in SMOOTH if inputs[n] is not None]

        def call(*tensors, inputs=inputs, names=names):
            return cases.function(op)(**{**inputs, **dict(zip(names, tensors, strict=True))})

        assert torch.autograd.gradcheck(call, [inputs[n] for n in names], eps=0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("op", cases.ops())
def test_gradients_are_those_of_the_reference(op, dtype):
    for layout in ("plain", "transposed", "batch_swapped"):
        case = cases.Case(6, 20, 40, 0.3, dtype=dtype, value=dtype, bias=True, layout=layout)
        inputs = differentiable(cases.of(op).inputs(case))
        exact = {n: t.detach().double().requires_grad_() if n in SMOOTH else t for n, t in inputs.items()}
        y, reference = cases.function(op)(**inputs), cases.reference(op, exact)
        grad = torch.randn(y.shape, generator=case.generator()).to(dtype)
        y.backward(grad)
        reference.backward(grad.double())
        for name in SMOOTH:
            assert inputs[name].grad.dtype is dtype and inputs[name].grad.shape == inputs[name].shape
            # Sums of some ten terms near 1, rounded to dtype; a wrong term is off by far more.
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(
                inputs[name].grad.double(), exact[name].grad, rtol=tolerance, atol=8 * tolerance
            )


@pytest.mark.parametrize("m, n, k", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("op", cases.ops())
def test_gradients_of_empty_shapes(op, m, n, k):
    inputs = differentiable(cases.of(op).inputs(cases.Case(m, n, k, bias=True)))
    y = cases.function(op)(**inputs)
    y.backward(torch.ones_like(y))
    for name in SMOOTH:
        grad, exact = inputs[name].grad, m if name == "bias" else 0
        assert grad.shape == inputs[name].shape
        assert name == "values" or torch.equal(grad, torch.full_like(grad, exact))


@pytest.mark.parametrize("op", cases.ops())
def test_only_what_asks_gets_a_gradient(op):
    plain = cases.of(op).inputs(cases.Case(3, 8, 10, 0.5, bias=True))
    for name in SMOOTH:
        inputs = {n: t.clone().requires_grad_() if n == name else t for n, t in plain.items()}
        y = cases.function(op)(**inputs)
        assert y.requires_grad
        y.sum().backward()
        assert inputs[name].grad is not None
    assert not cases.function(op)(**plain).requires_grad
    with torch.no_grad():
        assert not cases.function(op)(**differentiable(plain)).requires_grad


@pytest.mark.parametrize("op", cases.ops())
def test_inference_mode(op):
    inputs = cases.of(op).inputs(cases.Case(3, 8, 10, 0.5, bias=True))
    y = cases.function(op)(**inputs)
    with torch.inference_mode():
        assert torch.equal(cases.function(op)(**inputs), y)
        fresh = {n: t if t is None else t.clone() for n, t in inputs.items()}
        assert torch.equal(cases.function(op)(**fresh), y)
    assert torch.equal(cases.function(op)(**fresh), y)


@pytest.mark.parametrize("op", cases.ops())
def test_compile_fullgraph(op):
    function = cases.function(op)

    def f(inputs):
        return function(**{**inputs, "x": inputs["x"] * 2}).relu()

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (3, 5, 8):
        inputs = cases.of(op).inputs(cases.Case(m, 16, 24, 0.5, bias=True))
        assert torch.equal(compiled(inputs), f(inputs))
    ours, theirs = differentiable(inputs), differentiable(inputs)
    compiled(ours).sum().backward()
    f(theirs).sum().backward()
    for name in SMOOTH:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)


@pytest.mark.parametrize("op", cases.ops())
def test_inductor(op):
    """Generated code around the op, which keeps the strides of x. One small graph: compiling it is slow."""
    inputs = cases.of(op).inputs(cases.Case(6, 16, 24, 0.5, layout="transposed"))
    torch._dynamo.reset()
    compiled = torch.compile(cases.function(op), fullgraph=True, dynamic=False)
    assert torch.equal(compiled(**inputs), cases.function(op)(**inputs))


@pytest.mark.parametrize("op", cases.every_op())
def test_every_kernel_is_listed(op):
    listed = [kernel for o, kernel, _, _ in testing.kernels() if o == op]
    assert listed[-1] == f"{op}_scalar", "scalar comes last"
    assert len(set(listed)) == len(listed)
