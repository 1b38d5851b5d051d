# SPDX-License-Identifier: Apache-2.0
"""The speed that the project holds itself to, cell by cell.

Against the best of dense torch's float32 and bfloat16 in the same run, on all cores, x float32; and
ahead of every sparse peer, for N:M weights of our other formats too. And against DeepSparse on one core.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from rich.console import Console
from rich.text import Text

from . import record, select, table
from .cases import bf16, f32
from .record import Record

SHAPES = ((4096, 4096), (11008, 4096))
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
TIMES_DENSE = {  # m: speed-up over dense at each sparsity
    1: (2.5, 3.5, 4.5, 7.0),
    4: (4.0, 5.0, 6.0, 8.0),
    16: (1.8, 2.5, 4.0, 6.0),
    64: (1.0, 1.2, 1.6, 3.0),
    256: (1.0, 1.2, 1.6, 3.0),
}
NM_TIMES_DENSE = {  # zeros, n:m (n:0 of the row): m: speed-up over dense; of a constant fan-in at 90 %
    (0.5, "2:4"): {1: 2.5, 4: 4.0},
    (0.75, "1:4"): {1: 4.0},
    (0.75, "2:8"): {1: 4.0},
    (0.9, "410:0"): {1: 5.0, 16: 5.0},
}
FAN_IN_TIMES_CSR = 2.0  # how far ahead of torch's CSR that is to be
PAIRS = ((f32, f32), (f32, bf16))  # x, values
DEEPSPARSE = {"shapes": ((1024, 1024),), "sparsities": (0.9, 0.95), "ms": (64,)}


def cells(ops: Sequence[str], names: str = "*") -> list[select.Cell]:
    """The cells that have a bar, of cases whose name matches."""
    found = select.made(ops, SHAPES, SPARSITIES, TIMES_DENSE, PAIRS)
    if "spmm_nm" in ops:
        for (zeros, pattern), ms in NM_TIMES_DENSE.items():
            found += select.made(ops, SHAPES, (zeros,), ms, PAIRS, pattern)
    return select.cells((op, case) for op, case in found if fnmatch(case.name, names))


def deepsparse_cells(ops: Sequence[str], names: str = "*") -> list[select.Cell]:
    found = select.made(ops, pairs=PAIRS, **DEEPSPARSE)  # type: ignore[arg-type]
    return select.cells((op, case) for op, case in found if fnmatch(case.name, names))


def _bar(r: Record) -> float | None:
    if (r["n"], r["k"]) not in SHAPES:
        return None
    if r["pattern"] != "uniform":
        return NM_TIMES_DENSE.get((r["sparsity"], r["pattern"]), {}).get(r["m"])
    if r["sparsity"] not in SPARSITIES:
        return None
    return TIMES_DENSE.get(r["m"], (None,) * 4)[SPARSITIES.index(r["sparsity"])]


def _ours(cell: Iterable[Record], value: str | None) -> Record | None:
    values = ("f32", "bf16") if value is None else (value,)
    ours = lambda r: r["kind"] == "ours" and r["dtype"] == "f32" and r["value"] in values
    return record.best(cell, lambda r: ours(r) and (r["contender"] == "spmm_nm" or ":" not in r["pattern"]))


def verdict(cell: list[Record]) -> dict[str, Any] | None:
    """What there is to say of one cell; None where it has no bar."""
    dense = record.best(cell, lambda r: r["kind"] == "dense")
    bar = _bar(cell[0])
    if bar is None or dense is None:
        return None
    said: dict[str, Any] = {"bar": bar, "dense": dense, "values": {}}
    for value in ("f32", "bf16"):
        mine = _ours(cell, value)
        if mine:
            limits = {"bytes, flops": mine["limit_us"], "instructions": mine["in_cache_us"] or 0.0}
            why = max(limits, key=limits.__getitem__)
            said["values"][value] = {"record": mine, "ratio": dense["us"] / mine["us"],
                                     "limit": dense["p10"] / limits[why], "why": why}  # fmt: skip
    kinds = ("peer", "ours") if ":" in cell[0]["pattern"] else ("peer",)
    peers = [r for r in cell if r["kind"] in kinds and r["contender"] != "spmm_nm" and r["us"] is not None]
    peers.sort(key=lambda r: -r["us"])  # the best types of a contender last
    mine = _ours(cell, None)
    said["peers"] = {p["contender"]: p["us"] / mine["us"] for p in peers} if mine else {}
    said["met"] = bool(mine) and max(v["ratio"] for v in said["values"].values()) >= bar
    ahead = min(said["peers"].values(), default=float("inf")) > 1
    if cell[0]["pattern"].endswith(":0"):
        ahead &= said["peers"].get("torch_csr", FAN_IN_TIMES_CSR) >= FAN_IN_TIMES_CSR
    said["ahead"] = bool(mine) and ahead
    return said


def _value_columns(v: dict[str, Any] | None, bar: float) -> list[str | Text]:
    """How much faster than dense, and at most could be."""
    if v is None:
        return ["", ""]
    op = v["record"]["contender"].removeprefix("spmm_")
    said = Text(f"{v['ratio']:.2f}x {op}", style="green" if v["ratio"] >= bar else "red")
    return [
        said,
        "pass" if v["ratio"] >= bar else f"MISS {v['limit']:.2f}x {v['why']}",
    ]


def zeros(r: Record) -> str:
    """Share of zeros, and which kind where it is not just any."""
    return f"{r['sparsity']:.0%}" + f" {r['pattern']}" * (r["pattern"] != "uniform")


def show(console: Console, records: list[Record]) -> bool:
    """Prints the table; whether every bar is met."""
    met = total = behind = 0
    by_where: dict[tuple, dict[tuple, list[Record]]] = {}
    for key, cell in record.by_cell(records).items():
        by_where.setdefault(record.key(cell[0], ("threads", "isa", "cache")), {})[key] = cell
    for (_, _, cache), cells in by_where.items():
        ordered = sorted(
            cells.values(), key=lambda cell: record.key(cell[0], ("n", "k", "pattern", "sparsity", "m"))
        )
        verdicts = [(cell[0], said) for cell in ordered if (said := verdict(cell))]
        if not verdicts:
            continue
        first = verdicts[0][0]
        out = table.plain(
            f"Bars, {cache} caches; {record.where(first)}\n"
            "if missed: what its bytes or flops at the measured ceilings, or its instructions, would allow "
            "(fastest tenths)",
            "shape", "zeros", "m", "bar", "<best dense", "µs",
            "f32 values", "<", "bf16 values", "<", "<nearest sparse peer",
        )  # fmt: skip
        for r, said in verdicts:
            dense, peers = said["dense"], said["peers"]
            near = min(peers, key=peers.__getitem__, default=None)
            nearest = f"{near} {peers[near]:.2f}x" if near else ""
            total, met, behind = total + 1, met + said["met"], behind + (not said["ahead"])
            columns = [_value_columns(said["values"].get(value), said["bar"]) for value in ("f32", "bf16")]
            out.add_row(
                f"{r['n']}x{r['k']}", zeros(r), str(r["m"]), f"{said['bar']:.1f}x",
                dense["dtype"], table.number(dense["us"]), *columns[0], *columns[1],
                Text(nearest, style="green" if said["ahead"] else "red"),
                end_section=r["m"] == max(TIMES_DENSE),
            )  # fmt: skip
        console.print(out)
        if doubt := table.doubts(r for cell in cells.values() for r in cell):
            console.print(doubt, style="yellow")
    deep = _show_deepsparse(console.print, records)
    console.print(
        f"bars over dense met by the best values: {met} of {total}; behind a sparse peer: {behind} of {total}"
    )
    return met == total and not behind and deep


def _show_deepsparse(say: Callable[[str], None], records: list[Record]) -> bool:
    shape = DEEPSPARSE["shapes"][0]
    ahead = seen = 0
    wanted = [r for r in records if (r["n"], r["k"]) == shape and r["threads"] == 1]
    for cell in record.by_cell(wanted).values():
        engine, mine = record.best(cell, lambda r: r["contender"] == "deepsparse"), _ours(cell, None)
        if engine and mine:
            seen, ahead = seen + 1, ahead + (engine["us"] > mine["us"])
            m, n, k, zeros, cache = record.key(mine, ("m", "n", "k", "sparsity", "cache"))
            say(
                f"DeepSparse, one core, {m}x{k} @ {k}x{n}, {zeros:.0%} zeros, {cache}: "
                f"{engine['us']:,.0f} µs; {mine['contender']} {record.types(mine)} {mine['us']:,.0f} µs: "
                f"{engine['us'] / mine['us']:.2f}x {'pass' if engine['us'] > mine['us'] else 'MISS'}"
            )
    if not seen:
        say("DeepSparse: not compared (sparsecore bench deepsparse installs it)")
    return ahead == seen
