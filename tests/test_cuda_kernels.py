# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel on every case: on the emulated grid, with a random order of threads, or on the GPU when
SPARSECORE_CUDA_ON=hardware. Whether hardware has ever proven a kernel is the ledger's to say."""

import os
import sysconfig
from itertools import pairwise
from pathlib import Path

import cases
import native
import pytest
import test_conversions
import torch
import verify
from sparsecore import ledger
from test_conversions import difference
from test_native import finite_bits, run

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CUDA = [f.stem for f in ledger.kernel_files(CSRC)]
WEIGHTS = [op for op in cases.ops() if op in CUDA]
CONVERSIONS = [op for op in cases.conversions() if op in CUDA]  # products: test_cuda_spgemm.py
UNTRUSTED = [op for op in CONVERSIONS if hasattr(cases.of(op), "broken_rows")]


def cases_of(op: str) -> list[cases.Case]:
    """All, or a few small ones where SPARSECORE_FEW_CASES is set: under compute-sanitizer each takes long."""
    every = getattr(cases.of(op), "CUDA_CASES", cases.of(op).CASES)
    if not os.environ.get("SPARSECORE_FEW_CASES"):
        return list(every)
    return [c for c in every[::5] if max(c.m, 1) * c.n * c.k < 50_000]


def variant_of(op: str) -> native.Variant:
    (variant,) = native.cuda_variants(op)
    return variant


def convert(op: str, inputs: dict, exact: tuple[torch.Tensor, ...], seed: int = 0):
    """The outputs, poisoned before, and the first row that was refused or -1."""
    outputs, outcome = test_conversions.run(variant_of(op), op, inputs, exact, seed=seed)
    return outputs, outcome["bad_row"]


@pytest.mark.parametrize("op", [*WEIGHTS, *CONVERSIONS])
def test_every_case(op):
    faults, variant = [], variant_of(op)
    for seed, case in enumerate(cases_of(op)):
        try:
            if op in WEIGHTS:
                expected = verify.expected(op, case)
                y, outcome = run(variant, op, expected.inputs, gap=seed % 2 * 5, seed=seed)
                wrong, bad = expected.fault(y.view(expected.y.shape)), outcome["bad_row"]
            else:
                inputs = cases.of(op).inputs(case)
                exact = verify.as_tuple(cases.reference(op, inputs))
                outputs, bad = convert(op, inputs, exact, seed)
                wrong = difference(outputs, exact)
            wrong = wrong or (f"refused row {bad}" if bad != -1 else "")
        except (AssertionError, ValueError) as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, len(cases_of(op)))


@pytest.mark.parametrize("op", WEIGHTS)
def test_the_order_of_threads_does_not_change_the_answer(op):
    for m in (1, 2, 4, 11):
        inputs = cases.of(op).inputs(cases.Case(m, 40, 1500, 0.3))
        answers = [run(variant_of(op), op, inputs, seed=seed)[0] for seed in range(5)]
        assert all(torch.equal(a, b) for a, b in pairwise(answers))


@pytest.mark.parametrize("op", WEIGHTS)
def test_the_module_gives_the_runner_s_bits(op, monkeypatch):
    """Both on the emulated grid."""
    monkeypatch.setenv("SPARSECORE_CUDA_ON", "emulated")
    pytest.importorskip(
        "nanobind", reason="not proven: the NumPy module runs CUDA kernels as the runner does"
    )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("not proven: the NumPy module runs CUDA kernels: no Python.h (python3-dev)")
    inputs = cases.of(op).inputs(cases.Case(5, 33, 1100, 0.4))
    by_module, _ = run(f"{op}_cuda", op, inputs, call=native.call_here, seed=3)
    assert torch.equal(by_module, run(variant_of(op), op, inputs)[0])


@pytest.mark.parametrize("op", WEIGHTS)
def test_an_absent_element_takes_no_part(op):
    """NaN in x where a row stores nothing does not reach y; stored infinities act per IEEE."""
    for m, density in ((1, 0.2), (3, 0.6), (9, 0.2)):
        expected = verify.expected(op, cases.Case(m, 40, 150, density))
        weight = cases.of(op).weight(expected.inputs)
        column = int((weight != 0).sum(0).argmin())
        absent = weight[:, column] == 0
        assert absent.any() and not absent.all()
        x = expected.inputs["x"].clone()
        for poison in (float("nan"), float("inf"), -float("inf")):
            x[:, column] = poison
            y, _ = run(variant_of(op), op, {**expected.inputs, "x": x})
            error = (y[:, absent].double() - expected.y[:, absent]).abs()
            assert (error <= expected.bound[:, absent]).all(), f"{poison} reached a row that doesn't store it"
            hit = (weight[~absent, column].sign().float() * poison).expand(m, -1)
            torch.testing.assert_close(y[:, ~absent], hit, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", WEIGHTS)
def test_a_broken_row_is_nan_and_no_other(op):
    """Whatever the arrays hold, nothing outside them is touched: the grid or the guard pages would say so."""
    for m, density in ((1, 0.2), (9, 0.6)):
        inputs = cases.of(op).inputs(cases.Case(m, 50, 120, density))
        right, _ = run(variant_of(op), op, inputs)
        broken = 0
        for name, damaged in cases.of(op).damage(inputs):
            faulty = cases.of(op).broken_rows(damaged)
            y, _ = run(variant_of(op), op, damaged)
            nan = {i for i in range(50) if y[:, i].isnan().all()}
            assert nan == faulty, f"{name}: NaN at {nan}, broken {faulty}"
            assert not y[:, [i for i in range(50) if i not in nan]].isnan().any()
            broken += bool(nan)
        assert broken > 5 and not right.isnan().any()


@pytest.mark.parametrize("op", UNTRUSTED)
def test_a_broken_row_is_converted_to_nan(op):
    """All of a dense row; of a compressed one what the fault is in, or its scale."""
    inputs = cases.of(op).inputs(cases.Case(0, 50, 120, 0.4))
    exact, broken = verify.as_tuple(cases.reference(op, inputs)), 0
    for name, damaged in cases.of(op).damage(inputs):
        faulty = cases.of(op).broken_rows(damaged)
        like = exact if len(exact) == 1 else verify.as_tuple(cases.reference(op, damaged))
        made, _ = convert(op, damaged, like)
        nan = {i for i in range(50) for t in made if t.numel() and t[i].isnan().any()}
        assert nan == faulty, f"{name}: {nan}, broken {faulty}"
        assert len(made) > 1 or all(made[0][i].isnan().all() for i in nan)
        broken += bool(nan)
    assert broken > 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", WEIGHTS)
def test_16_bit_numbers_are_read_and_rounded_right(op, dtype):
    """Products with an identity are exact, so that y shows each conversion bit for bit (but for -0)."""
    on_hardware = variant_of(op).runner == "hardware"
    # Emulated, conversions are those of csrc/core/dtype.h, which the CPU's kernels prove: every 16th number.
    eye, number = torch.eye(64), finite_bits(dtype).view(1024, 64)[:: 1 if on_hardware else 16]
    made, n = cases.of(op).inputs, len(number)
    fill = lambda inputs, numbers: {**inputs, "values": numbers.reshape(inputs["values"].shape)}
    stored = fill(made(cases.Case(1, n, 64, 1.0, value=dtype)), number)
    y, _ = run(variant_of(op), op, {**stored, "x": eye})
    assert torch.equal(y, number.float().T)
    identity = fill(made(cases.Case(1, 64, 64, 1.0)), eye)
    y, _ = run(variant_of(op), op, {**identity, "x": number})
    assert torch.equal(y, number)
    wide = torch.randint(-(2**31), 2**31, (1024, 64), generator=torch.Generator().manual_seed(1)).int()[:n]
    wide = torch.where(wide.view(torch.float32).isfinite(), wide, 0).view(torch.float32)
    halfway = (wide.view(torch.int32) & -(2**16) | 2**15).view(torch.float32)  # ties of bfloat16
    plain = made(cases.Case(1, n, 64, 1.0))
    for numbers in (wide, halfway, wide / 2.0**100, wide.clamp(-70000, 70000)):
        y, _ = run(variant_of(op), op, {**fill(plain, numbers), "x": eye[5:6].to(dtype)})
        assert torch.equal(y[0], numbers[:, 5].to(dtype))


@pytest.mark.parametrize("op", CUDA)
def test_hardware_has_proven_the_kernel_as_it_is(op):
    """Skips, which shows, until `make device` has run on this very text."""
    (file,) = [f for f in ledger.kernel_files(CSRC) if f.stem == op]
    name = file.relative_to(CSRC).as_posix()
    status = ledger.status(name, ledger.digest(file, CSRC), ledger.read(ROOT / ledger.LEDGER))
    if not status.startswith("proven"):
        pytest.skip(f"not proven on hardware: {op}: {status}")
