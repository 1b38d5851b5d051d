# SPDX-License-Identifier: Apache-2.0
"""Times contenders side by side, so that whatever disturbs the machine disturbs them alike.

Round by round every contender has a turn:
  warm   an untimed call, then timed ones
  cold   each call after a read of twice the last cache, by torch's threads on every core
Torch's threads stay awake for some milliseconds after a call. A contender with threads of its own waits
until they sleep, and after its turn until its own do: nobody pays for another's spinning.
A sample during which the kernel took the CPU from one of our threads is taken again, a few times.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from . import machine

# Seconds for which the threads of Intel's OpenMP spin (KMP_BLOCKTIME, set when it is loaded): longer
# than a sweep, so they are awake for a timed call, as torch's are.
FOREIGN_POOL_S = 0.06
TORCH_POOL_S = 0.02
FOREIGN_TURN = 5  # samples a turn of a contender with its own threads
BUSY = 0.1  # cores; more than that taken by other processes and a cell's times are in doubt


def _cpu_ticks() -> tuple[float, float]:
    """CPU time used on this machine, and that of it by this process and its children."""
    whole = sum(int(t) for i, t in enumerate(Path("/proc/stat").read_text().split()[1:9]) if i not in (3, 4))
    mine, own = 0, str(os.getpid())
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = file.read_text().rpartition(") ")
        except OSError:
            continue
        fields = rest.split()
        if head.split(" ", 1)[0] == own or fields[1] == own:
            mine += int(fields[11]) + int(fields[12])
    return whole, mine


class Others:
    """How many cores other processes keep busy; unknown (0) where there is no /proc."""

    def __init__(self) -> None:
        self.known = Path("/proc/stat").exists()
        self.start()

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), *(_cpu_ticks() if self.known else (0, 0))

    def start(self) -> None:
        self.at = self._now()

    def cores(self) -> float:
        """Since start()."""
        if not self.known:
            return 0.0
        now = self._now()
        ticks = (now[1] - self.at[1]) - (now[2] - self.at[2])
        return max(0.0, ticks / os.sysconf("SC_CLK_TCK") / (now[0] - self.at[0]))

    def wait(self, patience: float) -> float:
        """Waits until others leave the cores alone, at most so many seconds; returns what is left."""
        end = time.perf_counter() + patience
        while time.perf_counter() < end:
            self.start()
            time.sleep(0.3)
            if self.cores() < BUSY:
                break
        return max(0.0, end - time.perf_counter())


class Timed(Protocol):
    own_threads: bool

    def call(self) -> object: ...
    def sample(self) -> tuple[float, bool]:
        """(seconds of one call, whether it was disturbed)."""
        ...


def sample(call: Callable[[], object]) -> tuple[float, bool]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter_ns()
    call()
    end = time.perf_counter_ns()
    return (end - start) / 1e9, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != before


class Sweep:
    """Evicts everything from every core's caches by reading twice the last one's size."""

    def __init__(self) -> None:
        self.memory = torch.ones(2 * machine.last_cache_bytes() // 4)

    def __call__(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(machine.cores())
        self.memory.sum()
        torch.set_num_threads(threads)


@dataclass
class Times:
    clean: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    def add(self, seconds: float, disturbed: bool) -> None:
        (self.disturbed if disturbed else self.clean).append(seconds)

    def summary(self) -> dict[str, float | int]:
        """Microseconds. Disturbed samples count only where there are not enough clean ones."""
        enough = len(self.clean) >= max(3, len(self.disturbed) // 4)
        used = self.clean if enough else self.clean + self.disturbed
        deciles = statistics.quantiles(used, n=10, method="inclusive") if len(used) > 1 else used
        return {
            "us": statistics.median(used) * 1e6,
            "p10": deciles[0] * 1e6,
            "p90": deciles[-1] * 1e6,
            "samples": len(used),
            "disturbed": 0 if used is self.clean else len(self.disturbed),
        }


def _turn(c: Timed, samples: int, sweep: Sweep | None, times: Times) -> None:
    if c.own_threads:
        time.sleep(TORCH_POOL_S)
    if c.own_threads or not sweep:
        c.call()
    for _ in range(samples):
        for _ in range(3):
            if sweep:
                sweep()
                if c.own_threads:
                    time.sleep(TORCH_POOL_S)
            seconds, disturbed = c.sample()
            times.add(seconds, disturbed)
            if not disturbed:
                break
    if c.own_threads:
        time.sleep(FOREIGN_POOL_S)


def measure(
    contenders: Sequence[Timed], sweep: Sweep | None, rounds: int, seconds: float, tick: Callable[[], None]
) -> list[Times]:
    """`rounds` samples of each contender, fewer (at least 3, or 1 above a second) of one that would
    take more than `seconds` for them."""
    counts = []
    for c in contenders:
        c.call()
        estimate = c.sample()[0] + (0.01 if sweep else 0)
        counts.append(max(1 if estimate > 1 else 3, min(rounds, int(seconds / estimate))))
    times = [Times() for _ in contenders]
    for r in range(rounds):
        for c, count, t in zip(contenders, counts, times, strict=True):
            turns = -(-count // FOREIGN_TURN) if c.own_threads else count
            turn = (r + 1) * turns // rounds
            if turn > r * turns // rounds:
                _turn(c, turn * count // turns - (turn - 1) * count // turns, sweep, t)
        tick()
    return times
