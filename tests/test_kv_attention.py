# SPDX-License-Identifier: Apache-2.0
"""kv_attention: every case on every ISA within its bound, by torch and behind guard pages; bad input."""

import platform
import re
import shutil
from dataclasses import replace
from functools import cache

import cases
import native
import pytest
import torch
import verify
from cases import kv_attention as samples
from cases.kv_attention import Cache
from sparsecore import testing
from sparsecore.ops.kv_attention import kv_attention, reference
from torch._subclasses.fake_tensor import FakeTensorMode

OP = "kv_attention"
SMALL = Cache((40, 25), 2, 3, 2, keep=(20, 19), bias=(0, 1, 0), slopes=True, softcap=9.0)


def usable() -> dict[str, str]:
    """{isa: kernel} that this CPU runs."""
    return {isa: kernel for o, kernel, isa, missing in testing.kernels() if o == OP and not missing}


@cache
def expected(case: Cache):
    inputs = samples.inputs(case)
    exact = reference(**inputs)
    return inputs, exact, samples.bound(inputs, *exact)


def fault(answer, exact, bounds, dtype) -> str:
    """'' when out and lse are right, else the worst element."""
    for name, a, e, b in zip(("out", "lse"), answer, exact, bounds, strict=True):
        if a.dtype is not (dtype if name == "out" else torch.float32) or a.shape != e.shape:
            return f"{name}: {a.dtype} {list(a.shape)}"
        wrong = ~((a.double() - e).abs() <= b) & (a.double() != e)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            off, allowed = (a.double() - e).abs()[at].item(), b[at].item()
            return (
                f"{name}{list(at)} is {a[at].item()!r}, not {e[at].item()!r}: off {off:.3g} of {allowed:.3g}"
            )
    return ""


def test_every_case():
    isas, faults, ran = usable(), [], 0
    for case in samples.CASES:
        inputs, exact, bounds = expected(case)
        guarded = {n: testing.guarded(t) if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
        for isa, kernel in isas.items():
            if isa == "scalar" and ran % 4:
                ran += 1
                continue  # slow; all of them by name below
            ran += 1
            with testing.force_isa(isa):
                wrong = fault(kv_attention(**guarded), exact, bounds, case.dtype)
                if testing.last_kernel() != kernel:
                    wrong = f"ran {testing.last_kernel()}"
            if wrong:
                faults.append(f"{isa} {case.name}: {wrong}")
    verify.report(faults, ran)


def run(variant, inputs: dict, **more: int):
    arrays, integers = samples.native(inputs)
    out = torch.full_like(inputs["q"], float("nan"))
    lse = torch.full(inputs["q"].shape[:3], float("nan"))
    outcome = native.call(variant, arrays, {"out": out, "lse": lse}, **integers, **more)
    assert outcome["intact"], "wrote outside its arrays"
    return (out, lse), outcome["bad_row"]


@pytest.mark.parametrize("isa", verify.isas(OP))
def test_every_case_behind_guard_pages(isa):
    variant = next(v for v in native.variants(OP) if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    faults, ran = [], 0
    for case in samples.CASES:
        inputs, exact, bounds = expected(case)
        if not inputs["q"].numel():
            continue
        ran += 1
        try:
            answer, bad = run(variant, inputs)
            wrong = f"task {bad} refused" if bad >= 0 else fault(answer, exact, bounds, case.dtype)
        except AssertionError as error:
            wrong = str(error)
        if wrong:
            faults.append(f"{case.name}: {wrong}")
    verify.report(faults, ran)


@pytest.mark.parametrize("model", ["Nehalem", "Haswell"])
def test_an_older_cpu_runs_what_is_offered_to_it(model):
    if not shutil.which("qemu-x86_64-static") or platform.machine() != "x86_64":
        pytest.skip(f"not proven: {OP} on a {model}: apt install qemu-user-static, on x86")
    offered = [name for o, name, _, lacks in native.runner(model).list() if o == OP and lacks == "-"]
    variant = replace(native.variants(OP)[0], name=offered[0], runner=model)
    for case in (
        SMALL,
        replace(SMALL, value=torch.bfloat16, head_dim=72),
        Cache((130,), value=torch.float16),
    ):
        inputs, exact, bounds = expected(case)
        assert not fault(run(variant, inputs)[0], exact, bounds, case.dtype)


def test_the_bound_catches_a_lost_token():
    """The loss of one key of median weight shows, and so does that of one channel."""
    case = Cache((40, 60), 2, 2)
    inputs, exact, bounds = expected(case)
    assert not fault(kv_attention(**inputs), exact, bounds, case.dtype)
    shorter = {**inputs, "lengths": inputs["lengths"] - torch.tensor([0, 1], dtype=torch.int32)}
    assert fault(kv_attention(**shorter), exact, bounds, case.dtype)
    values = inputs["k_values"].clone()
    values[inputs["page_table"][0][inputs["page_table"][0] >= 0][0], 0, 3, 5] = 0
    assert fault(kv_attention(**{**inputs, "k_values": values}), exact, bounds, case.dtype)


def test_it_is_torch_s_attention():
    """Dense pages alone give what scaled_dot_product_attention gives."""
    inputs = samples.inputs(Cache((100,), 2, 3, 4, dense=1))
    pages = -2 - inputs["page_table"][0, :-1]
    k, v = (inputs[f"{h}_dense"][pages].transpose(0, 1).flatten(1, 2)[None, :, :100] for h in "kv")
    mask = torch.ones(4, 100, dtype=torch.bool).tril(96)
    theirs = torch.nn.functional.scaled_dot_product_attention(inputs["q"], k, v, mask, enable_gqa=True)
    torch.testing.assert_close(kv_attention(**inputs)[0], theirs)


def test_threads_do_not_change_the_answer():
    before = torch.get_num_threads()
    inputs = samples.inputs(Cache((3000, 70, 1500), 2, 3, 2, page=64, value=torch.bfloat16))
    try:
        answers = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            answers.append(kv_attention(**inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("isa", usable())
def test_what_is_not_seen_is_not_read(isa):
    """NaN beyond a length, before a window and in pages of nobody takes no part; NaN within does."""
    case = Cache((40,), 1, 2, dense=2, window=20)
    inputs, exact, bounds = expected(case)
    table, poisoned = inputs["page_table"][0], {n: t.clone() for n, t in inputs.items() if n in samples.POOLS}
    for half in "kv":
        for position in [*range(20), *range(40, 48)]:
            entry, slot = int(table[position // 16]), position % 16
            page, kind = (-2 - entry, "dense") if entry < 0 else (entry, "values")
            poisoned[f"{half}_{kind}"][page, :, slot] = float("nan")
    with testing.force_isa(isa):
        assert not fault(kv_attention(**{**inputs, **poisoned}), exact, bounds, case.dtype)
        entry = int(table[1])
        kind, page = ("dense", -2 - entry) if entry < 0 else ("values", entry)
        poisoned[f"k_{kind}"][page, :, 10] = float("nan")
        assert kv_attention(**{**inputs, **poisoned})[0].isnan().all()
        infinite = {**inputs, "v_dense": inputs["v_dense"].clone()}
        infinite["v_dense"][-2 - int(table[2]), 0, 0, 7] = float("inf")
        out = kv_attention(**infinite)[0]
        assert (out[..., 7] == float("inf")).all() and out[..., :7].isfinite().all()


def refused(name: str, inputs: dict) -> str:
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        kv_attention(**inputs)
    text = str(caught.value).split("\n")[0]
    assert re.search(rf"(^|, )({name}): ", text), f"an error about {name} says: {text}"
    return text


def test_shapes_and_dtypes():
    misfits = list(samples.misfits(samples.inputs(SMALL)))
    assert len(misfits) > 40
    for name, wrong in misfits:
        refused("|".join({name, "v_values"} if name == "k_values" else {name, "[kv]_(dense|bitmask)"}
                         if name == "q" else {name}), wrong)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_broken_invariants(threads):
    before, ran = torch.get_num_threads(), 0
    torch.set_num_threads(threads)
    try:
        for case in (
            Cache((40, 70), 2, 2, head_dim=72),
            Cache((900, 700), 2, 2, value=torch.bfloat16),
            Cache((900, 700), 2, 2, selected=1.0, threshold=1e-30),
        ):
            for name, damaged in samples.damage(samples.inputs(case)):
                for isa in usable():
                    with testing.force_isa(isa):
                        assert re.search(r"-?\d", refused(name, damaged))
                        ran += 1
    finally:
        torch.set_num_threads(before)
    assert ran > 50


@pytest.mark.parametrize("isa", verify.isas(OP))
def test_a_broken_page_is_refused_behind_guard_pages(isa):
    variant = next(v for v in native.variants(OP) if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    damaged = [d for _, d in samples.damage(samples.inputs(Cache((40, 70), 2, 2, head_dim=72)))]
    assert all(run(variant, d)[1] >= 0 for d in damaged) and len(damaged) > 20


def test_opcheck():
    skipping = replace(SMALL, selected=0.5, threshold=0.1)
    for case in (SMALL, skipping, Cache((20,), value=torch.bfloat16), Cache(())):
        torch.library.opcheck(torch.ops.sparsecore.kv_attention.default, tuple(samples.inputs(case).values()))


def test_the_fake_has_the_shape_and_dtype_of_the_result():
    inputs = samples.inputs(replace(SMALL, dtype=torch.float16))
    real = kv_attention(**inputs)
    with FakeTensorMode() as mode:
        fake = kv_attention(
            **{n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
        )
    for f, r in zip(fake, real, strict=True):
        assert (f.shape, f.dtype, f.stride()) == (r.shape, r.dtype, r.stride())


def test_compile_fullgraph():
    torch._dynamo.reset()
    compiled = torch.compile(kv_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths, selected in (((40, 25), None), ((70, 3, 9), None), ((70, 30), 0.5)):
        inputs = samples.inputs(replace(SMALL, lengths=lengths, selected=selected, threshold=0.1))
        assert all(torch.equal(a, b) for a, b in zip(compiled(**inputs), kv_attention(**inputs), strict=True))


def test_bytes_of_a_compressed_token():
    """70 % at head_dim 64 and 128 take at most 0.4 of dense 16-bit ones, everything counted."""
    for d in (64, 128):
        inputs = samples.inputs(
            Cache((4096,), 1, 1, 1, d, (-(-3 * d // 10),) * 2, 64, 0, value=torch.bfloat16)
        )
        arrays = [
            inputs[n] for n in ("k_bitmask", "k_values", "v_bitmask", "v_values", "page_table", "lengths")
        ]
        assert cases.tensor_bytes(*arrays) * 64 / 65 / (4096 * 2 * d * 2) <= 0.4
