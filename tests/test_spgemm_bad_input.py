# SPDX-License-Identifier: Apache-2.0
"""spgemm: arrays that are no CSR or do not fit, numbers that are none, sizes and memory that run out."""

import resource
import subprocess
import sys

import cases
import pytest
import sparsecore
import torch
from cases import spgemm as samples
from sparsecore import Csr, testing
from sparsecore.ops import spgemm as op
from test_spgemm import ISAS, SMALL, expected, pair


def test_ieee():
    """NaN and infinity reach what they are multiplied with and nothing else; zeros stay stored."""
    a = torch.tensor([[1.0, 2.0, 0.0], [0.0, float("inf"), 0.0], [0.0, 0.0, float("nan")]])
    b = torch.tensor([[1.0, 0.0], [-0.5, 3.0], [0.0, 1.0]])
    for isa in ISAS:
        with testing.force_isa(isa):
            c = sparsecore.spgemm(Csr.from_dense(a), Csr.from_dense(b))
            inf = float("inf")
            assert c.col_indices.tolist() == [0, 1, 0, 1, 1]
            want = torch.tensor([0.0, 6.0, -inf, inf, float("nan")])
            torch.testing.assert_close(c.values, want, rtol=0, atol=0, equal_nan=True)


def hostile_plans(crow: torch.Tensor, col: torch.Tensor, n: int):
    """Patterns that are no CSR, or lack an element."""
    for at, value in ((0, 1), (-1, col.numel() + 1), (-1, 2**40), (5, -1), (5, col.numel() + 5), (5, 2**40)):
        broken = crow.clone()
        broken[at] = value
        yield broken, col
    for at in (0, col.numel() // 2, -1):
        for value in (-1, n, 2**40, -(2**40)):
            broken = col.clone()
            broken[at] = value
            yield crow, broken
    row = int(crow.diff().argmax())
    first, last = int(crow[row]), int(crow[row + 1]) - 1
    swapped = col.clone()
    swapped[first], swapped[last] = col[last], col[first]
    yield crow, swapped
    yield crow, torch.where(torch.arange(col.numel()) == last, col[last - 1], col)
    fewer = crow.clone()
    fewer[row + 1 :] -= 1
    yield fewer, torch.cat([col[:last], col[last + 1 :]])


@pytest.mark.parametrize("case", [
    cases.Case(20, 100, 30, 0.3), cases.Case(20, 130, 30, 1.0), cases.Case(9, 40_000, 30, 0.0005),
    cases.Case(20, 700, 30, 0.01)], ids=lambda c: c.name)  # fmt: skip
def test_a_plan_that_does_not_fit_is_refused(case):
    inputs, reference, _ = expected(case)
    arrays = {n: t for n, t in inputs.items() if n in samples.NAMES}
    crow, col, _ = reference
    refused = 0
    for isa in ISAS:
        with testing.force_isa(isa):
            for memory in (0, 2000):
                for bad_crow, bad_col in hostile_plans(crow, col, case.n):
                    with pytest.raises(RuntimeError, match=r"^(crow|col)_indices: "):
                        op.values(
                            **arrays, crow_indices=bad_crow, col_indices=bad_col, n=case.n, memory=memory
                        )
                    refused += 1
    assert refused > 50
    more = torch.full((case.m,), case.n, dtype=torch.int64).cumsum(0)
    every = torch.cat([torch.zeros(1, dtype=torch.int64), more]), torch.arange(case.n).repeat(case.m)
    values = op.values(**arrays, crow_indices=every[0], col_indices=every[1], n=case.n)
    exact = op.spgemm(**inputs)
    rows = torch.arange(case.m).repeat_interleave(crow.diff())
    assert torch.equal(values.view(case.m, case.n)[rows, col], exact[2])
    assert int((values != 0).sum()) == int((exact[2] != 0).sum())


def refused(name: str, inputs: dict) -> None:
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        op.spgemm(**inputs)
    text = str(caught.value).split("\n")[0]
    assert text.startswith(f"{name}: ") or f" {name}: " in text, f"an error about {name} says: {text}"


def test_shapes_and_dtypes():
    ran = 0
    for name, wrong in samples.misfits(samples.inputs(SMALL)):
        refused(name, wrong)
        ran += 1
    assert ran > 30
    inputs = samples.inputs(SMALL)
    for name in samples.NAMES:
        with pytest.raises((RuntimeError, NotImplementedError)):
            op.spgemm(**{**inputs, name: inputs[name].to("meta")})


def test_matrices_that_do_not_fit():
    _, b, x, y = pair("Csr")
    with pytest.raises(ValueError, match=r"^b: must have as many rows as a has columns, 14, not 9"):
        sparsecore.spgemm(x, x)
    with pytest.raises(TypeError, match=r"^a: must be a Csr"):
        sparsecore.spgemm([1], y)
    with pytest.raises(TypeError, match=r"^b: must be a two-dimensional torch.sparse_csr"):
        sparsecore.spgemm(x, b)
    with pytest.raises(ValueError, match=r"^sorted: "):
        sparsecore.spgemm(x, y, sorted=False)
    with pytest.raises(ValueError, match=r"^a: crow_indices must have"):
        sparsecore.spgemm((x.crow_indices[:-1], x.col_indices, x.values, x.shape), y)


@pytest.mark.parametrize("threads", [1, 3])
def test_broken_indices(threads):
    before, ran = torch.get_num_threads(), 0
    torch.set_num_threads(threads)
    for index in (torch.int32, torch.int64):
        case = cases.Case(50 if threads == 1 else 900, 150, 40, 0.3, index=index)
        for name, damaged in samples.damage(samples.inputs(case)):
            for isa in ISAS:
                with testing.force_isa(isa):
                    refused(name, damaged)
                    ran += 1
    torch.set_num_threads(before)
    assert ran > 60


def test_more_nonzeros_than_int32_counts():
    """Counted, and refused before anything of that size is allocated."""
    m, n = 2**16 + 1, 2**15
    a = torch.arange(m + 1, dtype=torch.int32), torch.zeros(m, dtype=torch.int32), torch.ones(m)
    b = torch.tensor([0, n], dtype=torch.int32), torch.arange(n, dtype=torch.int32), torch.ones(n)
    with pytest.raises(RuntimeError, match=rf"^a_crow_indices: the product has {m * n} nonzeros"):
        op.spgemm(*a, *b, n)


OUT_OF_MEMORY = """
import resource, sys, torch
from sparsecore.ops import spgemm as op
torch.set_num_threads(1)
m, n = 3000, 40_000
a = torch.arange(m + 1), torch.zeros(m, dtype=torch.int64), torch.ones(m)
b = torch.tensor([0, n]), torch.arange(n), torch.ones(n)
op.spgemm(*(t[:11] if i % 3 == 0 else t[:10] for i, t in enumerate(a)), *b, n)
size = lambda field: int(open("/proc/self/statm").read().split()[field]) * resource.getpagesize()
used, resident = size(0), size(1)
failed = 0
for spare in range(0, 1200 << 20, 150 << 20):  # C is 1.4 GB: columns, then values
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, -1))
    try:
        op.spgemm(*a, *b, n)
    except (RuntimeError, MemoryError):
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert size(1) < resident + (32 << 20), f"{size(1) - resident} bytes are left behind"
    assert size(0) < used + (256 << 20), "address space is left behind"
crow, col, values = op.spgemm(*(t[:11] if i % 3 == 0 else t[:10] for i, t in enumerate(a)), *b, n)
assert col.numel() == 10 * n and bool((values == 1).all())
print(failed)
"""


def test_no_memory_leaves_nothing_behind():
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 5


def test_working_space_keeps_to_its_bound():
    """A dense row over many columns: without a bound, a table of all of them."""
    n = 1 << 26
    b = torch.tensor([0, 2]), torch.tensor([0, n - 1]), torch.ones(2)
    a = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 0]), torch.ones(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    crow, col, values = op.spgemm(*a, *b, n, memory=1 << 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096
    assert crow.tolist() == [0, 2, 4] and col.tolist() == [0, n - 1] * 2 and values.tolist() == [1, 1, 2, 2]
