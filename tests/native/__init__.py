# SPDX-License-Identifier: Apache-2.0
"""Kernel variants called by name over tensors, past torch's dispatcher.

    for variant in native.variants("spmm_csr"):
        outcome = native.call(variant, {"x": x, ...}, {"y": y}, k=64)

A call runs in a runner process (runner.cpp) behind guard pages: natively for the kernels of this CPU,
under qemu-aarch64-static for those of ARM (whose build has sanitizers, and serves sanitize.py too), and on
an emulated grid (tests/emulator) for those of CUDA, or on the GPU when SPARSECORE_CUDA_ON=hardware. The
runners are built when first wanted, into build/.
"""

import atexit
import contextlib
import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
AARCH64 = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
)
SANITIZED = (
    "-DSPARSECORE_NATIVE_MODULE=OFF",
    # Lines alone, smaller functions, a plain register allocator: spgemm_avx2.cpp in 21 s, not 70; 14 without
    # checks of pointers that nobody reads through.
    "-DCMAKE_CXX_FLAGS=-O1 -g1 -fno-inline-functions-called-once -fira-region=one"
    " -fsanitize=address,undefined -fno-sanitize=pointer-overflow -fno-sanitize-recover=all",
)
# The leak check does not work under emulation; the runtime is found beside the cross compiler.
UNDER_QEMU = {"ASAN_OPTIONS": "detect_leaks=0", "QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu"}
HARDWARE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DSPARSECORE_NATIVE_MODULE=OFF",
    "-DSPARSECORE_NATIVE_DEVICE=ON",
)
ARM_PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64-static": "qemu-user-static"}


@dataclass(frozen=True)
class Variant:
    op: str
    name: str
    isa: str
    runner: str  # which Runner runs it
    missing: str  # why it can't run, or ""


class Crash(AssertionError):
    """The runner died: a kernel touched memory outside its arrays, or ran an unknown instruction."""


def package_kernels() -> list[str]:
    """The option that takes the kernels of the package's own build tree, where that can build."""
    tree = ROOT / "build" / "package"
    cache = tree / "CMakeCache.txt"
    settings = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.M)) if cache.exists() else {}
    tools = [settings.get(name, "") for name in ("CMAKE_COMMAND", "CMAKE_MAKE_PROGRAM")]
    return [f"-DSPARSECORE_BUILT={tree if all(map(shutil.which, tools)) else ''}"]


def build_arm(target: str) -> Path:
    return build("aarch64", target, *SANITIZED, *AARCH64)


@cache
def build(kind: str, target: str, *options: str) -> Path:
    """Configures and builds `target` of this folder's CMake project; returns the path of its product."""
    folder = ROOT / "build" / kind
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        commands = [["cmake", "--build", str(folder), "--target", target]]
        configured = "\n".join([sys.executable, *options])
        stamp = folder / ".configured"
        if not stamp.exists() or stamp.read_text() != configured:
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            commands.insert(0, ["cmake", "-S", str(HERE), "-B", str(folder), *generator,
                                f"-DPython_EXECUTABLE={sys.executable}", *options])  # fmt: skip
        for command in commands:
            # A cmake beside this Python counts even when its environment isn't activated.
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        stamp.write_text(configured)
    return next(p for p in folder.glob(f"{target}*") if p.suffix in ("", ".so"))


class Runner:
    """A process of runner.cpp: "here", "aarch64" under emulation, or here on an emulated CPU model."""

    def __init__(self, kind: str):
        self.environment = os.environ.copy()
        if kind == "aarch64":
            emulator = ["qemu-aarch64-static"]
            program = build_arm("native_runner")
            self.environment |= UNDER_QEMU
        elif kind == "hardware":
            emulator = shlex.split(os.environ.get("SPARSECORE_CUDA_UNDER", ""))  # compute-sanitizer, say
            program = build("native-device", "native_device", *HARDWARE)
        else:
            emulator = [] if kind == "here" else ["qemu-x86_64-static", "-cpu", kind]
            program = build("native", "native_runner", "-DCMAKE_BUILD_TYPE=Release", *package_kernels())
        self.command = [*emulator, program]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment
            )

    def stop(self) -> None:
        """Ends the process; what watches it (compute-sanitizer) has then written its report."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def send(self, *data: bytes | memoryview) -> None:
        self.start()
        with contextlib.suppress(BrokenPipeError):
            for d in data:
                self.process.stdin.write(d)
            self.process.stdin.flush()

    def line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            _, err = self.process.communicate()
            code, self.process = self.process.returncode, None
            raise Crash(f"the runner died with status {code}: {err.decode()[-500:]}")
        return line.decode().rstrip("\n")

    def list(self) -> list[list[str]]:
        self.send(b"list\n")
        return [line.split(" ", 4)[1:] for line in iter(self.line, "end")]


@cache
def runner(kind: str) -> Runner:
    made = Runner(kind)
    atexit.register(made.stop)
    return made


def emulation_missing() -> str:
    """Why ARM kernels can't run under emulation here, or ''."""
    if platform.machine() == "aarch64":
        return "x86 is not emulated on ARM"
    absent = [package for tool, package in ARM_PACKAGES.items() if not shutil.which(tool)]
    return f"ARM is not emulated: apt install {' '.join(absent)}" if absent else ""


def _declared(op: str) -> list[tuple[str, str]]:
    """(kernel, ISA) that the C++ files of an op define, for whatever processor."""
    files = sorted((ROOT / "csrc" / "ops" / op).glob(f"{op}_*.cpp"))
    return [found for f in files for found in re.findall(r'\{\s*"(\w+)",\s*cpu::Isa::(\w+)', f.read_text())]


@cache
def variants(op: str) -> tuple[Variant, ...]:
    """Every CPU kernel variant of op, with why it can't run here."""
    arm = any((ROOT / "csrc" / "ops" / op).glob("*_neon.cpp")) and not emulation_missing()
    kinds = ["here", "aarch64"] if arm else ["here"]
    every = [
        Variant(*entry[:3], kind, entry[3].strip("-")) for kind in kinds for entry in runner(kind).list()
    ]
    found = {v.name: v for v in reversed(every) if v.op == op and v.isa != "cuda"}  # here before emulated
    reason = emulation_missing() or "this processor does not have it, and it is not emulated"
    absent = [Variant(op, name, isa, "here", reason) for name, isa in _declared(op) if name not in found]
    return (*reversed(found.values()), *absent)


def cuda_variants(op: str) -> tuple[Variant, ...]:
    """The CUDA kernels of op, or of the emulator's own tests, where SPARSECORE_CUDA_ON says."""
    kind = "hardware" if os.environ.get("SPARSECORE_CUDA_ON") == "hardware" else "here"
    found = [entry for entry in runner(kind).list() if entry[0] == op and entry[2] == "cuda"]
    return tuple(Variant(*entry[:3], kind, entry[3].strip("-")) for entry in found)


def _bytes(t: torch.Tensor) -> memoryview:
    return memoryview(t.contiguous().view(-1).view(torch.uint8).numpy()) if t.numel() else memoryview(b"")


def _dtype(t: torch.Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def call(
    variant: Variant, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor], **integers: int
):
    """Runs a variant behind guard pages. Fills `outputs` (sent as they are) and returns named integers."""
    arrays = [(n, t, "in") for n, t in inputs.items()] + [(n, t, "out") for n, t in outputs.items()]
    head = [f"call {variant.name} {len(integers)} {len(arrays)}"]
    head += [f"{name} {value}" for name, value in integers.items()]
    head += [f"{n} {way} {_dtype(t)} {t.dim()} {' '.join(map(str, t.shape))}" for n, t, way in arrays]
    r = runner(variant.runner)
    r.send("\n".join(head).encode(), b"\n", *(_bytes(t) for _, t, _ in arrays))
    verdict, _, rest = r.line().partition(" ")
    if verdict != "ok":
        raise ValueError(rest)
    for t in outputs.values():
        data = r.process.stdout.read(t.numel() * t.element_size())
        if t.numel():
            t.copy_(torch.frombuffer(bytearray(data), dtype=t.dtype).view(t.shape))
    words = rest.split()[1:]
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


@cache
def module():
    """sparsecore_native: the same calls in this process, without guard pages (for benchmarks)."""
    import importlib.util

    path = build("native", "sparsecore_native", "-DCMAKE_BUILD_TYPE=Release", *package_kernels())
    spec = importlib.util.spec_from_file_location("sparsecore_native", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def call_here(name: str, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor], **integers: int):
    """Runs a variant of this CPU in this process, in place. Every tensor must be contiguous."""
    arrays = [(n, _dtype(t), list(t.shape), t.view(-1).view(torch.uint8).numpy(), way)
              for way, group in ((False, inputs), (True, outputs)) for n, t in group.items()]  # fmt: skip
    return module().run(name, integers, arrays)
