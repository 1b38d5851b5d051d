# SPDX-License-Identifier: Apache-2.0
"""Two result files side by side: what became faster or slower by more than the spread of both."""

from rich.console import Console
from rich.text import Text

from . import record, table
from .record import Record


def change(a: Record, b: Record) -> str:
    """ "faster" or "slower" where the middle 80 % of samples of a and b don't meet and medians differ
    by 3 %, else "same"; "broken" and "mended" where one of them was wrong."""
    if a["us"] is None or b["us"] is None:
        return "same" if a["us"] is b["us"] else "broken" if b["us"] is None else "mended"
    if b["p90"] < a["p10"] and b["us"] < 0.97 * a["us"]:
        return "faster"
    if b["p10"] > a["p90"] and b["us"] > 1.03 * a["us"]:
        return "slower"
    return "same"


STYLE = {"faster": "green", "mended": "green", "slower": "red", "broken": "bold red", "same": "dim"}


def show(console: Console, a: list[Record], b: list[Record], everyone: bool = False) -> dict[str, int]:
    """Prints a row for each measurement that both have, of our ops or of everyone; counts changes."""
    before = {record.key(r): r for r in a}
    both = [(before[record.key(r)], r) for r in b if record.key(r) in before]
    both = [(x, y) for x, y in both if everyone or x["kind"] == "ours"]
    counts = dict.fromkeys(STYLE, 0)
    if not both:
        console.print("no measurement is in both files")
        return counts
    x, y = both[0]
    out = table.plain(
        f"A: {record.where(x)}\nB: {record.where(y)}",
        "case", "<who", "<cache", "threads", "<isa", "A µs", "B µs", "B over A", "<",
    )  # fmt: skip
    for x, y in both:
        what = change(x, y)
        counts[what] += 1
        out.add_row(
            x["case"], x["contender"], x["cache"], str(x["threads"]), x["isa"], table.number(x["us"]),
            table.number(y["us"]), table.ratio(record.speedup(y, x)), Text(what, style=STYLE[what]),
        )  # fmt: skip
    console.print(out)
    if x["device"] != y["device"]:
        console.print("not the same device", style="bold red")
    said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    console.print(
        f"{len(both)} measurements in both: {said}; {len(a) + len(b) - 2 * len(both)} others left out"
    )
    return counts
