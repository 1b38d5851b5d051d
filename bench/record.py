# SPDX-License-Identifier: Apache-2.0
"""Result files: a JSON line for each contender, cell and cache state.

who      contender, kind (ours, dense, peer), kernel, style (which of its calls), dtype of x, value dtype
what     case, op, m, n, k, sparsity, pattern
how      cache (cold, warm), copies (of W, met in turn), threads, isa, isa_forced, peer_isa
result   us (median), p10, p90, samples, disturbed (samples among them during which a thread lost its CPU, or
         next to which the cores were slow), set_aside (samples beside them), others (cores
         that other processes used), error (in units of the bound; right up to 1)
needs    bytes, flops, limit_us (both at the ceilings), read_gb_s and gflop_s (the ceilings), in_cache_us (of
         ours: what the call would take if the cores' own caches held W, by what fewer rows take: its
         instructions; null beyond 16 rows of x and where it drowned in noise)
where    date, device, cores, last_cache_bytes, versions
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

CELL = ("n", "k", "sparsity", "pattern", "m", "threads", "isa", "cache")
KEY = (*CELL, "contender", "dtype", "value", "case")


def append(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)


def load(path: Path) -> list[Record]:
    """The last record of every measurement."""
    lines = (json.loads(line) for line in path.read_text().splitlines() if line)
    return list({key(r): r for r in lines}.values())


def key(r: Record, names: Iterable[str] = KEY) -> tuple:
    return tuple(r[name] for name in names)


def by_cell(records: Iterable[Record]) -> dict[tuple, list[Record]]:
    """Those that were measured side by side."""
    cells: dict[tuple, list[Record]] = {}
    for r in records:
        cells.setdefault(key(r, CELL), []).append(r)
    return cells


def best(records: Iterable[Record], wanted: Callable[[Record], bool]) -> Record | None:
    """The fastest that is right."""
    found = [r for r in records if r["us"] is not None and r["error"] <= 1 and wanted(r)]
    return min(found, key=lambda r: r["us"], default=None)


def types(r: Record) -> str:
    return r["dtype"] if r["dtype"] == r["value"] else f"{r['dtype']}/{r['value']}"


def speedup(r: Record, other: Record | None) -> float | None:
    return other["us"] / r["us"] if other and r["us"] else None


def where(r: Record) -> str:
    """A line for titles."""
    return f"{r['device']}, {r['threads']} thread{'s' * (r['threads'] != 1)}, {r['isa']}, {r['date'][:10]}"
