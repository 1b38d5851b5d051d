# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs, and that the answer does not depend on threads, forks or who else is calling."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import pytest
import torch
from sparsecore import testing


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh Python."""
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("op", cases.every_op())
def test_the_best_usable_kernel_runs(op):
    if os.environ.get("SPARSECORE_ISA"):
        pytest.skip("not proven: the free choice, because SPARSECORE_ISA is set")
    best = next(kernel for o, kernel, _, missing in testing.kernels() if o == op and not missing)
    cases.function(op)(**cases.of(op).inputs(cases.Case(2, 4, 6, 0.5)))
    assert testing.last_kernel() == best


@pytest.mark.parametrize("op", cases.every_op())
def test_force_isa(op):
    inputs = cases.of(op).inputs(cases.Case(2, 4, 6, 0.5))
    free = torch.ops.sparsecore._isa()
    for _, kernel, isa, missing in [k for k in testing.kernels() if k[0] == op]:
        if missing:
            with pytest.raises(RuntimeError, match=r"lacks|is an"), testing.force_isa(isa):
                pass
        else:
            with testing.force_isa(isa), testing.force_isa("scalar"), testing.force_isa(isa):
                cases.function(op)(**inputs)
                assert testing.last_kernel() == kernel
    assert torch.ops.sparsecore._isa() == free
    with pytest.raises(ZeroDivisionError), testing.force_isa("scalar"):
        raise ZeroDivisionError
    assert torch.ops.sparsecore._isa() == free, "an exception left the ISA forced"


def test_an_unknown_isa_is_refused():
    with pytest.raises(RuntimeError, match=r"sse9.*scalar, neon, avx2, avx512"), testing.force_isa("sse9"):
        pass
    done = python("import sparsecore", SPARSECORE_ISA="sse9")
    assert done.returncode != 0 and "sse9" in done.stderr and "avx2" in done.stderr


def test_an_isa_that_this_cpu_lacks_is_refused_at_import():
    lacking = {isa: missing for _, _, isa, missing in testing.kernels() if missing}
    lacking.setdefault("neon" if sys.platform != "darwin" and os.uname().machine == "x86_64" else "avx2", "")
    for isa in lacking:
        done = python("import sparsecore", SPARSECORE_ISA=isa)
        assert done.returncode != 0 and isa in done.stderr


EVERY_OP = """
import cases
from sparsecore import testing
for op in cases.every_op():
    cases.function(op)(**cases.of(op).inputs(cases.Case(2, 4, 6, 0.5)))
    print(testing.last_kernel())
"""


def test_the_environment_forces():
    usable = {(op, isa) for op, _, isa, missing in testing.kernels() if not missing}
    for isa in sorted({isa for _, isa in usable}):
        done = python(EVERY_OP, SPARSECORE_ISA=isa, PYTHONPATH=str(Path(__file__).parent))
        assert done.returncode == 0, done.stderr
        # An op without a kernel for the ISA runs its scalar one.
        assert done.stdout.split() == [
            f"{op}_{isa if (op, isa) in usable else 'scalar'}" for op in cases.every_op()
        ]


@pytest.mark.parametrize("op", cases.ops())
def test_threads_do_not_change_the_answer(op):
    """Bit for bit, at sizes where the work is split: see kThreadWork in csrc/torch/parallel.h."""
    threads = torch.get_num_threads()
    shapes = [
        cases.Case(m, 1500, 300, 0.2, pattern)
        for m in (1, 7, 70)
        for pattern in ("uniform", "power_law", "one_dense_row")
    ]
    shapes.append(cases.Case(200, 20, 400, 0.5))
    try:
        for case in shapes:
            inputs = cases.of(op).inputs(case)
            answers = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                answers.append(cases.function(op)(**inputs))
            assert all(torch.equal(answers[0], a) for a in answers[1:]), case.name
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("op", cases.ops())
def test_calls_from_several_threads(op):
    samples = [cases.of(op).inputs(cases.Case(m, 200, 100 + m, 0.3)) for m in (1, 2, 3, 9, 40, 65)]
    expected = [cases.function(op)(**s) for s in samples]

    def work(start: int) -> bool:
        order = [(start + i) % len(samples) for i in range(120)]
        return all(torch.equal(cases.function(op)(**samples[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


FORK = """
import os, torch, sparsecore
torch.set_num_threads(1)
w = sparsecore.Csr.from_dense(torch.randn(300, 200) * (torch.rand(300, 200) < 0.3))
x = torch.randn(40, 200)
y = sparsecore.linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(sparsecore.linear(x, w), y) else 3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert torch.equal(sparsecore.linear(x, w), y)
"""


def test_a_fork_after_use():
    """With one thread, as data loader workers have it: torch's own OpenMP pool does not survive a fork."""
    done = python(FORK)
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_ends_well():
    """Unloading the op library at exit must not abort."""
    done = python(
        "import torch\nfrom sparsecore import testing\ntesting.kernels()\ntorch.ops.sparsecore.spmm_csr"
    )
    assert done.returncode == 0, done.stderr
