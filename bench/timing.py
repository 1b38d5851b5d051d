# SPDX-License-Identifier: Apache-2.0
"""Times contenders side by side, so that whatever disturbs the machine disturbs them alike.

Round by round every contender has a turn:
  warm   an untimed call, then timed ones
  cold   the same, but each call meets another of so many copies of W that the last cache has long lost
         it: as in a model whose layers follow one another, code, x and y stay near and W comes from memory
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

# Seconds for which the threads of Intel's OpenMP spin (KMP_BLOCKTIME, set when it is loaded): they are
# awake for a timed call, as torch's are.
FOREIGN_POOL_S = 0.06
TORCH_POOL_S = 0.02
TURN = 5  # samples
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


def _turn(c: Timed, samples: int, times: Times) -> None:
    if c.own_threads:
        time.sleep(TORCH_POOL_S)
    c.call()
    for _ in range(samples):
        for _ in range(3):
            seconds, disturbed = c.sample()
            times.add(seconds, disturbed)
            if not disturbed:
                break
    if c.own_threads:
        time.sleep(FOREIGN_POOL_S)


def measure(
    contenders: Sequence[Timed], rounds: int, seconds: float, tick: Callable[[], None]
) -> list[Times]:
    """`rounds` samples of each contender, fewer (at least 3, or 1 above a second) of one that would
    take more than `seconds` for them."""
    counts = []
    for c in contenders:
        c.call()
        estimate = c.sample()[0]
        counts.append(max(1 if estimate > 1 else 3, min(rounds, int(seconds / estimate))))
    times = [Times() for _ in contenders]
    for r in range(rounds):
        for c, count, t in zip(contenders, counts, times, strict=True):
            turns = -(-count // TURN)
            before, after = ((i * turns + rounds // 2) // rounds for i in (r, r + 1))
            if after > before:
                _turn(c, after * count // turns - before * count // turns, t)
        tick()
    return times
