# SPDX-License-Identifier: Apache-2.0
"""Times contenders side by side, so that whatever disturbs the machine disturbs them alike.

Round by round every contender has a turn:
  warm   an untimed call, then timed ones
  cold   the same, but each call meets another of so many copies of W that the last cache has long lost
         it: as in a model whose layers follow one another, code, x and y stay near and W comes from memory
Torch's threads stay awake for some milliseconds after a call. A contender with threads of its own waits
until they sleep, and after its turn until its own do: nobody pays for another's spinning.
A sample during which the kernel took the CPU from one of our threads, or next to which the cores were slower
than they can be (Neighbours), is taken again while there is time. Of what was taken, each contender keeps as
many as were asked for: those beside which the cores were fastest.
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
    neighbours: "Neighbours | None"

    def call(self) -> object: ...
    def sample(self) -> tuple[float, bool]:
        """(seconds of one call, whether it was disturbed)."""
        ...


class Neighbours:
    """Whether others' threads on the same physical cores slow ours; /proc may not show it.

    `call` is a fixed job of some 20 us on the threads that a contender uses, small enough for their caches;
    `usual` is what it takes at best, three times in a row.
    """

    def __init__(self, call: Callable[[], object], seconds: float = 1.0) -> None:
        self.call = call
        self.usual = float("inf")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.usual = min(self.usual, max(sample(call)[0] for _ in range(3)))

    def slowness(self) -> float:
        """1 on free cores. The first calls wake threads, and bring back what a sample drove out."""
        return min(sample(self.call)[0] for _ in range(5)) / self.usual


def sample(call: Callable[[], object]) -> tuple[float, bool]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter_ns()
    kept = call()  # to be freed in nobody's time
    end = time.perf_counter_ns()
    del kept
    return (end - start) / 1e9, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != before


SLOW = 1.15  # slowness from which a sample is disturbed


@dataclass
class Times:
    wanted: int = 1
    samples: list[tuple[float, float]] = field(default_factory=list)
    """(slowness of the cores, seconds)"""

    def add(self, seconds: float, slowness: float) -> None:
        self.samples.append((slowness, seconds))

    def clean(self) -> int:
        return sum(slowness <= SLOW for slowness, _ in self.samples)

    def summary(self) -> dict[str, float | int]:
        """Microseconds, of the `wanted` samples beside which the cores were fastest."""
        kept = sorted(self.samples, key=lambda s: s[0])[: self.wanted]
        used = [seconds for _, seconds in kept]
        deciles = statistics.quantiles(used, n=10, method="inclusive") if len(used) > 1 else used
        return {
            "us": statistics.median(used) * 1e6,
            "p10": deciles[0] * 1e6,
            "p90": deciles[-1] * 1e6,
            "samples": len(used),
            "disturbed": sum(slowness > SLOW for slowness, _ in kept),
            "set_aside": len(self.samples) - len(used),
        }


def _turn(c: Timed, samples: int, seconds: float, times: Times) -> None:
    """Samples until so many are clean, or as many were tried and that took `seconds`."""
    if c.own_threads:
        time.sleep(TORCH_POOL_S)
    c.call()
    clean, tried, end = times.clean() + samples, 0, time.perf_counter() + seconds
    slowness = c.neighbours.slowness if c.neighbours else lambda: 1.0
    after = slowness()
    while times.clean() < clean and (tried < samples or time.perf_counter() < end):
        took, interrupted = c.sample()
        before, after = after, slowness()
        times.add(took, float("inf") if interrupted else max(before, after))
        tried += 1
    if c.own_threads:
        time.sleep(FOREIGN_POOL_S)


def measure(
    contenders: Sequence[Timed], rounds: int, seconds: float, tick: Callable[[], None]
) -> list[Times]:
    """`rounds` samples of each contender, fewer (at least 3, or 1 above a second) of one that would
    take more than `seconds` for them, in which others are tried for disturbed ones."""
    counts = []
    for c in contenders:
        c.call()
        estimate = c.sample()[0]
        counts.append(max(1 if estimate > 1 else 3, min(rounds, int(seconds / estimate))))
    times = [Times(count) for count in counts]
    for r in range(rounds):
        for c, count, t in zip(contenders, counts, times, strict=True):
            turns = -(-count // TURN)
            before, after = ((i * turns + rounds // 2) // rounds for i in (r, r + 1))
            if after > before:
                wanted = after * count // turns - before * count // turns
                _turn(c, wanted, seconds / turns, t)
        tick()
    return times
