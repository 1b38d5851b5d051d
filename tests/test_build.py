# SPDX-License-Identifier: Apache-2.0
"""What the built library asks of the machine it is loaded on, and what the wheel says it runs on."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import sparsecore
from sparsecore.built_with import NVCC

FOUND = {p.stem: p for folder in sparsecore.__path__ for p in Path(folder).glob("lib/libsparsecore_*.so")}
ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["libsparsecore_cpu", "libsparsecore_cuda"]


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request) -> str:
    assert FOUND.keys() <= set(LIBRARIES)
    if request.param == "libsparsecore_cuda" and not NVCC:
        assert request.param not in FOUND
        pytest.skip("not proven: what the CUDA library asks for: sparsecore was built without nvcc")
    return str(FOUND[request.param])


def test_library_needs_torch_and_the_c_runtime_alone(library):
    dynamic = output("readelf", "-d", library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    cuda = {"libtorch_cuda.so"} if library.endswith("_cuda.so") else set()
    assert needed >= {"libtorch_cpu.so"} | cuda
    assert needed <= {
        *cuda, "libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6",
        "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2",
    }  # fmt: skip
    assert not re.findall(r"\((?:RPATH|RUNPATH)\).*", dynamic)


def test_library_asks_torch_for_its_c_functions_alone(library):
    undefined = output("nm", "-D", "--undefined-only", "--format=just-symbols", library).split()
    mangled = [s for s in undefined if s.startswith("_Z")]
    demangled = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True).stdout
    assert not re.findall(r"^.*\b(?:at|c10|torch|caffe2)::.*$", demangled, re.MULTILINE)
    assert [s for s in undefined if s.startswith(("aoti_torch_", "torch_"))]


def test_library_exports_nothing_of_its_own(library):
    assert "sparsecore" not in output("nm", "-D", "--defined-only", library)


def test_wheel_is_for_every_python():
    tags = re.findall(
        r"^Tag: (.+)$", metadata.distribution("sparsecore").read_text("WHEEL") or "", re.MULTILINE
    )
    assert tags and all(tag.startswith("py3-none-") for tag in tags), tags


def test_only_torch_numpy_and_safetensors_are_required():
    required = [r for r in metadata.requires("sparsecore") or [] if "extra ==" not in r]
    assert sorted(re.match(r"[\w-]+", r).group() for r in required) == ["numpy", "safetensors", "torch"]


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Configures a build in which nvcc was looked for and not found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
    command += ["-DSPARSECORE_NVCC_PATH=", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})


def test_without_nvcc_the_build_goes_on_and_says_so(tmp_path):
    done = configure(tmp_path)
    assert done.returncode == 0 and "sparsecore is built without CUDA kernels" in done.stdout, done.stderr
    assert 'NVCC = ""' in (tmp_path / "built_with.py").read_text()
    assert "sparsecore_cuda" not in (tmp_path / "cmake_install.cmake").read_text()
    forced = configure(tmp_path, "-DSPARSECORE_CUDA=ON")
    assert forced.returncode != 0 and "no nvcc" in forced.stderr
