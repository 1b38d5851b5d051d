# SPDX-License-Identifier: Apache-2.0
"""spgemm: values and patterns on every case and kernel, plans, kinds of matrices, gradients."""

from functools import cache

import cases
import native
import pytest
import sparsecore
import torch
import verify
from cases import spgemm as samples
from sparsecore import Csr, testing
from sparsecore.ops import spgemm as op
from torch._subclasses.fake_tensor import FakeTensorMode

SMALL = cases.Case(12, 30, 20, 0.3)
ISAS = [isa for o, _, isa, missing in testing.kernels() if o == "spgemm" and not missing]


@cache
def expected(case: cases.Case):
    """Inputs, the float64 reference, and how far each value may be off."""
    inputs = samples.inputs(case)
    reference = op.reference(**inputs)
    return inputs, reference, samples.bound(inputs, reference)


def fault(answer, case: cases.Case) -> str:
    inputs, reference, bound = expected(case)
    for name, mine, exact in zip(("crow_indices", "col_indices"), answer, reference, strict=False):
        if mine.dtype is not exact.dtype or not torch.equal(mine, exact):
            return f"{name} differ"
    values = answer[2]
    if values.dtype is not inputs["a_values"].dtype:
        return f"values are {values.dtype}"
    error = (values.to(reference[2].dtype) - reference[2]).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        count = f"{int(wrong.sum())} of {wrong.numel()}"
        return f"value {at}: off by {error[at]:.3g}, bound {bound[at]:.3g}; {count}"
    return ""


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_case(threads):
    """Through torch, between bands of wild indices and NaN; fused, in two phases, within little memory."""
    faults, ran = [], 0
    for case in samples.CASES:
        inputs, _, _ = expected(case)
        guarded = {n: testing.guarded(t) if isinstance(t, torch.Tensor) and not t.is_complex() else t
                   for n, t in inputs.items()}  # fmt: skip
        arrays = {n: t for n, t in guarded.items() if n in samples.NAMES}
        answers = {}
        for isa in ISAS:
            ran += 1
            with testing.force_isa(isa):
                answer = op.spgemm(**guarded)
                wrong = fault(answer, case)
                if testing.last_kernel() != f"spgemm_{isa}":
                    wrong = f"ran {testing.last_kernel()}"
                patterns = {n: t for n, t in arrays.items() if "values" not in n}
                crow, col = op.pattern(**patterns, n=case.n)
                again = op.values(**arrays, crow_indices=crow, col_indices=col, n=case.n)
                if not (torch.equal(crow, answer[0]) and torch.equal(col, answer[1])):
                    wrong = wrong or "pattern() gives another pattern"
                if not torch.equal(again, answer[2]):
                    wrong = wrong or "values() gives other bits"
                little = op.spgemm(**guarded, memory=3000)
                if not all(torch.equal(x, y) for x, y in zip(answer, little, strict=True)):
                    wrong = wrong or "little memory gives other bits"
            answers[isa] = answer[2]
            if wrong:
                faults.append(f"{isa} {case.name}: {wrong}")
        fused = [answers[isa] for isa in ISAS if isa != "scalar"]
        if any(not torch.equal(fused[0], other) for other in fused[1:]):
            faults.append(f"{case.name}: ISAs with FMA differ")
    verify.report(faults, ran)


def test_unsorted_holds_the_same_elements():
    shuffled = 0
    for case in samples.CASES:
        inputs, _, _ = expected(case)
        crow, col, values = op.spgemm(**inputs, sorted=False)
        rows = torch.arange(case.m).repeat_interleave(crow.diff())
        order = (rows * max(case.n, 1) + col).argsort()
        shuffled += not torch.equal(order, torch.arange(order.numel()))
        assert not fault((crow, col[order], values[order]), case), case.name
    assert shuffled, "no case was left unsorted"


@pytest.mark.parametrize("isa", verify.isas("spgemm"))
def test_every_case_behind_guard_pages(isa):
    variant = next(v for v in native.variants("spgemm") if v.isa == isa)
    if variant.missing:
        pytest.skip(f"not proven: {variant.name}: {variant.missing}")
    faults, ran, unlisted, ways = [], 0, 0, set()
    for i, case in enumerate(samples.CASES):
        inputs, reference, _ = expected(case)
        arrays, names, integers = samples.native(inputs)
        for limits in ({}, {"words": 0, "pieces": 2}, {"pieces": 3, "parts": 1 + i % 4},
                       {"bytes": 2000 * (i % 7), "pieces": 2}):  # fmt: skip
            outputs = {n: torch.empty_like(t) for n, t in zip(names, reference, strict=True)}
            outputs["values"] = torch.empty(reference[2].numel(), dtype=case.value)
            outputs |= {f"grad_{s}": torch.empty_like(inputs[f"{s}_values"]) for s in "ab"}
            for t in outputs.values():
                t.fill_(float("nan") if t.is_floating_point() or t.is_complex() else -1)
            ran += 1
            outcome = native.call(variant, arrays, outputs, **integers, **limits)
            ways.add((outcome["sums"], outcome["window"] < (case.n + 63) // 64, outcome["most_hashed"] > 0))
            unlisted += not outcome["words"]
            wrong = fault([outputs[n] for n in names], case)
            if not outcome["intact"] or outcome["bad_row"] != -1:
                wrong = wrong or f"{outcome}"
            if wrong:
                faults.append(f"{case.name} {limits}: {wrong}")
    verify.report(faults, ran)
    assert 0 < unlisted < ran, "B's words were always or never listed"
    assert {w for _, w, _ in ways} == {False, True}, "only one width of window was reached"
    assert {h for _, _, h in ways} == {False, True}, "rows were always or never hashed"
    assert {s for s, _, _ in ways} >= ({0, 1, 2, 3} if isa == "avx512" else {0, 1, 2}), f"only {ways}"


def test_a_heavy_row_is_cut_and_keeps_its_bits():
    """Above kHeavyProducts in op.cpp, so that one row is several threads' work."""
    g = torch.Generator().manual_seed(3)
    k, n = 3000, 20_000
    heavy = (torch.tensor([0, k, k + 1]), torch.cat([torch.arange(k), torch.tensor([5])]))
    b = samples.csr(k, n, cases.Case(0, n, k, 0.004), 9)
    inputs = {"n": n} | dict(zip(samples.NAMES, (*heavy, torch.randn(k + 1, generator=g), *b), strict=True))
    assert samples.products(inputs) > 1 << 17
    before, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            answers.append(op.spgemm(**inputs))
            answers.append((*answers[-1][:2], op.values(*list(inputs.values())[1:], *answers[-1][:2], n)))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(x, y) for x, y in zip(answers[0], other, strict=True))
    exact = op.reference(**inputs)
    assert torch.equal(exact[1], answers[0][1])
    torch.testing.assert_close(answers[0][2].double(), exact[2], rtol=1e-4, atol=1e-4)


def test_the_bound_catches_a_lost_product():
    case = cases.Case(12, 30, 20, 0.3)
    inputs, _, _ = expected(case)
    lost = {**inputs, "a_values": inputs["a_values"].clone()}
    lost["a_values"][7] = 0
    assert not fault(op.spgemm(**inputs), case)
    assert "value" in fault(op.spgemm(**lost), case)


def pair(kind: str, dtype=torch.float64, index=torch.int32):
    a = torch.randn(9, 14, dtype=dtype) * (torch.rand(9, 14) < 0.4)
    b = torch.randn(14, 11, dtype=dtype) * (torch.rand(14, 11) < 0.4)
    return a, b, convert(a, kind, index), convert(b, kind, index)


def convert(dense: torch.Tensor, kind: str, index: torch.dtype):
    rows, cols = dense.nonzero(as_tuple=True)
    crow = torch.zeros(dense.shape[0] + 1, dtype=index)
    crow[1:] = torch.bincount(rows, minlength=dense.shape[0]).cumsum(0)
    arrays = crow, cols.to(index), dense[rows, cols].clone()
    if kind == "Csr":
        return Csr(*arrays, tuple(dense.shape))
    if kind == "torch":
        return torch.sparse_csr_tensor(*arrays, dense.shape)
    if kind == "tensors":
        return *arrays, tuple(dense.shape)
    plain = tuple(t.numpy() for t in arrays)
    if kind == "numpy":
        return *plain, tuple(dense.shape)
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is missing: its matrices are not proven")
    return getattr(sparse, kind)((plain[2], plain[1], plain[0]), shape=tuple(dense.shape))


def dense_of(c) -> torch.Tensor:
    if isinstance(c, tuple):
        crow, col, values, shape = (torch.as_tensor(x) if i < 3 else x for i, x in enumerate(c))
        return torch.sparse_csr_tensor(crow, col, values, shape).to_dense()
    return torch.as_tensor(c.toarray()) if hasattr(c, "toarray") else c.to_dense()


KINDS = ("Csr", "torch", "tensors", "numpy", "csr_array", "csr_matrix")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("dtype", samples.NUMBERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix(kind, dtype):
    a, b, x, y = pair(kind, dtype)
    c = sparsecore.spgemm(x, y)
    assert isinstance(c, tuple if kind in ("tensors", "numpy") else object)
    assert type(c).__name__ == {"csr_matrix": "csr_array"}.get(kind, type(x).__name__)
    torch.testing.assert_close(dense_of(c), a @ b, rtol=1e-5, atol=1e-5)
    plan = sparsecore.spgemm_plan(x, y)
    torch.testing.assert_close(dense_of(plan(x, y)), dense_of(c), rtol=0, atol=0)
    # a's kind decides, and b's may differ
    other = sparsecore.spgemm(x, convert(b, "tensors", torch.int64))
    assert type(other) is type(c)
    torch.testing.assert_close(dense_of(other), dense_of(c), rtol=0, atol=0)


def test_nothing_is_copied():
    np = pytest.importorskip("numpy", reason="not proven: NumPy arrays as CSR")
    seen = []

    def watch(*arrays):
        seen.extend(t.data_ptr() for t in arrays if isinstance(t, torch.Tensor))
        return real(*arrays)

    _, _, x, y = pair("csr_array")
    real, op_module = torch.ops.sparsecore._spgemm.default, torch.ops.sparsecore._spgemm
    try:
        op_module.default = watch
        sparsecore.spgemm(x, y)
    finally:
        op_module.default = real
    given = [array.ctypes.data for m in (x, y) for array in (m.indptr, m.indices, m.data)]
    assert seen == given
    x.data.flags.writeable = False
    assert np.allclose(sparsecore.spgemm(x, y).toarray(), x.toarray() @ y.toarray())


def test_index_dtypes():
    _, b, x, _ = pair("tensors", index=torch.int32)
    for index in (torch.int32, torch.int64):
        crow, col, _, _ = sparsecore.spgemm(x, convert(b, "tensors", index))
        assert crow.dtype is col.dtype is index


def test_patterns():
    _, _, x, y = pair("numpy")
    for left, right in ((x, y), ((*x[:2], None, x[3]), y), (x, (*y[:2], None, y[3]))):
        crow, col, values, shape = sparsecore.spgemm(left, right)
        full = sparsecore.spgemm(x, y)
        assert shape == (9, 11) and (crow == full[0]).all() and (col == full[1]).all()
        assert (values is None) == (left is not x or right is not y)


def test_a_plan_takes_new_values():
    _, b, x, y = pair("Csr")
    plan = sparsecore.spgemm_plan(x, y)
    assert plan.shape == (9, 11) and plan.nnz == sparsecore.spgemm(x, y).nnz
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        values = torch.randn(x.nnz, generator=g, dtype=torch.float64)
        moved = Csr(x.crow_indices, x.col_indices, values, x.shape)
        c = plan(moved, y)
        assert torch.equal(c.values, sparsecore.spgemm(moved, y).values)
        assert c.col_indices.data_ptr() == plan.col_indices.data_ptr()
    with pytest.raises(ValueError, match="plan is for a product"):
        plan(x, convert(b[:, 1:], "Csr", torch.int32))
    full = convert(torch.ones(9, 14, dtype=torch.float64), "Csr", torch.int32)
    thin = sparsecore.spgemm_plan(x, convert(torch.eye(14, 11, dtype=torch.float64), "Csr", torch.int32))
    with pytest.raises(RuntimeError, match=r"^col_indices: row \d+ lacks"):
        thin(full, y)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("dtype", samples.NUMBERS, ids=str)
def test_gradients_are_those_of_the_dense_product(dtype, threads):
    for layout in samples.LAYOUTS:
        for index in (torch.int32, torch.int64):
            case = cases.Case(14, 90, 33, 0.2, value=dtype, index=index, layout=layout)
            inputs = samples.inputs(case)
            a, b = (inputs[f"{s}_values"].requires_grad_() for s in "ab")
            crow, col, values = op.spgemm(**inputs)
            g = samples.numbers(values.numel(), dtype, 1)
            grads = torch.autograd.grad(values, (a, b), g)
            wide = torch.complex128 if dtype.is_complex else torch.float64
            exact = [t.detach().to(wide).requires_grad_() for t in (a, b)]
            _, _, reference = op.reference(**{**inputs, "a_values": exact[0], "b_values": exact[1]})
            for mine, theirs in zip(grads, torch.autograd.grad(reference, exact, g.to(wide)), strict=True):
                tolerance = 100 * torch.finfo(dtype).eps
                torch.testing.assert_close(mine.to(wide), theirs, rtol=tolerance, atol=tolerance)
            planned = op.values(*list(inputs.values())[:6], crow, col, case.n)
            for mine, other in zip(torch.autograd.grad(planned, (a, b), g), grads, strict=True):
                assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", (torch.float64, torch.complex128), ids=str)
def test_gradcheck(dtype):
    inputs = samples.inputs(cases.Case(4, 6, 5, 0.5, value=dtype))
    leaves = [inputs[f"{s}_values"].requires_grad_() for s in "ab"]
    call = lambda a, b: op.spgemm(**{**inputs, "a_values": a, "b_values": b})[2]
    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_gradients_through_matrices():
    a, b, x, y = pair("Csr")
    values = [m.values.clone().requires_grad_() for m in (x, y)]
    made = [Csr(m.crow_indices, m.col_indices, v, m.shape) for m, v in zip((x, y), values, strict=True)]
    sparsecore.spgemm(*made).values.sum().backward()
    ones = torch.ones(9, 11, dtype=torch.float64)
    places = [m.to_dense().nonzero(as_tuple=True) for m in (x, y)]
    torch.testing.assert_close(values[0].grad, (ones @ b.T)[places[0]])
    torch.testing.assert_close(values[1].grad, (a.T @ ones)[places[1]])
    assert not sparsecore.spgemm(x, y).values.requires_grad


def test_only_what_asks_gets_a_gradient():
    inputs = samples.inputs(SMALL)
    for name in ("a_values", "b_values"):
        leaf = inputs[name].clone().requires_grad_()
        _, _, values = op.spgemm(**{**inputs, name: leaf})
        values.sum().backward()
        assert leaf.grad.shape == leaf.shape
        with torch.no_grad():
            assert not op.spgemm(**{**inputs, name: leaf})[2].requires_grad


@pytest.mark.parametrize("name", ["spgemm", "_spgemm", "spgemm_pattern", "spgemm_values"])
def test_opcheck(name):
    for case in (
        SMALL,
        cases.Case(3, 0, 5),
        cases.Case(0, 4, 5),
        cases.Case(5, 9, 7, value=samples.c128, index=cases.i32),
    ):
        inputs = samples.inputs(case)
        arrays = [inputs[n] for n in samples.NAMES]
        crow, col, _ = op.spgemm(**inputs)
        args = {
            "spgemm_pattern": (*arrays[:2], *arrays[3:5], case.n),
            "spgemm_values": (*arrays, crow, col, case.n),
        }.get(name, (*arrays, case.n))
        torch.library.opcheck(getattr(torch.ops.sparsecore, name).default, args)
        if name in ("spgemm", "spgemm_values"):
            leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) and i in (2, 5) else t
                      for i, t in enumerate(args)]  # fmt: skip
            # It adds up all outputs, which it can't where indices come before values: test_compile_fullgraph
            # compares the gradients of a traced spgemm instead.
            checks = ("test_schema", "test_autograd_registration", "test_faketensor")
            checks += ("test_aot_dispatch_dynamic",) * (name == "spgemm_values")
            torch.library.opcheck(
                getattr(torch.ops.sparsecore, name).default, tuple(leaves), test_utils=checks
            )


def test_the_fake_does_not_know_nnz():
    real = samples.inputs(SMALL)
    with FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()) as mode:
        inputs = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in real.items()}
        crow, col, values = op.spgemm(**inputs)
    assert crow.shape == (13,) and col.dtype is torch.int64 and values.dtype is torch.float32
    assert isinstance(values.shape[0], torch.SymInt) and str(col.shape[0]) == str(values.shape[0])


def test_compile_fullgraph():
    def f(a_values, b_values, inputs):
        return op.spgemm(**{**inputs, "a_values": a_values * 2, "b_values": b_values})[2].relu()

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    inputs = samples.inputs(SMALL)
    leaves = [[inputs[n].clone().requires_grad_() for n in ("a_values", "b_values")] for _ in range(2)]
    ours, theirs = compiled(*leaves[0], inputs), f(*leaves[1], inputs)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(*leaves, strict=True))


def test_calls_from_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    chosen = samples.CASES[::9]
    answers = [op.spgemm(**expected(c)[0]) for c in chosen]

    def work(start: int) -> bool:
        return all(
            torch.equal(op.spgemm(**expected(chosen[i % len(chosen)])[0])[2], answers[i % len(chosen)][2])
            for i in range(start, start + 60)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
