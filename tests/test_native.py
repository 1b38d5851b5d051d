# SPDX-License-Identifier: Apache-2.0
"""Every kernel variant of every processor by name, behind guard pages, against the float64 reference.

ARM's run under emulation. Outputs are NaN before the call, x's rows are apart with NaN between, and
every plan a kernel can be given is reached at small sizes by overriding it.
"""

import math
from dataclasses import replace
from itertools import cycle

import cases
import native
import pytest
import torch
import verify

TILES = (4, 8, 16, 32)
COLUMNS = (1, 7, 64)
PIECES = (1, 3, 8)


def usable(op: str, isa: str) -> list[native.Variant]:
    """The variants of op for an ISA; skips, saying why, when they can't run."""
    found = [v for v in native.variants(op) if v.isa == isa]
    if found and found[0].missing:
        pytest.skip(f"not proven: {found[0].name}: {found[0].missing}")
    assert found, f"{op}_{isa}.cpp has no variant in the op's table"
    return found


def apart(x: torch.Tensor, gap: int) -> torch.Tensor:
    """x as [m, k + gap] with NaN in the gap."""
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return torch.nn.functional.pad(x, (0, gap), value=float("nan"))


def run(variant, op: str, inputs: dict, call=native.call, gap: int = 0, **overrides: int):
    """y [m, n] and the outcome; fails when the kernel wrote outside y."""
    arrays, integers = cases.of(op).native(inputs)
    x = apart(inputs["x"], gap)
    n = cases.of(op).rows(inputs)
    y = torch.full((x.shape[0], n + gap), float("nan"), dtype=x.dtype)
    if inputs["bias"] is not None:
        arrays = {**arrays, "bias": inputs["bias"]}
    outcome = call(variant, {**arrays, "x": x}, {"y": y}, k=inputs["x"].shape[-1], **integers, **overrides)
    assert outcome.pop("intact"), "wrote outside its arrays"
    assert y[:, n:].isnan().all(), "wrote between the rows of y"
    return y[:, :n], outcome


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_every_case(op, isa):
    faults, ran, plans = [], 0, set()
    choices = zip(cycle(TILES), cycle(COLUMNS), cycle(PIECES), strict=False)
    for variant in usable(op, isa):
        for case, (tile, columns, pieces) in zip(cases.of(op).CASES, choices, strict=False):
            expected = verify.expected(op, case)
            regimes = [{"gap": ran % 2 * 5}]
            regimes += [{"tile": tile, "k_block": columns + case.k // 4}] * (case.m > 1)
            for regime in regimes:
                ran += 1
                try:
                    y, outcome = run(variant, op, expected.inputs, **regime)
                    split, _ = run(variant, op, expected.inputs, **regime, pieces=pieces)
                except AssertionError as error:
                    faults.append(f"{variant.name} {case.name} {regime}: {error}")
                    continue
                plans.add((outcome["tile"], outcome["k_block"] < case.k, outcome["packed_floats"] > 0))
                wrong = expected.fault(y.view(expected.y.shape))
                if outcome["bad_row"] != -1:
                    wrong = f"refused row {outcome['bad_row']}"
                elif not torch.equal(y.nan_to_num(), split.nan_to_num()):
                    wrong = wrong or f"{pieces} pieces give other bits than 1"
                if wrong:
                    faults.append(f"{variant.name} {case.name} {regime}: {wrong}")
    verify.report(faults, ran)
    if isa != "scalar":
        tiles = {tile for tile, *_ in plans}
        assert 0 in tiles and len(tiles) > 1, f"only plans {plans} were reached"


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_an_absent_element_takes_no_part(op, isa):
    """NaN in x where a row stores nothing does not reach y; stored infinities act per IEEE."""
    case = cases.Case(6, 40, 150, 0.2)
    for variant in usable(op, isa):
        for m in (1, 6):
            inputs = dict(cases.of(op).inputs(replace(case, m=m)))
            weight = cases.of(op).weight(inputs)
            column = int((weight != 0).sum(0).argmax())
            x = inputs["x"] = inputs["x"].clone()
            clean, _ = run(variant, op, inputs)
            for poison in (float("nan"), float("inf"), -float("inf")):
                x[:, column] = poison
                y, _ = run(variant, op, inputs)
                absent = weight[:, column] == 0
                assert torch.equal(y[:, absent], clean[:, absent]), f"{poison} reached a row that doesn't store it"
                hit = (weight[~absent, column].sign().float() * poison).expand(m, -1)
                torch.testing.assert_close(y[:, ~absent], hit, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_a_broken_row_is_refused(op, isa):
    """The first bad row comes back, whatever the plan, and nothing is touched outside the arrays."""
    for variant in usable(op, isa):
        for m in (1, 9):
            inputs = cases.of(op).inputs(cases.Case(m, 50, 120, 0.3, value=cases.of(op).CASES[0].value))
            ran = 0
            for name, damaged in cases.of(op).damage(inputs):
                reference = {v.name: run(v, op, damaged)[1]["bad_row"] for v in (variant, usable(op, "scalar")[0])}
                assert len(set(reference.values())) == 1, f"{name}: first bad row is {reference}"
                ran += 1
            assert ran > 5


@pytest.mark.parametrize("op", cases.ops())
def test_the_module_gives_the_runner_s_bits(op):
    pytest.importorskip("nanobind", reason="not proven: the NumPy module gives what the runner gives")
    inputs = cases.of(op).inputs(cases.Case(5, 33, 70, 0.4))
    here = [v for v in native.variants(op) if v.runner == "here" and not v.missing]
    assert {name for _, name, _, _ in native.module().list()} >= {v.name for v in here}
    for variant in here:
        by_module, _ = run(variant.name, op, inputs, call=native.call_here)
        assert torch.equal(by_module, run(variant, op, inputs)[0])


@pytest.mark.parametrize("runner", ["here", "aarch64"])
def test_a_read_past_an_array_kills_the_runner(runner):
    """The guard pages work: a bias one element short must not go unnoticed, and the next call runs."""
    variant = next(v for v in native.variants("spmm_csr") if v.runner == runner)
    if variant.missing:
        pytest.skip(f"not proven: guard pages under emulation: {variant.missing}")
    inputs = cases.of("spmm_csr").inputs(cases.Case(1, 4, 8, 1.0, bias=True))
    with pytest.raises(native.Crash):
        run(variant, "spmm_csr", {**inputs, "bias": inputs["bias"][:-1]})
    run(variant, "spmm_csr", inputs)
