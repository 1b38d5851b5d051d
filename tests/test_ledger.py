# SPDX-License-Identifier: Apache-2.0
"""The status of a kernel follows every change of what it is made of; nothing is proven without a run."""

import re
import subprocess
import sys
from pathlib import Path

import sparsecore
from sparsecore import doctor, ledger
from sparsecore.built_with import NVCC

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"


def tree(folder: Path) -> Path:
    """A csrc with one kernel, which includes a header that includes another, and a third nobody includes."""
    for name, text in {
        "ops/op/op.cu": '#include "ops/op/op.h"\n#include <cuda_runtime.h>\n',
        "ops/op/op.h": '#pragma once\n#  include "core/format.h"\n',
        "core/format.h": '#include "ops/op/op.h"\nint format;\n',
        "core/other.h": "int other;\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_digest_follows_what_is_included_and_nothing_else(tmp_path):
    csrc = tree(tmp_path)
    kernel = csrc / "ops/op/op.cu"
    assert [p.name for p in ledger.closure(kernel, csrc)] == ["format.h", "op.cu", "op.h"]
    before = ledger.digest(kernel, csrc)
    for name in ("ops/op/op.cu", "ops/op/op.h", "core/format.h"):
        text = (csrc / name).read_text()
        (csrc / name).write_text(text + "\n")
        assert ledger.digest(kernel, csrc) != before, name
        (csrc / name).write_text(text)
    (csrc / "core/other.h").write_text("int another;\n")
    assert ledger.digest(kernel, csrc) == before


def test_status_before_a_run_after_it_and_after_a_change(tmp_path):
    path = tmp_path / "ledger.json"
    assert ledger.status("op.cu", "aa", ledger.read(path)) == "unproven: it has not run on a device yet"
    ledger.write(path, {"op.cu": ledger.Proof("aa", "NVIDIA H200", "2026-11-22", 291)})
    assert ledger.status("op.cu", "aa", ledger.read(path)) == "proven on NVIDIA H200 at 2026-11-22"
    assert ledger.status("op.cu", "bb", ledger.read(path)) == "unproven since its last change"
    assert ledger.status("other.cu", "aa", ledger.read(path)).startswith("unproven")


def test_the_table_of_ops_takes_the_status():
    text = "| op | what | on CUDA |\n|---|---|---|\n| `a` | x \\| y | ? |\n| `b`, `c` | z | ? |\nend | of |\n"
    said = ledger.op_table(text, {"a": "proven", "d": "no"})
    assert said.splitlines()[2:] == ["| `a` | x \\| y | proven |", "| `b`, `c` | z | - |", "end | of |"]
    assert ledger.op_table(said, {"a": "proven"}) == said


def test_the_manifest_is_that_of_the_sources(tmp_path):
    """Of the build that is installed: `make build` after a change."""
    out = tmp_path / "manifest.json"
    command = [sys.executable, ROOT / "python/sparsecore/ledger.py", "manifest", CSRC, out]
    assert subprocess.run(command).returncode == 0
    built = [p for folder in sparsecore.__path__ for p in Path(folder).glob("cuda_kernels.json")]
    assert bool(built) == bool(NVCC)
    assert all(p.read_text() == out.read_text() for p in built)


def test_the_doctor_tells_every_kernel_s_status():
    said = doctor.report()
    if not NVCC:
        assert "CUDA kernels: none, sparsecore was built without nvcc" in said
        return
    status_of = ledger.statuses(ROOT)
    assert status_of.keys() == {f.stem for f in ledger.kernel_files(CSRC)} and status_of
    for op, status in status_of.items():
        assert re.search(rf"^  {op} +{re.escape(status)}$", said, re.MULTILINE), said


def test_every_proof_is_of_a_kernel_that_exists():
    assert ledger.read(ROOT / ledger.LEDGER).keys() <= ledger.manifest(CSRC).keys()
