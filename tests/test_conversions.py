# SPDX-License-Identifier: Apache-2.0
"""Conversions between formats: the reference's bits, on every case, ISA, number of threads and pieces."""

import platform
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import cases
import native
import pytest
import torch
import verify
from sparsecore import Bitmap, Csr, testing
from torch._subclasses.fake_tensor import FakeTensorMode

OPS = cases.conversions()
OP_ISAS = [(op, isa) for op in OPS for isa in verify.isas(op)]
DAMAGED = [op for op in OPS if hasattr(cases.of(op), "damage")]
SMALL = cases.Case(0, 12, 70, 0.4)


def usable(op: str) -> dict[str, str]:
    """{isa: kernel} of op that this CPU runs."""
    return {isa: kernel for o, kernel, isa, missing in testing.kernels() if o == op and not missing}


@cache
def expected(op: str, case: cases.Case) -> tuple[dict, tuple[torch.Tensor, ...]]:
    inputs = cases.of(op).inputs(case)
    return inputs, verify.as_tuple(cases.reference(op, inputs))


def difference(actual, exact: tuple[torch.Tensor, ...]) -> str:
    """'' when all bits are alike but those that say which NaN."""
    for i, (a, e) in enumerate(zip(verify.as_tuple(actual), exact, strict=True)):
        if a.dtype is not e.dtype or a.shape != e.shape:
            return f"output {i}: {a.dtype} {list(a.shape)} instead of {e.dtype} {list(e.shape)}"
        integer = {4: torch.int32, 2: torch.int16, 1: torch.uint8}.get(
            a.element_size() if a.is_floating_point() else 0, a.dtype
        )
        wrong = (a.view(integer) != e.view(integer)) & ~(a.isnan() & e.isnan())
        if wrong.any():
            at = tuple(int(j) for j in wrong.nonzero()[0])
            return f"output {i}{list(at)} is {a[at].item()!r}, not {e[at].item()!r}; {int(wrong.sum())} wrong"
    return ""


@pytest.mark.parametrize("op", OPS)
def test_every_case(op):
    isas, faults, ran = usable(op), [], 0
    assert isas.get("scalar") == f"{op}_scalar"
    for case in cases.of(op).CASES:
        inputs, exact = expected(op, case)
        guarded = {
            n: testing.guarded(t) if isinstance(t, torch.Tensor) and case.layout == "plain" else t
            for n, t in inputs.items()
        }
        for isa, kernel in isas.items():
            ran += 1
            with testing.force_isa(isa):
                fault = difference(cases.function(op)(**guarded), exact)
                if testing.last_kernel() != kernel:
                    fault = f"ran {testing.last_kernel()}"
            if fault:
                faults.append(f"{isa} {case.name}: {fault}")
    verify.report(faults, ran)


def run(variant, op: str, inputs: dict, exact: tuple[torch.Tensor, ...], call=native.call, **more: int):
    """Outputs, poisoned before, and the outcome."""
    given, names, integers = cases.of(op).native(inputs)
    outputs = {n: torch.empty_like(e) for n, e in zip(names, exact, strict=True)}
    for t in outputs.values():
        t.fill_(float("nan") if t.is_floating_point() else -1 if t.dtype is not torch.uint8 else 255)
    outcome = call(variant, given, outputs, **integers, **more)
    assert outcome["intact"], "wrote outside its arrays"
    return tuple(outputs.values()), outcome


@pytest.mark.parametrize("op, isa", OP_ISAS)
def test_every_case_behind_guard_pages(op, isa):
    variant = next(v for v in native.variants(op) if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    faults, ran = [], 0
    for case in cases.of(op).CASES:
        inputs, exact = expected(op, case)
        for pieces in (1, 3):
            ran += 1
            try:
                outputs, outcome = run(variant, op, inputs, exact, pieces=pieces)
            except AssertionError as error:
                faults.append(f"{case.name}: {error}")
                continue
            fault = "refused" if outcome["bad_row"] != -1 else difference(outputs, exact)
            if fault:
                faults.append(f"{case.name} in {pieces} pieces: {fault}")
    verify.report(faults, ran)


@pytest.mark.parametrize("model", ["Nehalem", "Haswell", "aarch64"])
@pytest.mark.parametrize("op", OPS)
def test_another_cpu_gives_the_same_bits(op, model):
    """Emulated: the best kernel that the model is offered."""
    missing = native.emulation_missing() if model == "aarch64" else ""
    if missing or not shutil.which("qemu-x86_64-static") or platform.machine() != "x86_64":
        pytest.skip(f"not proven: {op} on a {model}: {missing or 'apt install qemu-user-static, on x86'}")
    offered = [name for o, name, _, lacks in native.runner(model).list() if o == op and lacks == "-"]
    variant = replace(native.variants(op)[0], name=offered[0], runner=model)
    faults, sample = [], [c for c in cases.of(op).CASES if c.n * c.k < 100_000][::3]
    for case in sample:
        inputs, exact = expected(op, case)
        if fault := difference(run(variant, op, inputs, exact)[0], exact):
            faults.append(f"{case.name}: {fault}")
    verify.report(faults, len(sample))


def refused(op: str, name: str, inputs: dict) -> str:
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        cases.function(op)(**inputs)
    text = str(caught.value).split("\n")[0]
    assert re.search(rf"(^|, )({name}): ", text), f"{op}: an error about {name} says: {text}"
    return text


@pytest.mark.parametrize("op", OPS)
def test_shapes_and_dtypes(op):
    misfits = list(cases.of(op).misfits(cases.of(op).inputs(SMALL)))
    assert len(misfits) > 8
    for name, wrong in misfits:
        refused(op, name, wrong)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("op", DAMAGED)
def test_broken_invariants(op, threads):
    before, ran = torch.get_num_threads(), 0
    torch.set_num_threads(threads)
    try:
        for index in {case.index for case in cases.of(op).CASES}:
            case = cases.Case(0, 50 if threads == 1 else 1500, 150, 0.5, index=index)
            for name, damaged in cases.of(op).damage(cases.of(op).inputs(case)):
                for isa in usable(op):
                    with testing.force_isa(isa):
                        assert re.search(r"-?\d", refused(op, name, damaged))
                        ran += 1
    finally:
        torch.set_num_threads(before)
    assert ran > 15


@pytest.mark.parametrize("op, isa", [pair for pair in OP_ISAS if pair[0] in DAMAGED])
def test_a_broken_row_is_refused(op, isa):
    """A bad row comes back, and nothing is touched outside the arrays."""
    variant = next(v for v in native.variants(op) if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    case = cases.Case(0, 50, 120, 0.3, index=cases.of(op).CASES[0].index)
    inputs, exact = expected(op, case)
    refused = 0
    for name, damaged in cases.of(op).damage(inputs):
        bad = run(variant, op, damaged, exact)[1]["bad_row"]
        if bad >= 0:
            alone = run(variant, op, damaged, exact, row=bad)[1]["bad_row"]
            assert alone == bad, f"{name}: row {bad} is right"
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_the_answer(op):
    before = torch.get_num_threads()
    try:
        for pattern, value in (("power_law", torch.float32), ("one_dense_row", torch.bfloat16)):
            case = cases.Case(0, 1500, 310, 0.3, pattern, value=value)
            inputs, exact = expected(op, case)
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                assert not difference(cases.function(op)(**inputs), exact)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_calls_from_several_threads(op):
    samples = [expected(op, cases.Case(0, 100 + i, 90 * i, 0.3)) for i in range(5)]

    def work(start: int) -> bool:
        order = [samples[(start + i) % len(samples)] for i in range(60)]
        return not any(difference(cases.function(op)(**inputs), exact) for inputs, exact in order)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    overload = getattr(torch.ops.sparsecore, op).default
    for value in {case.value for case in cases.of(op).CASES}:
        for n, k in ((12, 70), (0, 5), (3, 0)):
            inputs = cases.of(op).inputs(cases.Case(0, n, k, 0.4, value=value))
            # To look for writes torch multiplies arguments, which it can't do in float8.
            checks = ["test_schema"] * (value is not cases.f8)
            checks += ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
            torch.library.opcheck(overload, tuple(inputs.values()), test_utils=checks)


@pytest.mark.parametrize("op", OPS)
def test_the_fake_has_the_shape_and_dtype_of_the_result(op):
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    for value in {case.value for case in cases.of(op).CASES}:
        inputs, exact = expected(op, replace(SMALL, value=value))
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            like = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
            fakes = verify.as_tuple(cases.function(op)(**like))
        for fake, real in zip(fakes, exact, strict=True):
            assert fake.dtype is real.dtype and fake.dim() == real.dim()
            assert all(not isinstance(f, int) or f == r for f, r in zip(fake.shape, real.shape, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_compile_fullgraph(op):
    torch._dynamo.reset()
    compiled = torch.compile(cases.function(op), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (3, 5, 8):
        inputs, exact = expected(op, cases.Case(0, n, 70, 0.4))
        assert not difference(compiled(**inputs), exact)


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
def test_gradients_of_bitmap_to_dense():
    for value in (torch.float32, torch.int8):
        inputs = cases.of("bitmap_to_dense").inputs(cases.Case(0, 5, 70, 0.4, value=value))
        name = "values" if value is torch.float32 else "scales"
        leaf = inputs[name].clone().requires_grad_()
        call = lambda t, inputs=inputs, name=name: cases.function("bitmap_to_dense")(**{**inputs, name: t})
        assert torch.autograd.gradcheck(call, [leaf], eps=0.5, atol=1e-2, rtol=1e-3)
        torch.library.opcheck(
            torch.ops.sparsecore.bitmap_to_dense.default, tuple({**inputs, name: leaf}.values())
        )
    assert not cases.function("bitmap_to_dense")(**inputs).requires_grad


def test_bitmap_from_dense_takes_no_gradient():
    w = torch.ones(2, 3, requires_grad=True)
    assert not any(t.requires_grad for t in cases.function("bitmap_from_dense")(w.detach()))


@pytest.mark.parametrize(
    "absmax", [2.0**-149 * c for c in (1, 7, 127, 128, 150, 190, 191, 5000)] + [1e-38, 3e38]
)
def test_int8_of_a_tiny_row_is_as_good_as_its_dtype_allows(absmax):
    """Off by half a step of the scale at most, or half the least subnormal that the scale can be."""
    w = torch.tensor([[1.0, -1.0, 0.5, -0.25, 0.0]], dtype=torch.float64).mul(absmax).float()
    made = Bitmap.from_dense(w, dtype=torch.int8)
    assert made.scales[0] > 0 and made.scales[0] >= w.abs().max().double() / 128
    step = made.scales.double()[0] / 2 * (1 + 2.0**-15)
    assert ((made.to_dense().double() - w.double()).abs() <= step).all()


def test_formats_share_the_values():
    w = testing.random_weight(20, 70, 0.4)
    csr, bitmap = Csr.from_dense(w), Bitmap.from_dense(w)
    assert csr.to_bitmap().values.data_ptr() == csr.values.data_ptr()
    assert bitmap.to_csr().values.data_ptr() == bitmap.values.data_ptr()
    again = csr.to_bitmap()
    assert torch.equal(again.bitmask, bitmap.bitmask) and torch.equal(again.row_offsets, bitmap.row_offsets)
    assert torch.equal(again.to_csr().col_indices, csr.col_indices)


def test_broken_formats_are_refused_by_conversions():
    w = testing.random_weight(20, 70, 0.4)
    csr, bitmap = Csr.from_dense(w), Bitmap.from_dense(w)
    columns = csr.col_indices.clone()
    columns[0] = 70
    offsets = bitmap.row_offsets.clone()
    offsets[-1] += 1
    with pytest.raises(RuntimeError, match=r"^col_indices: row 0 has column 70, outside \[0, 70\)"):
        Csr(csr.crow_indices, columns, csr.values, csr.shape).to_dense()
    for convert in (Bitmap.to_dense, Bitmap.to_csr):
        with pytest.raises(RuntimeError, match=r"^(row_offsets|bitmask): "):
            convert(Bitmap(bitmap.bitmask, offsets, bitmap.values, bitmap.shape))
