# SPDX-License-Identifier: Apache-2.0
"""The report names every kernel; a wrong SPARSECORE_ISA is an error at import that says why."""

import os
import subprocess
import sys

import pytest
from sparsecore import doctor
from sparsecore.doctor import Kernel

TABLE = [
    Kernel("op", "op_avx512", "avx512", "this CPU lacks avx512f"),
    Kernel("op", "op_avx2", "avx2", ""),
    Kernel("op", "op_scalar", "scalar", ""),
]


@pytest.mark.parametrize("forced, used", [("", "op_avx2"), ("scalar", "op_scalar"), ("neon", "op_scalar")])
def test_in_use(forced, used):
    assert doctor.in_use(TABLE, forced).name == used


def run(isa: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sparsecore", "doctor"],
        env={**os.environ, "SPARSECORE_ISA": isa},
        capture_output=True,
        text=True,
    )


def test_report_names_every_kernel_and_what_is_forced():
    done = run("scalar")
    assert done.returncode == 0, done.stderr
    assert "scalar is forced by SPARSECORE_ISA" in done.stdout
    kernels = doctor.kernels()
    assert kernels
    for kernel in kernels:
        assert kernel.name in done.stdout
    assert done.stdout.count("in use") == len({k.op for k in kernels})


def test_isa_that_no_kernel_has_or_the_cpu_lacks_is_refused_and_says_why():
    with pytest.raises(ImportError, match="SPARSECORE_ISA=sse9: no such ISA; this build has avx512, avx2"):
        doctor.check_isa("sse9", TABLE)
    with pytest.raises(ImportError, match="SPARSECORE_ISA=avx512: this CPU lacks avx512f"):
        doctor.check_isa("avx512", TABLE)
    doctor.check_isa("avx2", TABLE)
