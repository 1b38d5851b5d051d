# SPDX-License-Identifier: Apache-2.0
"""kv_append: every case bit for bit on every ISA, also behind guard pages; many appends; bad input."""

import platform
import re
import shutil
from dataclasses import replace
from functools import cache

import native
import pytest
import torch
import verify
from cases import FLOATS, strided
from cases import kv_append as samples
from cases.kv_append import Append
from sparsecore import testing
from sparsecore.ops.kv_append import CHANGED, kv_append, reference
from sparsecore.ops.kv_attention import tokens
from sparsecore.ops.kv_compress import kv_compress
from sparsecore.ops.kv_decompress import kv_decompress

OP = "kv_append"
HALVES = [(f"{half}_bitmask", f"{half}_values", f"{half}_dense") for half in "kv"]
BROKEN = Append((90, 41), 30, 2, head_dim=72)


def usable() -> dict[str, str]:
    """{isa: kernel} that this CPU runs."""
    return {isa: kernel for o, kernel, isa, missing in testing.kernels() if o == OP and not missing}


def fresh(inputs: dict) -> dict:
    """The same, with copies of what a call changes."""
    return {n: t.clone() if n in CHANGED else t for n, t in inputs.items()}


def state(inputs: dict) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[name] for name in CHANGED)


@cache
def expected(case: Append):
    inputs = samples.inputs(case)
    return inputs, reference(**inputs)


def difference(actual, exact) -> str:
    """'' when all bits are alike but those that say which NaN."""
    for name, a, e in zip(CHANGED, actual, exact, strict=True):
        same = (a == e) | ((a != a) & (e != e))
        if a.is_floating_point():
            same &= a.signbit() == e.signbit()
        if not same.all():
            at = tuple((~same).nonzero()[0].tolist())
            return f"{name}{list(at)} is {a[at].item()!r}, not {e[at].item()!r}; {int((~same).sum())} wrong"
    return ""


def test_every_case():
    faults, ran = [], 0
    for case in samples.CASES:
        inputs, exact = expected(case)
        for isa, kernel in usable().items():
            given = {
                n: testing.guarded(t) if isinstance(t, torch.Tensor) and n not in ("k", "v") else t
                for n, t in inputs.items()
            }
            ran += 1
            with testing.force_isa(isa):
                assert kv_append(**given) is None
                wrong = difference(state(given), exact)
                if testing.last_kernel() != kernel:
                    wrong = f"ran {testing.last_kernel()}"
            if wrong:
                faults.append(f"{isa} {case.name}: {wrong}")
    verify.report(faults, ran)


def run(variant, inputs: dict, gap: int = 3, **more: int):
    given = fresh(inputs)
    arrays = {n: given[n] for n in ("k", "v", "targets")}
    for half in "kv":
        arrays[half] = torch.nn.functional.pad(arrays[half], (0, gap), value=float("nan"))
    arrays |= {n: given[n] for n in ("k_weight", "v_weight") if given[n] is not None}
    changed = {n: given[n] for n in CHANGED}
    outcome = native.call(variant, arrays, changed, recent=inputs["recent"], **more)
    assert outcome["intact"], "wrote outside its arrays"
    return state(given), outcome["bad_row"]


@pytest.mark.parametrize("isa", verify.isas(OP))
def test_every_case_behind_guard_pages(isa):
    variant = next(v for v in native.variants(OP) if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    faults, ran = [], 0
    for case in samples.CASES:
        inputs, exact = expected(case)
        ran += 1
        try:
            answer, bad = run(variant, inputs)
            wrong = f"sequence {bad} refused" if bad >= 0 else difference(answer, exact)
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
    for value in (torch.float32, torch.bfloat16):
        inputs, exact = expected(replace(BROKEN, value=value))
        assert not difference(run(variant, inputs)[0], exact)


def test_threads_do_not_change_the_answer():
    before = torch.get_num_threads()
    inputs, exact = expected(Append((300, 70, 5), 500, 3, value=torch.bfloat16))
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            given = fresh(inputs)
            kv_append(**given)
            assert not difference(state(given), exact)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(3))
def test_many_appends_are_as_one(seed):
    """Thousands of appends of any sizes leave the arrays that one append of all tokens leaves, and those hold
    dense what is recent or first, and else what kv_compress keeps."""
    g = torch.Generator().manual_seed(seed)
    case = Append((0, 0), 3000 + seed, 1 + seed, 32 + 40 * seed, (9, 20), recent=1 + seed, sinks=seed)
    whole = samples.inputs(case)
    x = {half: whole[half] for half in "kv"}
    # A slot that a page's end leaves unwritten keeps what was there before, in both.
    parts = fresh(whole)
    kv_append(**whole)
    at = 0
    while at < case.tokens:
        step = min(int(torch.randint(1, (2, 40, 3)[seed], (1,), generator=g)), case.tokens - at)
        kv_append(**{**parts, "k": x["k"][:, :, at : at + step], "v": x["v"][:, :, at : at + step]})
        at += step
    assert not difference(state(parts), state(whole))
    fresh_from = ((case.tokens - 1) // case.page - case.recent + 1) * case.page
    for half, (bitmask, values, dense) in zip("kv", HALVES, strict=True):
        for s in range(2):
            pruned = kv_decompress(*kv_compress(x[half][s], whole[values].shape[3]), case.head_dim)
            pruned[:, : case.sinks * case.page] = x[half][s][:, : case.sinks * case.page]
            pruned[:, fresh_from:] = x[half][s][:, fresh_from:]
            pools = (whole[bitmask], whole[values], whole[dense], whole["page_table"])
            assert torch.equal(tokens(*pools, s, case.tokens), pruned)


@pytest.mark.parametrize("value", FLOATS, ids=str)
def test_equal_weights_are_none_and_others_choose(value):
    x = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1)).to(value)
    for keep in (1, 20):
        alike = kv_compress(x, keep, torch.full((48,), -2.0))
        assert all(torch.equal(a, b) for a, b in zip(alike, kv_compress(x, keep), strict=True))
    weight = torch.zeros(3, 48)
    weight[:, 8:16] = 1
    weight[2] = torch.inf
    bits, values = kv_compress(x, 8, weight)
    assert torch.equal(values[:, :2], x[:, :2, :, 8:16]) and bits[:, :2, :, 1].eq(255).all()
    assert torch.equal(values[:, 2], x[:, 2, :, :8])  # all alike: the lowest


def refused(name: str, inputs: dict) -> str:
    before = tuple(t.clone() for t in state(inputs))
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        kv_append(**inputs)
    text = str(caught.value).split("\n")[0]
    assert re.search(rf"(^|, )({name}): ", text), f"an error about {name} says: {text}"
    assert all(torch.equal(a, b) for a, b in zip(before, state(inputs), strict=True)), "changed something"
    return text


def test_shapes_and_dtypes():
    misfits = list(samples.misfits(samples.inputs(replace(BROKEN, head_dim=64))))
    assert len(misfits) > 50
    for name, wrong in misfits:
        alike = {"k": "k|v|k_bitmask|k_values|k_dense", "k_values": "k_values|k_bitmask|v_values"}
        refused(alike.get(name, name) if name != "k_dense" else "k_dense|v_dense", wrong)


def test_overlaps():
    inputs = samples.inputs(replace(BROKEN, keep=(72, 72)))
    for a in CHANGED:
        for b in (*CHANGED, "k", "v", "targets"):
            one, other = inputs[a], inputs[b]
            if a == b or one.numel() == 0:
                continue
            size = max(t.numel() * t.element_size() for t in (one, other))
            memory = torch.zeros(2 * size, dtype=torch.uint8)
            lay = lambda t, memory=memory: memory[: t.numel() * t.element_size()].view(t.dtype).view(t.shape)
            names = "|".join(n for n in CHANGED if n in (a, b))
            text = refused(names, {**inputs, a: lay(one), b: lay(other)})
            assert "overlaps" in text


def test_a_page_that_still_holds_tokens_is_not_given_to_another_column():
    """One that is nearer than `recent`, or that stays dense."""
    case = replace(BROKEN, lengths=(64,), tokens=33, recent=2, sinks=1, page=16)
    for earlier in (0, 3):  # a sink; the column before
        inputs = samples.inputs(case)
        inputs["page_table"][0, 4] = inputs["page_table"][0, earlier]
        text = refused("page_table", inputs)
        assert f"columns {earlier} and 4 of sequence 0" in text
    inputs = samples.inputs(case)
    assert inputs["page_table"][0, 4] == inputs["page_table"][0, 6]  # the ring's
    kv_append(**inputs)


@pytest.mark.parametrize("case", [BROKEN, replace(BROKEN, value=torch.bfloat16, sinks=0)], ids=str)
def test_broken_tables(case):
    ran = 0
    for name, damaged in samples.damage(samples.inputs(case)):
        assert re.search(r"-?\d", refused(name, damaged))
        ran += 1
    assert ran > 40
    variant = native.variants(OP)[0]
    faults = [d for _, d in samples.damage(samples.inputs(case))][:-2]  # the last two are no one sequence's
    for damaged in faults:
        after, bad = run(variant, damaged)
        assert bad >= 0 and not difference(after, state(damaged))


def test_opcheck():
    for case in (BROKEN, replace(BROKEN, weight=(3, 2)), Append((20,), value=torch.bfloat16), Append(())):
        torch.library.opcheck(torch.ops.sparsecore.kv_append.default, tuple(samples.inputs(case).values()))


def test_devices():
    inputs = samples.inputs(replace(BROKEN, weight=(2, 3)))
    for name, t in inputs.items():
        if isinstance(t, torch.Tensor) and name != "k":
            with pytest.raises((RuntimeError, NotImplementedError), match=rf"\b{name}: "):
                kv_append(**{**inputs, name: t.to("meta")})
    assert (
        kv_append(**{n: t.to("meta") if isinstance(t, torch.Tensor) else t for n, t in inputs.items()})
        is None
    )


def test_compile_fullgraph():
    torch._dynamo.reset()

    def f(inputs):
        kv_append(**{**inputs, "k": inputs["k"] * 2})
        return inputs["lengths"] + 1

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (BROKEN, replace(BROKEN, lengths=(5, 60), tokens=9)):
        ours, theirs = fresh(samples.inputs(case)), fresh(samples.inputs(case))
        assert torch.equal(compiled(ours), f(theirs))
        assert not difference(state(ours), state(theirs))


def test_channels_that_are_not_adjacent():
    inputs = samples.inputs(BROKEN)
    given = {**fresh(inputs), "k": strided(inputs["k"]), "v": inputs["v"].flip(1).flip(1)}
    kv_append(**given)
    kv_append(**inputs)
    assert not difference(state(given), state(inputs))
