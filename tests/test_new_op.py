# SPDX-License-Identifier: Apache-2.0
"""`make new-op` gives an op that builds and passes the generic suites, in a copy of the tree."""

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "spmm_fresh"
SUITES = [
    "tests/test_reference.py",
    "tests/test_registration.py",
    "tests/test_dispatch.py",
    "tests/test_native.py",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy that builds in seconds: scalar kernels alone, no CUDA, and no native adapter but the model's."""
    copy = tmp_path_factory.mktemp("tree") / "sparsecore"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "results", "__pycache__")
    )
    for op in copy.glob("csrc/ops/*"):
        for kernel in op.glob(f"{op.name}_*.cpp"):
            if kernel.stem != f"{op.name}_scalar":
                kernel.unlink()
        for device in (*op.glob("*.cu"), *op.glob("op_cuda.cpp")):
            device.unlink()
        for adapter in (copy / "tests" / "native").glob(f"{op.name}*.cpp"):
            if adapter.name != "spmm_csr.cpp":
                adapter.unlink()
        table = op / "kernels.cpp"
        table.write_text(re.sub(r"^#if defined.*?^#endif\n", "", table.read_text(), flags=re.M | re.S))
    return copy


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def files(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_a_new_op_builds_and_passes_the_generic_suites(tree, tmp_path):
    before = files(tree)
    run(sys.executable, "tools/new_op.py", NAME, cwd=tree)
    after = files(tree)
    edited = {name for name in before if before[name] != after[name]}
    assert edited == {"python/sparsecore/ops/__init__.py", "CHANGELOG.md"}

    # This Python's packages, without its own sparsecore: a plain path runs no other .pth file.
    venv.create(tmp_path, with_pip=False)
    python = tmp_path / "bin" / "python"
    site = next((tmp_path / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    options = "--no-index --no-deps --ignore-installed --no-build-isolation -C cmake.build-type=Debug".split()
    options += ["-C", "cmake.define.SPARSECORE_CUDA=OFF"]
    run(python, "-m", "pip", "install", *options, "-e", tree, cwd=tree)
    suites = [s for s in SUITES if (tree / s).exists()]
    slow = "avx or neon or module or the_reference_is_the_equation"
    said = run(python, "-m", "pytest", *suites, "-k", f"{NAME} and not ({slow})", cwd=tree)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= len(suites), said


def test_a_name_that_is_taken_or_malformed_is_refused(tree):
    for name in ("spmm_csr", "Spmm", "../x", ""):
        done = subprocess.run(
            [sys.executable, "tools/new_op.py", name], cwd=tree, capture_output=True, text=True
        )
        assert done.returncode != 0 and done.stderr.strip()
