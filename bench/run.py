# SPDX-License-Identifier: Apache-2.0
"""Runs cells: checks every contender, then times them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from . import contender, machine, peers, record, timing
from .cases import Case, bf16, f32
from .check import Checker
from .select import NAMES, Cell

FEW = 16  # rows of x up to which a row of W costs alike however many there are
NOT_TIMED = {"us": None, "p10": None, "p90": None, "samples": 0, "disturbed": 0, "set_aside": 0}


@dataclass
class Run:
    """How to time; `said` collects what could not be done."""

    threads: tuple[int, ...]
    caches: tuple[str, ...] = ("cold", "warm")
    peers: tuple[str, ...] = peers.USUAL
    rounds: int = 15
    seconds: float = 1.0  # of samples, for a contender in a cell
    quick: bool = False
    copies: int = 1024  # of W at most, in cold cells
    patience: float = 0.0  # seconds in all to wait for a machine that is free
    say: Callable[[str], None] = print
    facts: dict = field(default_factory=machine.facts)
    ceilings: dict[int, machine.Ceilings] = field(default_factory=dict)
    neighbours: dict[tuple[str, int], timing.Neighbours] = field(default_factory=dict)

    def cells(self, cells: list[Cell], tick: Callable[[str], None]) -> Iterator[list[record.Record]]:
        """The records of one cell after another, for every number of threads."""
        weight = None
        for cell in cells:
            if weight is None or weight.case != cell.weight:
                tick(f"building {cell.key.n} x {cell.key.k}, density {cell.key.density:g}")
                weight = None  # the last one's memory, before the next one's
                weight = contender.Weight(cell.weight)
            checker = Checker(weight, cell.key)
            for threads in self.threads:
                torch.set_num_threads(threads)
                self.ceilings.setdefault(threads, machine.Ceilings(threads, self.quick))
                yield self._cell(cell, weight, checker, threads, tick)

    def _contenders(self, cell: Cell, weight: contender.Weight, threads: int) -> list[contender.Contender]:
        copies = self.copies if "cold" in self.caches else 1
        within = lambda make: contender.with_copies(make, weight, cell.key, copies)
        found = [within(partial(contender.ours, op=op, case=case)) for op, case in cell.ours]
        found += [within(partial(contender.dense, case=cell.key, dtype=dtype)) for dtype in (f32, bf16)]
        for name in self.peers if not cell.key.bias else ():
            make = partial(peers.MAKE[name], case=cell.key, threads=threads)
            try:
                found.append(make(weight) if name in peers.WARM_ONLY else within(make))
            except peers.Unavailable as why:
                self.say(f"left out: {name}: {why}")
        return found

    @torch.inference_mode()
    def _cell(
        self,
        cell: Cell,
        weight: contender.Weight,
        checker: Checker,
        threads: int,
        tick: Callable[[str], None],
    ) -> list[record.Record]:
        tick(f"checking {cell.key.name}")
        contenders = self._contenders(cell, weight, threads)
        errors = [checker.error(c, c.settle()) for c in contenders]
        right = [c for c, error in zip(contenders, errors, strict=True) if error <= 1]
        near = {
            id(c): contender.InCache.of(op, case, c.nbytes, threads)
            for c, (op, case) in zip(contenders, cell.ours, strict=False)
            if c in right and cell.key.m <= FEW
        }
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            tick(f"timing {cell.key.name}, {done} of {self.rounds * len(self.caches)}")

        records = []
        for cache in self.caches:
            timed = [c for c in right if cache == "warm" or c.others]
            for c in timed:
                c.cold = cache == "cold"
            extra = [c for few in near.values() for c in few.contenders]
            for c in timed + extra:
                c.neighbours = self._neighbours(c, threads)
            times, others = self._measure(timed + extra, count)
            measured = {id(c): t.summary() for c, t in zip(timed, times, strict=False)}
            pairs = iter(times[len(timed) :])
            in_cache = {key: few.us((next(pairs), next(pairs)), cell.key.n) for key, few in near.items()}
            for c, error in zip(contenders, errors, strict=True):
                result = measured.get(id(c), NOT_TIMED) | {"others": round(others, 2)}
                result["in_cache_us"] = in_cache.get(id(c))
                records.append(self._record(cell, c, threads, cache, error, result))
        return records

    def _neighbours(self, c: contender.Contender, threads: int) -> timing.Neighbours | None:
        """Asked with 160 KB of weight, by the peer itself where it has threads of its own."""
        if c.name in peers.WARM_ONLY:
            return None
        name = c.name if c.own_threads else ""
        if (name, threads) not in self.neighbours:
            case = Case(1, 256, 1024)
            weight = contender.Weight(case)
            small = (
                peers.MAKE[name](weight, case, threads)
                if name
                else contender.ours(weight, "spmm_bitmap", case)
            )
            small.settle()
            self.neighbours[name, threads] = timing.Neighbours(small.call, 0.1 if self.quick else 2.0)
        return self.neighbours[name, threads]

    def _measure(
        self, contenders: list[contender.Contender], tick: Callable[[], None]
    ) -> tuple[list[timing.Times], float]:
        """Also the cores that others took; again while that is much and patience is left."""
        others = timing.Others()
        best: tuple[list[timing.Times], float] = [], float("inf")
        for _ in range(3):
            self.patience = others.wait(self.patience)
            others.start()
            times = timing.measure(contenders, self.rounds, self.seconds, tick)
            best = min(best, (times, others.cores()), key=lambda b: b[1])
            if best[1] < timing.BUSY or not self.patience:
                break
        return best

    def _record(
        self, cell: Cell, c: contender.Contender, threads: int, cache: str, error: float, result: dict
    ) -> record.Record:
        ceilings, key = self.ceilings[threads], cell.key
        copies = 1 + len(c.others) if cache == "cold" else 1
        named = {(op, case.dtype, case.value): case for op, case in cell.ours}
        case = named.get((c.name, c.dtype, c.value), key)
        return {
            "contender": c.name, "kind": c.kind, "kernel": c.kernel, "style": c.style,
            "dtype": NAMES[c.dtype], "value": NAMES[c.value],
            "case": case.name, "op": c.name if c.kind == "ours" else None,
            "m": key.m, "n": key.n, "k": key.k, "sparsity": round(1 - key.density, 6), "pattern": key.pattern,
            "cache": cache, "copies": copies, "threads": threads, "used_threads": c.threads or threads,
            **result, "error": error if math.isfinite(error) else 1e9,
            "bytes": c.nbytes, "flops": c.flops, "limit_us": ceilings.limit_us(c.nbytes, c.flops, cache),
            "read_gb_s": ceilings.read(None if cache == "cold" else c.nbytes) / 1e9,
            "gflop_s": ceilings.flops / 1e9,
            **self.facts,
        }  # fmt: skip
