# SPDX-License-Identifier: Apache-2.0
"""The layout's rules: who may include what, what an ISA's object may export, size and head of a file."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "package" / "CMakeFiles" / "sparsecore_kernels.dir" / "csrc"

C_STD = r"<c[a-z]+>"
CXX_STD = r"<[a-z_]+>"
STABLE = r"<torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/.*>"
ISA = "scalar|avx2|avx512|neon"

# Room: a pattern of paths below csrc/, and of what its files include. {op} is the op's folder.
ROOMS = {
    "core": (r"core/\w+\.(h|cpp)", [CXX_STD, '"core/.*"']),
    "simd": (r"cpu/simd/\w+\.h", [C_STD, "<immintrin.h>", "<arm_neon.h>", '"core/.*"', '"cpu/simd/.*"']),
    "cpu": (r"cpu/\w+\.(h|cpp)", [CXX_STD, '"core/.*"', '"cpu/.*"']),
    "cuda": (r"cuda/\w+\.h", [C_STD, "<cuda_runtime.h>", "<utility>", '"core/.*"', '"cuda/.*"']),
    "contract": (r"ops/(?P<op>\w+)/(?P=op)\.h", [C_STD, '"core/.*"', '"cpu/.*"']),
    "kernel": (
        rf"ops/(?P<op>\w+)/(?P=op)_(({ISA})\.cpp|[a-z]+\.h)",
        [C_STD, "<immintrin.h>", "<arm_neon.h>", '"core/.*"', '"cpu/.*"', '"ops/{op}/.*"'],
    ),
    "part of .cu": (
        r"ops/(?P<op>\w+)/(?P=op)_cuda_[a-z]+\.h",
        [C_STD, '"core/.*"', '"cuda/.*"', '"ops/{op}/.*"'],
    ),
    ".cu": (r"ops/(?P<op>\w+)/(?P=op)(_sm\d+)?\.cu", [C_STD, '"core/.*"', '"cuda/.*"', '"ops/{op}/.*"']),
    "op_cuda.cpp": (
        r"ops/(?P<op>\w+)/op_cuda\.cpp",
        [STABLE, CXX_STD, '"torch/.*"', '"core/.*"', '"ops/{op}/{op}.h"'],
    ),
    "kernels.cpp": (r"ops/(?P<op>\w+)/kernels\.cpp", ['"ops/{op}/{op}.h"', '"cpu/(isa|kernel_table).h"']),
    "op.cpp": (
        r"ops/(?P<op>\w+)/op\.cpp",
        [STABLE, CXX_STD, '"torch/.*"', '"core/.*"', '"cpu/.*"', '"ops/{op}/{op}.h"'],
    ),
    "torch": (
        r"torch/\w+\.(h|cpp)",
        [STABLE, CXX_STD, r"<sys/\w+\.h>", '"torch/.*"', '"core/.*"', '"cpu/.*"'],
    ),
}


def below(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    return sorted(p for p in found if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", below("csrc"), ids=name_of)
def test_file_is_in_one_room_and_includes_what_it_may(path):
    relative = str(path.relative_to(CSRC))
    rooms = [
        (room, found, allowed)
        for room, (pattern, allowed) in ROOMS.items()
        if (found := re.fullmatch(pattern, relative))
    ]
    assert len(rooms) == 1, f"rooms of {relative}: {[room for room, *_ in rooms]}"
    room, found, patterns = rooms[0]
    allowed = [p.format(**found.groupdict()) for p in patterns]
    includes = re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', path.read_text(), re.MULTILINE)
    wrong = [i for i in includes if not any(re.fullmatch(p, i) for p in allowed)]
    assert not wrong, f"room '{room}' may include {allowed}, not {wrong}"


@pytest.mark.parametrize("op", sorted(p.name for p in (CSRC / "ops").iterdir() if p.is_dir()))
def test_op_has_its_five_places(op):
    places = [f"csrc/ops/{op}/{op}.h", f"csrc/ops/{op}/{op}_scalar.cpp", f"python/sparsecore/ops/{op}.py"]
    places += [f"tests/cases/{op}.py", f"tests/native/{op}.cpp"]
    assert not [place for place in places if not (ROOT / place).is_file()]
    assert re.search(rf"\b{op}$", (ROOT / "python/sparsecore/ops/__init__.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("kernel", sorted(CSRC.glob("ops/*/*.cu")), ids=name_of)
def test_cuda_kernel_has_its_places(kernel):
    op = kernel.parent.name
    places = [f"csrc/ops/{op}/op_cuda.cpp", f"tests/native/{op}_cuda.cpp"]
    assert not [place for place in places if not (ROOT / place).is_file()]
    assert "* launch(" in (CSRC / "ops" / op / f"{op}.h").read_text(), "the contract declares no launch"


def test_isa_objects_define_no_weak_symbol():
    """The linker keeps one copy of a weak symbol for every CPU: one built for AVX-512 crashes older ones."""
    objects = [p for p in OBJECTS.rglob("*.o") if re.search(rf"_({ISA})\.cpp\.o$", p.name)]
    sources = [p for p in CSRC.glob("ops/*/*.cpp") if p.stem.endswith("_scalar")]
    assert len(objects) >= len(sources) > 0, f"no objects of the kernels in {OBJECTS}: run make build"
    table = subprocess.run(
        ["nm", "-A", "-C", "--defined-only", *map(str, objects)], capture_output=True, text=True, check=True
    ).stdout
    weak = [line for line in table.splitlines() if re.search(r" [WwVvu] ", line)]
    assert not weak, "\n".join(weak)


SOURCES = [
    *below("csrc", "python", "tests", "bench", "examples", "tools", "cmake"),
    *(
        p
        for p in ROOT.iterdir()
        if p.suffix in {".md", ".toml", ".txt"} or p.name in {"Makefile", ".clang-format"}
    ),
    *below(".ci"),
]
CODE = [
    p
    for p in SOURCES
    if p.suffix in {".h", ".cpp", ".cu", ".py", ".cmake", ".sh", ".toml"} or p.name == "Makefile"
]


def test_files_have_at_most_500_lines():
    long = {name_of(p): n for p in CODE if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_files_name_their_licence_first():
    def head(path: Path) -> str:
        return "\n".join(path.read_text().splitlines()[:2])

    assert not [name_of(p) for p in CODE if "SPDX-License-Identifier: Apache-2.0" not in head(p)]


def test_files_name_no_path_of_a_machine():
    pattern = re.compile(rb"/(?:work|farm|root|home)/|/tmp/[a-z]")
    texts = [p for p in SOURCES if p.suffix not in {".png", ".gz"} and p != Path(__file__).resolve()]
    assert not [name_of(p) for p in texts if pattern.search(p.read_bytes())]
