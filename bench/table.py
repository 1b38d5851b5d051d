# SPDX-License-Identifier: Apache-2.0
"""Records as tables on the terminal."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import record, timing
from .record import Record

ROUNDING = ((100, 0), (10, 1), (0, 2))


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    digits = next(d for least, d in ROUNDING if abs(value) >= least)
    return f"{value:,.{digits}f}{unit}"


def ratio(value: float | None) -> Text:
    """Green where ahead, red where behind."""
    if value is None:
        return Text("")
    return Text(number(value, "x"), style="green" if value >= 1.05 else "red" if value < 0.95 else "")


def plain(title: str, *columns: str) -> Table:
    """A table whose first column is text; a column named with a leading < is too."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        left = i == 0 or name.startswith("<")
        table.add_column(name.removeprefix("<"), justify="left" if left else "right", no_wrap=True)
    return table


def _row(r: Record, dense: Record | None, peer: Record | None) -> list[str | Text]:
    ours = r["kind"] == "ours"
    name = Text(r["kernel"] or r["contender"], style={"ours": "bold", "peer": "dim"}.get(r["kind"], ""))
    if r["us"] is None:
        wrong = Text(f"WRONG: {r['error']:.3g} bounds off", style="bold red")
        return [str(r["m"]), name, record.types(r), wrong]
    spread = (r["p90"] - r["p10"]) / r["us"] / 2
    mark = "!" if r["disturbed"] > r["samples"] // 2 else ""
    bound = "flops" if r["flops"] / r["gflop_s"] > r["bytes"] / r["read_gb_s"] else "read"
    return [
        str(r["m"]), name, record.types(r), number(r["us"]), f"{spread:.0%}{mark}",
        number(r["bytes"] / r["us"] / 1e3), number(r["flops"] / r["us"] / 1e3),
        f"{r['limit_us'] / r['us']:.0%} {bound}",
        ratio(record.speedup(r, dense)) if r is not dense else "",
        ratio(record.speedup(r, peer)) if ours else "",
    ]  # fmt: skip


def weight(records: list[Record]) -> Table:
    """Everything of one weight, cache state and number of threads; rows of x from few to many."""
    r = records[0]
    what = f"{r['n']} x {r['k']}, {r['sparsity']:.0%} zeros"
    what += f", {r['pattern']}" * (r["pattern"] != "uniform")
    threads = f"{r['threads']} thread{'s' * (r['threads'] != 1)}"
    limited = " (peers held to it)" * bool(r["isa_forced"] and r["peer_isa"])
    table = plain(
        f"{what}; {r['cache']}, {threads}, {r['isa']}{limited}",
        "m", "<who", "<types", "µs", "±", "GB/s", "GFLOP/s", "of ceiling", "vs dense", "vs best peer",
    )  # fmt: skip
    order = {"ours": 0, "dense": 1, "peer": 2}
    for cell in record.by_cell(sorted(records, key=lambda r: r["m"])).values():
        dense = record.best(cell, lambda r: r["kind"] == "dense")
        peer = record.best(cell, lambda r: r["kind"] == "peer")
        for r in sorted(cell, key=lambda r: (order[r["kind"]], r["dtype"] != "f32", r["us"] or 0)):
            table.add_row(*_row(r, dense, peer))
        table.add_section()
    return table


def doubts(records: Iterable[Record]) -> str:
    """A line where other processes ran while these were timed, else ''."""
    cores = max((r["others"] for r in records), default=0.0)
    return f"in doubt: other processes used up to {cores:.1f} cores meanwhile" if cores > timing.BUSY else ""


def show(console: Console, records: Iterable[Record]) -> None:
    groups: dict[tuple, list[Record]] = {}
    for r in records:
        groups.setdefault(record.key(r, (n for n in record.CELL if n != "m")), []).append(r)
    for group in groups.values():
        console.print(weight(group))
        console.print(doubts(group), style="yellow", end="\n" * bool(doubts(group)))
