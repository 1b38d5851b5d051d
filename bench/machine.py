# SPDX-License-Identifier: Apache-2.0
"""This machine: name, versions, caches, the ISA that a run is held to, ceilings."""

import datetime
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

import sparsecore
import torch
from sparsecore import testing

# What holds torch, MKL, oneDNN and DeepSparse to the ISA that our kernels are forced to. All of them
# read it once, when they are loaded.
PEER_ISA = {
    "scalar": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "NM_ARCH": "avx2",
    },
    "avx512": {},
    "neon": {},
}


def environment(isa: str) -> dict[str, str]:
    """Variables of a process whose kernels, ours and the peers', all keep to `isa`."""
    return {"SPARSECORE_ISA": isa, **PEER_ISA[isa]}


def enter(isa: str, argv: list[str]) -> None:
    """Starts this process anew with `isa` in its environment, unless it is there already."""
    wanted = environment(isa)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "sparsecore", "bench", *argv]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def isa() -> tuple[str, bool]:
    """The ISA of our kernels here and whether it is forced."""
    forced = torch.ops.sparsecore._isa()
    usable = [isa for _, _, isa, missing in testing.kernels() if not missing]
    return forced or next(i for i in ("avx512", "avx2", "neon", "scalar") if i in usable), bool(forced)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cache_sizes() -> dict[int, int]:
    """Bytes of a core's data caches by level; empty where the system doesn't say."""
    sizes = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        text = (folder / "size").read_text().strip()
        if (folder / "type").read_text().strip() != "Instruction":
            sizes[int((folder / "level").read_text())] = int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0)
    return sizes


def last_cache_bytes() -> int:
    """Bytes of the largest cache, 64 MiB where the system doesn't say."""
    return max(cache_sizes().values(), default=64 << 20)


def own_cache_bytes() -> int:
    """Bytes of the second cache, 512 KiB where the system doesn't say."""
    return cache_sizes().get(2, 512 << 10)


def versions() -> dict[str, str]:
    """Of what was timed; "library" tells builds of our kernels apart."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    found["library"] = hashlib.sha256(sparsecore.library.read_bytes()).hexdigest()[:12]
    for name in ("sparsecore", "numpy", "scipy", "mkl", "sparse-dot-mkl", "suitesparse-graphblas"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts() -> dict[str, object]:
    """What every record of a run says about where it was measured."""
    name, forced = isa()
    limits = {v: os.environ[v] for v in PEER_ISA["avx2"] if v in os.environ}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "cores": cores(),
        "last_cache_bytes": last_cache_bytes(),
        "isa": name,
        "isa_forced": forced,
        "peer_isa": limits,
        "versions": versions(),
    }


def _best_seconds(calls: list[Callable[[], object]], seconds: float) -> float:
    best = float("inf")
    for call in calls:
        call()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            call()
            best = min(best, time.perf_counter() - start)
    return best


@dataclass
class Ceilings:
    """What the machine can do with `threads` threads: the best that several simple torch calls reach."""

    threads: int
    quick: bool = False
    _read: dict[int, float] = field(default_factory=dict)

    @property
    def beyond_cache(self) -> int:
        return max(256 << 20, 4 * last_cache_bytes())

    def read(self, size: int | None = None) -> float:
        """Bytes per second of reading `size` bytes again and again, in powers of two; None: from memory."""
        if size is None:
            size = self.beyond_cache
        size = min(1 << max(size - 1, 1 << 15).bit_length(), self.beyond_cache)
        if size not in self._read:
            x = torch.ones(size // 4)
            rows, ones, whole = x.view(-1, 4096), torch.ones(4096), x.view(torch.int32)
            calls: list[Callable[[], object]] = [x.sum, whole.amin, lambda: rows @ ones, lambda: x.dot(x)]
            self._read[size] = size / _best_seconds(
                calls, 0.02 if self.quick else 0.4 if size == self.beyond_cache else 0.1
            )
        return self._read[size]

    @property
    def flops(self) -> float:
        """Multiply-adds (as two) a second of a large float32 torch.mm."""
        if not hasattr(self, "_flops"):
            side = 768 if self.quick else 2048
            x = torch.randn(side, side)
            self._flops = 2 * side**3 / _best_seconds([lambda: x @ x], 0.05 if self.quick else 1)
        return self._flops

    def limit_us(self, nbytes: int, flops: int, cache: str) -> float:
        """The least time for these bytes and flops, whichever takes longer."""
        bandwidth = self.read(None if cache == "cold" else nbytes)
        return max(nbytes / bandwidth, flops / self.flops) * 1e6
