# SPDX-License-Identifier: Apache-2.0
"""Every kernel variant of every processor by name, behind guard pages, against the float64 reference.

ARM's run under emulation. Outputs are NaN before the call, x's rows are apart with NaN between, and
every plan a kernel can be given is reached at small sizes by overriding it.
"""

import math
import platform
import shutil
import sysconfig
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

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
                plans.add((outcome["tile"], outcome["dense_tiles"]))
                wrong = expected.fault(y.view(expected.y.shape))
                if outcome["bad_row"] != -1:
                    wrong = f"refused row {outcome['bad_row']}"
                elif not torch.equal(y.nan_to_num(), split.nan_to_num()):
                    wrong = wrong or f"{pieces} pieces give other bits than 1"
                if wrong:
                    faults.append(f"{variant.name} {case.name} {regime}: {wrong}")
    verify.report(faults, ran)
    if isa != "scalar":
        assert {tile > 0 for tile, _ in plans} == {False, True}, f"only plans {plans} were reached"


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_an_absent_element_takes_no_part(op, isa):
    """NaN in x where a row stores nothing does not reach y; stored infinities act per IEEE."""
    for variant, m, density in product(usable(op, isa), (1, 6, 40), (0.2, 0.6)):
        expected = verify.expected(op, cases.Case(m, 40, 150, density))
        weight = cases.of(op).weight(expected.inputs)
        column = int((weight != 0).sum(0).argmin())
        absent = weight[:, column] == 0
        assert absent.any() and not absent.all()
        x = expected.inputs["x"].clone()
        for poison in (float("nan"), float("inf"), -float("inf")):
            x[:, column] = poison
            y, _ = run(variant, op, {**expected.inputs, "x": x})
            error = (y[:, absent].double() - expected.y[:, absent]).abs()
            assert (error <= expected.bound[:, absent]).all(), f"{poison} reached a row that doesn't store it"
            hit = (weight[~absent, column].sign().float() * poison).expand(m, -1)
            torch.testing.assert_close(y[:, ~absent], hit, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_a_broken_row_is_refused(op, isa):
    """A bad row comes back, whatever the plan, and nothing is touched outside the arrays."""
    scalar = usable(op, "scalar")[0]
    for variant in usable(op, isa):
        for m, density in product((1, 9), (0.2, 0.6)):
            inputs = cases.of(op).inputs(cases.Case(m, 50, 120, density, index=cases.of(op).CASES[0].index))
            refused = 0
            for name, damaged in cases.of(op).damage(inputs):
                bad = run(variant, op, damaged)[1]["bad_row"]
                # The ends of the offsets are not a row's: op.cpp looks at them.
                assert (bad >= 0) == (run(scalar, op, damaged)[1]["bad_row"] >= 0), f"{name}: row {bad}"
                if bad >= 0:
                    alone = run(scalar, op, damaged, row=bad)[1]["bad_row"]
                    assert alone == bad, f"{name}: row {bad} is right"
                    refused += 1
            assert refused > 5


@pytest.mark.parametrize("op", cases.ops())
def test_the_module_gives_the_runner_s_bits(op):
    pytest.importorskip("nanobind", reason="not proven: the NumPy module gives what the runner gives")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("not proven: the NumPy module gives what the runner gives: no Python.h (python3-dev)")
    inputs = cases.of(op).inputs(cases.Case(5, 33, 70, 0.4))
    here = [v for v in native.variants(op) if v.runner == "here" and not v.missing]
    assert {name for _, name, _, _ in native.module().list()} >= {v.name for v in here}
    for variant in here:
        by_module, _ = run(variant.name, op, inputs, call=native.call_here)
        assert torch.equal(by_module, run(variant, op, inputs)[0])


@pytest.mark.parametrize("isa", ["scalar", "neon"])
def test_a_read_past_an_array_kills_the_runner(isa):
    """The guard pages work: a bias one element short must not go unnoticed, and the next call runs."""
    variant = usable("spmm_csr", isa)[0]
    inputs = cases.of("spmm_csr").inputs(cases.Case(1, 4, 8, 1.0, bias=True))
    with pytest.raises(native.Crash):
        run(variant, "spmm_csr", {**inputs, "bias": inputs["bias"][:-1]})
    run(variant, "spmm_csr", inputs)


OLD = {"Nehalem": ("scalar", "this CPU lacks avx2"), "Haswell": ("avx2", "this CPU lacks avx512")}


@pytest.mark.parametrize("model", OLD)
@pytest.mark.parametrize("op", cases.ops())
def test_an_older_cpu_runs_what_is_offered_to_it(op, model):
    """Emulated, as an instruction that the model lacks ends the process: in a kernel, or in code that
    kernels of different ISAs share and that the linker took from the wrong one."""
    if not shutil.which("qemu-x86_64-static") or platform.machine() != "x86_64":
        pytest.skip(f"not proven: {op} on a {model}: apt install qemu-user-static, on x86")
    isa, lacks = OLD[model]
    listed = {name: (i, missing) for o, name, i, missing in native.runner(model).list() if o == op}
    newer = {"avx2", "avx512"} - {isa}
    assert all(missing.startswith(lacks) for i, missing in listed.values() if i in newer), listed
    for variant in usable(op, "scalar" if f"{op}_{isa}" not in listed else isa):
        assert listed[variant.name][1] == "-"
        for case in cases.of(op).CASES[::7]:
            if case.m * case.n * case.k < 100_000:
                inputs = cases.of(op).inputs(case)
                there, _ = run(replace(variant, runner=model), op, inputs)
                here, _ = run(variant, op, inputs)
                assert torch.equal(there, here), case.name


def finite_bits(dtype: torch.dtype) -> torch.Tensor:
    """All 65536 bit patterns of a 16-bit float, those of NaN and infinity as 0."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    return torch.where(every.isfinite(), every, 0)


@pytest.mark.parametrize("op, isa", verify.op_isas())
def test_every_16_bit_number_is_read_and_rounded_right(op, isa):
    """Products with an identity are exact, so that y shows each conversion bit for bit (but for -0)."""
    eye = torch.eye(64)
    wide = torch.randint(-(2**31), 2**31, (1024, 64), generator=torch.Generator().manual_seed(1)).int()
    wide = torch.where(wide.view(torch.float32).isfinite(), wide, 0).view(torch.float32)
    halfway = (wide.view(torch.int32) & -(2**16) | 2**15).view(torch.float32)  # ties of bfloat16
    for variant in usable(op, isa):
        for dtype in (torch.bfloat16, torch.float16):
            number = finite_bits(dtype).view(1024, 64)
            stored = cases.of(op).inputs(cases.Case(1, 1024, 64, 1.0, value=dtype))
            stored["values"] = number.view(stored["values"].shape)
            y, _ = run(variant, op, {**stored, "x": eye})
            assert torch.equal(y, number.float().T)
            for column in range(0, 64, 7):
                y, _ = run(variant, op, {**stored, "x": eye[column : column + 1]})
                assert torch.equal(y[0], number[:, column].float())
            identity = cases.of(op).inputs(cases.Case(1, 64, 64, 1.0))
            identity["values"] = eye.view(identity["values"].shape)
            y, _ = run(variant, op, {**identity, "x": number})
            assert torch.equal(y, number)
            y, _ = run(variant, op, {**identity, "x": number[300:301]})
            assert torch.equal(y, number[300:301])
            plain = cases.of(op).inputs(cases.Case(1, 1024, 64, 1.0))
            for numbers in (wide, halfway, wide / 2.0**100, wide.clamp(-70000, 70000)):
                numbers_stored = numbers.view(plain["values"].shape)
                y, _ = run(variant, op, {**plain, "values": numbers_stored, "x": eye.to(dtype)})
                assert torch.equal(y, numbers.T.to(dtype))
