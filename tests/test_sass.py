# SPDX-License-Identifier: Apache-2.0
"""What nvcc made of the kernels is what their headers claim. A kernel file's head has, for every kernel,

    // sass <kernel>: <instructions that each instance has>; no <instructions that none has>
    // sass <kernel>: some <instructions that its instances have together>

An instruction is a mnemonic with as many of its dotted parts, in order, as matter: LDS.U.128 meets LDS.128.
RED, a reduction in global memory, is REDG from sm_90 on.
"""

import os
import re
import shutil
import site
import subprocess
from functools import cache
from pathlib import Path

import pytest
import sparsecore
from sparsecore import ledger
from sparsecore.built_with import NVCC

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
KERNEL_FILES = [f.relative_to(ROOT).as_posix() for f in ledger.kernel_files(CSRC)]
VOCABULARY = "tests/emulator/fragments.cu"
CLAIM = re.compile(r"^// sass (\w+): (some )?([\w. ]+?)(?:; no ([\w. ]+))?$", re.MULTILINE)


@cache
def tools() -> tuple[str, str]:
    """cuobjdump and nvdisasm; skips where they are missing."""
    packaged = [str(Path(folder, "nvidia", "cu13", "bin")) for folder in site.getsitepackages()]
    path = os.pathsep.join([os.environ["PATH"], *packaged, "/usr/local/cuda/bin"])
    found = shutil.which("cuobjdump", path=path), shutil.which("nvdisasm", path=path)
    if not all(found):
        pytest.skip("not proven: what the kernels' headers claim: no cuobjdump and nvdisasm")
    return found


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """{function: instructions}."""
    done = subprocess.run([tools()[1], "-c", cubin], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            instructions = made[found[1]] = []
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", line):
            instructions.append(found[1])
    plain = subprocess.run(["c++filt"], input="\n".join(made), capture_output=True, text=True, check=True)
    return dict(zip(plain.stdout.splitlines(), made.values(), strict=True))


@pytest.fixture(scope="module")
def cubins(tmp_path_factory) -> list[Path]:
    """The library's, one a source file and target; the target is in their names."""
    if not NVCC:
        pytest.skip("not proven: what the kernels' headers claim: sparsecore was built without nvcc")
    library = next(
        p for folder in sparsecore.__path__ for p in Path(folder).glob("lib/libsparsecore_cuda.so")
    )
    folder = tmp_path_factory.mktemp("cubins")
    subprocess.run([tools()[0], "-xelf", "all", library], cwd=folder, check=True, capture_output=True)
    return sorted(folder.iterdir())


def kernels(text: str) -> set[str]:
    return set(re.findall(r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(", text))


def has(instructions: list[str], wanted: str) -> bool:
    """Whether one of them has the parts of `wanted`: the same mnemonic, the others in order."""
    first, *rest = wanted.split(".")
    for instruction in instructions:
        mnemonic, *parts = instruction.split(".")
        left = iter(parts)
        if mnemonic in (first, {"RED": "REDG"}.get(first)) and all(part in left for part in rest):
            return True
    return False


def broken(text: str, made: dict[str, dict[str, list[str]]]) -> list[str]:
    """Claims of a kernel file that do not hold, and kernels without a claim."""
    claims = [(k, some, need.split(), (no or "").split()) for k, some, need, no in CLAIM.findall(text)]
    faults = [f"{name}: no claim" for name in kernels(text) - {name for name, *_ in claims}]
    for name, some, needed, never in claims:
        for target, functions in made.items():
            mine = {f: i for f, i in functions.items() if re.search(rf"\b{name}\b", f)}
            if not mine:
                faults.append(f"{name}: not in the code for {target}")
            together = [i for instructions in mine.values() for i in instructions]
            for function, instructions in {"": together}.items() if some else mine.items():
                where = f"{target} {function or name}"
                faults += [f"{where}: no {i}" for i in needed if not has(instructions, i)]
                faults += [f"{where}: has {i}" for i in never if has(instructions, i)]
    return faults


@pytest.mark.parametrize("name", KERNEL_FILES)
def test_kernels_are_made_of_what_their_header_claims(name, cubins):
    text = (ROOT / name).read_text()
    assert CLAIM.search(text)
    mangled = [f"{len(kernel)}{kernel}".encode() for kernel in kernels(text)]
    made = {
        cubin.suffixes[-2]: disassemble(cubin)
        for cubin in cubins
        if any(kernel in cubin.read_bytes() for kernel in mangled)
    }
    assert len(made) >= 3, f"machine code for {list(made)} alone"
    faults = broken(text, made)
    assert not faults


def test_the_vocabulary_is_what_its_instructions_are(tmp_path):
    """Products, asynchronous copies: built here for one target, as no shipped kernel has them all."""
    if not NVCC:
        pytest.skip("not proven: the instructions behind csrc/cuda: no nvcc")
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    text = ""
    for source in (VOCABULARY, "tests/emulator/faults.cu"):
        made = tmp_path / "made.cubin"
        options = ["-std=c++20", "--expt-relaxed-constexpr", "-cubin", "-arch=sm_80"]
        folders = ["-I", CSRC, "-I", ROOT / "tests" / "emulator"]
        subprocess.run([nvcc, *options, *folders, ROOT / source, "-o", made], check=True)
        text = "\n".join(re.findall(r"^// sass .*", (ROOT / source).read_text(), re.MULTILINE))
        faults = broken(text, {"sm_80": disassemble(made)})
        assert text and not faults, source


def test_a_claim_that_does_not_hold_is_told():
    made = {"sm_80": {"void kernel<int>(int*)": ["LDG.E.CONSTANT", "LDS.U.128", "STL.64"], "kernel_b()": []}}
    text = "// sass kernel: LDG LDS.128; no STL\n__global__ void kernel(int*) {}"
    assert broken(text, made) == ["sm_80 void kernel<int>(int*): has STL"]
    text = "// sass kernel: LDG.CONSTANT.E HMMA\n__global__ void __launch_bounds__(8) kernel(int*) {}"
    assert [f.split(": ")[1] for f in broken(text, made)] == ["no LDG.CONSTANT.E", "no HMMA"]
    assert broken("__global__ void kernel(int) {}", made) == ["kernel: no claim"]
    assert broken("// sass other: LDG", made) == ["other: not in the code for sm_80"]
