# SPDX-License-Identifier: Apache-2.0
"""Activation and residual of spmm_nm: kernels against float64, gradients, every format through linear."""

from itertools import product

import cases
import native
import pytest
import sparsecore
import torch
import verify
from sparsecore import Bitmap, Csr, Nm, testing
from sparsecore.ops import spmm_nm, spmm_nm_fused
from test_native import usable

ACTIVATIONS = spmm_nm_fused.ACTIVATIONS
SLOPE = 1.13  # of gelu, the steepest
U = 2.0**-24


def bound(inputs, z, y):
    """What the sum may be off by, through the slope; an activation's roundings; one of the output."""
    sums = testing.error_bound(inputs["x"], cases.of("spmm_nm").weight(inputs), inputs["bias"], z)
    sums -= testing.output_rounding(z, inputs["x"].dtype)
    return (
        SLOPE * sums + 8 * U * (z.abs() + y.abs()) + testing.output_rounding(y, inputs["x"].dtype) + 2.0**-120
    )


def few():
    """Every way through a row: words of 1, 2 and 4 rows, lists, a fan-in's gathers, panels, tiles."""
    for i, (m, pattern) in enumerate(
        product((1, 2, 5, 17, 70), ("2:4", "4:8", "6:8", "1:4", "1:8", "9:0", "64:0"))
    ):
        value = (*cases.FLOATS, torch.int8, torch.float8_e4m3fn)[i % 5]
        yield cases.Case(m, 37, 150, 0.5, pattern, dtype=cases.FLOATS[i % 3], value=value, bias=i % 2 == 0)


@pytest.mark.parametrize("isa", [*verify.isas("spmm_nm"), "cuda"])
def test_every_kernel_finishes_its_sums(isa):
    sample, faults, ran = cases.of("spmm_nm"), [], 0
    for variant in native.cuda_variants("spmm_nm") if isa == "cuda" else usable("spmm_nm", isa):
        for i, case in enumerate(few()):
            inputs = sample.inputs(case)
            z = cases.reference("spmm_nm", inputs)
            arrays, integers = sample.native(inputs)
            arrays |= {"x": inputs["x"]} | ({} if inputs["bias"] is None else {"bias": inputs["bias"]})
            for code, name in enumerate(ACTIVATIONS):
                residual = torch.randn(case.m, case.n).to(case.dtype) if (i + code) % 2 else None
                y = torch.full((case.m, case.n), float("nan"), dtype=case.dtype)
                extra = {} if residual is None else {"residual": residual}
                made = native.call(variant, arrays | extra, {"y": y}, k=case.k, activation=code, **integers)
                exact = spmm_nm_fused.finished(z, name, None if residual is None else residual.double())
                ran += 1
                if not made["intact"] or not ((y.double() - exact).abs() <= bound(inputs, z, exact)).all():
                    worst = ((y.double() - exact).abs() - bound(inputs, z, exact)).max().item()
                    faults.append(f"{variant.name} {case.name} {name}: {worst:.3g} past the bound")
    verify.report(faults, ran)


@pytest.mark.parametrize("name", ACTIVATIONS[1:])
def test_activations_over_all_numbers(name):
    """One weight of 1 a row, so that z is x: small and large, zeros, infinities and NaN."""
    weight = Nm.from_dense(torch.eye(64), 1, 8)
    z = torch.cat(
        [torch.linspace(-30, 30, 20000), torch.logspace(-30, 30, 4000), -torch.logspace(-30, 30, 4000)]
    )
    for isa in {k[2] for k in testing.kernels() if k[0] == "spmm_nm" and not k[3]}:
        with testing.force_isa(isa):
            y = sparsecore.linear(z[: len(z) // 64 * 64].view(-1, 64), weight, activation=name).flatten()
            exact = spmm_nm_fused.finished(z[: len(y)].double(), name, None)
            error = (y.double() - exact).abs()
            assert (error <= 6 * U * z[: len(y)].double().abs() + 2.0**-140).all(), error.max()
            special = torch.tensor([[0.0, torch.inf, torch.nan, -1e38, 1e38, *[0.0] * 59]])
            y = sparsecore.linear(special, weight, activation=name)[0]
            assert y[:2].tolist() == [0, torch.inf] and y[2].isnan() and y[3] == 0 and y[4] == special[0, 4]


def sample(dtype=torch.float32, lead=(3,)):
    torch.manual_seed(len(lead))
    weight = Nm.from_dense(torch.randn(20, 40), 2, 4, dtype=dtype)
    return [
        torch.randn(*lead, 40).to(dtype),
        weight.values,
        weight.positions,
        None,
        torch.randn(20).to(dtype),
        torch.randn(*lead, 20).to(dtype),
    ]


@pytest.mark.parametrize("code", range(5))
def test_opcheck_and_gradients(code):
    op = torch.ops.sparsecore.spmm_nm_fused.default
    for lead in ((3,), (), (2, 2), (0,)):
        args = sample(lead=lead)
        torch.library.opcheck(op, (*args, code))
        leaves = [a.clone().requires_grad_() if a is not None and a.is_floating_point() else a for a in args]
        torch.library.opcheck(op, (*leaves, code))
        exact = [
            a.detach().double().requires_grad_() if a is not None and a.is_floating_point() else a
            for a in args
        ]
        y, reference = op(*leaves, code), spmm_nm_fused.reference(*exact, code)
        torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-5)
        grad = torch.randn_like(y)
        y.backward(grad)
        reference.backward(grad.double())
        for ours, theirs in zip(leaves, exact, strict=True):
            if isinstance(ours, torch.Tensor) and ours.requires_grad:
                torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.ops.sparsecore._spmm_nm_fused(*args, code), y)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("kind", ["nm", "csr", "bitmap", "dense", "sparse_csr"])
def test_linear_finishes_for_every_format(kind, dtype):
    w = testing.random_weight(24, 64, 0.5, pattern="2:4").to(dtype)
    weight = {
        "nm": lambda: Nm.from_dense(w, 2, 4),
        "csr": lambda: Csr.from_dense(w),
        "bitmap": lambda: Bitmap.from_dense(w),
        "dense": lambda: w,
        "sparse_csr": lambda: w.float().to_sparse_csr(),
    }[kind]()
    x = torch.randn(2, 5, 64).to(dtype)
    bias, residual = torch.randn(24).to(dtype), torch.randn(5, 2, 24).to(dtype).transpose(0, 1)
    z = torch.nn.functional.linear(x.double(), w.double(), bias.double())
    eps = 8 * torch.finfo(dtype).eps
    for name in (None, *ACTIVATIONS):
        for added in (None, residual):
            exact = spmm_nm_fused.finished(z, name, None if added is None else added.double())
            y = sparsecore.linear(x, weight, bias, activation=name, residual=added)
            assert y.dtype is dtype
            torch.testing.assert_close(y.double(), exact, rtol=eps, atol=8 * eps)
            out = torch.empty_like(y)
            assert sparsecore.linear(x, weight, bias, activation=name, residual=added, out=out) is out
            torch.testing.assert_close(out.double(), exact, rtol=eps, atol=8 * eps)


def test_linear_compiles_with_an_activation():
    weight = Nm.from_dense(torch.randn(24, 64), 2, 4)

    def f(x, residual):
        return sparsecore.linear(x * 2, weight, activation="gelu", residual=residual)

    x, residual = torch.randn(3, 64), torch.randn(3, 24)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, residual), f(x, residual))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(ours, residual).sum().backward()
    f(theirs, residual).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bad_activation_or_residual_is_named():
    x, values, positions, scales, bias, residual = sample()
    op = spmm_nm_fused.spmm_nm_fused
    for bad in (-1, 5):
        with pytest.raises(RuntimeError, match=r"^activation: "):
            op(x, values, positions, scales, bias, residual, bad)
    for bad in (residual[0], residual[:, :-1], residual[:2], residual.double()):
        with pytest.raises(RuntimeError, match=r"^residual: "):
            op(x, values, positions, scales, bias, bad, 1)
    weight = Nm(values, positions, (20, 40))
    for made in (weight, weight.to_dense(), Csr.from_dense(weight.to_dense())):
        with pytest.raises(ValueError, match=r"^activation: must be one of none, relu, .* not 'elu'"):
            sparsecore.linear(x, made, activation="elu")
        with pytest.raises((ValueError, RuntimeError), match=r"^residual: "):
            sparsecore.linear(x, made, residual=residual[:, :-1])
    assert torch.equal(spmm_nm.spmm_nm(x, values, positions), op(x, values, positions))
