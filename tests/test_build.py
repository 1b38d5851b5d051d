# SPDX-License-Identifier: Apache-2.0
"""What the built library asks of the machine it is loaded on, and what the wheel says it runs on."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import sparsecore
from sparsecore.built_with import NVCC

FOUND = {p.stem: p for folder in sparsecore.__path__ for p in Path(folder).glob("lib/libsparsecore_*.so")}
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
