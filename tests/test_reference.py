# SPDX-License-Identifier: Apache-2.0
"""Every op through torch against its float64 reference, on every case and every ISA of this CPU."""

from itertools import product

import cases
import pytest
import torch
import verify
from sparsecore import testing


def usable(op: str) -> dict[str, str]:
    """{isa: kernel} of op that this CPU runs."""
    return {isa: kernel for o, kernel, isa, missing in testing.kernels() if o == op and not missing}


@pytest.mark.parametrize("op", cases.ops())
def test_the_reference_is_the_equation(op):
    faults, ran = [], 0
    for case in cases.of(op).CASES:
        inputs, weight = (
            verify.expected(op, case).inputs,
            cases.of(op).weight(verify.expected(op, case).inputs),
        )
        bias = 0 if inputs["bias"] is None else inputs["bias"].double()
        x = inputs["x"].double()
        y, size = x @ weight.T + bias, x.abs() @ weight.T.abs()
        ran += 1
        if not ((cases.reference(op, inputs) - y).abs() <= 1e-12 * (size + abs(bias))).all():
            faults.append(case.name)
    verify.report(faults, ran)


@pytest.mark.parametrize("op", cases.ops())
def test_every_case(op):
    function, isas = cases.function(op), usable(op)
    assert isas.get("scalar") == f"{op}_scalar"
    faults, ran = [], 0
    for case in cases.of(op).CASES:
        expected = verify.expected(op, case)
        plain = case.layout == "plain"
        # Between bands of NaN and wild indices, where the layout of x is not itself what is tried.
        inputs = {
            name: testing.guarded(t) if t is not None and (plain or name != "x") else t
            for name, t in expected.inputs.items()
        }
        rows = expected.y.numel() // max(expected.y.shape[-1], 1)
        for isa, kernel in isas.items():  # innermost, so that a kernel that stays the same shows
            ran += 1
            with testing.force_isa(isa):
                y = function(**inputs)
                fault = expected.fault(y)
                if rows and testing.last_kernel() != kernel:
                    fault = f"ran {testing.last_kernel()}"
                out = torch.full_like(y, float("nan"))
                if function(**inputs, out=out) is not out or not torch.equal(out, y):
                    fault = fault or "out= gives other bits"
            if fault:
                faults.append(f"{isa} {case.name}: {fault}")
        for name, t in expected.inputs.items():
            if t is not None and not torch.equal(inputs[name], t):
                faults.append(f"{case.name}: {name} was written")
    verify.report(faults, ran)


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_isa_is_proven_through_torch(op, isa):
    """One line for each ISA that test_every_case could not run here."""
    if isa not in usable(op):
        pytest.skip(f"not proven here: {op} on {isa} through torch (its kernel by name: test_native)")


@pytest.mark.parametrize("op", cases.ops())
def test_an_absent_element_takes_no_part(op):
    """NaN in x where a row stores nothing does not reach y; stored NaN and infinity act per IEEE."""
    for isa, density in product(usable(op), (0.2, 0.6)):
        expected = verify.expected(op, cases.Case(5, 30, 90, density))
        inputs, weight = expected.inputs, cases.of(op).weight(expected.inputs)
        close = lambda y, rows: ((y[:, rows] - expected.y[:, rows]).abs() <= expected.bound[:, rows]).all()  # noqa: B023
        absent = weight[:, 11] == 0
        assert absent.any() and not absent.all()
        with testing.force_isa(isa):
            x = inputs["x"].clone()
            x[:, 11] = float("nan")
            y = cases.function(op)(**{**inputs, "x": x})
            assert close(y, absent)
            assert y[:, ~absent].isnan().all()
            values = inputs["values"].clone()
            stored = values.view(-1).nonzero()  # what pads a row of values is 0 and takes no part
            values.view(-1)[stored[0]], values.view(-1)[stored[-1]] = float("inf"), float("nan")
            first, *others, last = (weight != 0).any(1).nonzero().flatten().tolist()
            y = cases.function(op)(**{**inputs, "values": values})
            column = int((weight[first] != 0).nonzero()[0])
            assert torch.equal(y[:, first], inputs["x"][:, column].sign() * float("inf"))
            assert y[:, last].isnan().all()
            assert close(y, others)


@pytest.mark.parametrize("op", cases.ops())
def test_a_sum_past_float16_is_infinite(op):
    inputs = cases.of(op).inputs(cases.Case(3, 8, 64, 1.0, dtype=torch.float16))
    inputs["x"] = torch.full_like(inputs["x"], 60000.0)
    inputs["values"] = inputs["values"].abs() + 0.5
    for isa in usable(op):
        with testing.force_isa(isa):
            assert torch.equal(
                cases.function(op)(**inputs), torch.full((3, 8), float("inf"), dtype=torch.float16)
            )


@pytest.mark.parametrize("op", cases.ops())
def test_the_bound_is_tight_enough_to_catch_a_lost_element(op):
    """Of all cases with a reasonable row, none would let the loss of one product of median size pass."""
    case = cases.Case(4, 20, 200, 0.3)
    expected = verify.expected(op, case)
    y = cases.function(op)(**expected.inputs).clone()
    assert not expected.fault(y)
    weight = cases.of(op).weight(expected.inputs)
    column = int((weight[7] != 0).nonzero()[0])
    y[2, 7] -= (weight[7, column] * expected.inputs["x"][2, column]).float()
    assert "y[2, 7]" in expected.fault(y)
