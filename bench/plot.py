# SPDX-License-Identifier: Apache-2.0
"""Pictures of a result file: a roofline, and the speed-up over dense torch by m and sparsity."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from . import record
from .record import Record

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#7f7f7f"
MARKERS = "ovs^DPX*"
HALO = withStroke(linewidth=2, foreground="white")


def _style() -> None:
    plt.rcParams.update({
        "figure.dpi": 150, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False,
    })  # fmt: skip


def _ours(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r["kind"] == "ours" and r["us"] is not None]


def _kinds(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(op, types) in a fixed order, so a colour means the same in both pictures."""
    return sorted({(r["contender"], record.types(r)) for r in _ours(records)})


def roofline(records: list[Record], path: Path) -> None:
    """Flops over time against flops per byte that must move, under the measured ceilings."""
    ours, r = _ours(records), records[0]
    kinds = _kinds(records)
    ms = sorted({r["m"] for r in ours})
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for op, types in kinds:
        colour = COLOURS[kinds.index((op, types)) % len(COLOURS)]
        for point in (p for p in ours if (p["contender"], record.types(p)) == (op, types)):
            marker = MARKERS[ms.index(point["m"]) % len(MARKERS)]
            axes.plot(
                point["flops"] / point["bytes"], point["flops"] / point["us"] / 1e3, marker,
                color=colour, markersize=5.5, alpha=0.8, markeredgewidth=0,
            )  # fmt: skip
    intensity = [p["flops"] / p["bytes"] for p in ours]
    peak, reads = max(p["gflop_s"] for p in ours), [p["read_gb_s"] for p in ours]
    ceilings = {"read from memory": max(reads)}
    if r["cache"] == "warm":
        ceilings = {"fastest read, in cache": max(reads), "slowest read": min(reads)}
    low = min(*intensity, *(peak / read for read in reads)) / 2
    high = max(*intensity, *(peak / read for read in reads)) * 2
    lines = []
    for (name, read), dash in zip(ceilings.items(), ("-", "--"), strict=False):
        label = f"{name}: {read:.0f} GB/s"
        lines += axes.plot([low, peak / read], [low * read, peak], dash, color=GREY, label=label)
    label = f"float32 torch.mm: {peak:.0f} GFLOP/s"
    lines += axes.plot([peak / max(reads), high], [peak, peak], ":", color=GREY, label=label)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("flops on stored elements per byte that must move (compressed W, x and y)")
    axes.set_ylabel("GFLOP/s on stored elements")
    axes.set_title(f"Roofline, {r['cache']} caches\n{record.where(r)}", loc="left", fontsize=10)
    entries = [(f"{op} {types}", COLOURS[i % len(COLOURS)], "o") for i, (op, types) in enumerate(kinds)]
    entries += [(f"m = {m}", GREY, MARKERS[i % len(MARKERS)]) for i, m in enumerate(ms)]
    marks = [Line2D([], [], color=c, marker=mark, linestyle="", label=text) for text, c, mark in entries]
    figure.legend(handles=[*marks, *lines], loc="outside right center", fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def _bars(axes: Axes, cells: list[list[Record]], kinds: list[tuple[str, str]]) -> None:
    cells = sorted(cells, key=lambda cell: cell[0]["m"])
    width = 0.86 / (len(kinds) + 1)
    for at, cell in enumerate(cells):
        dense = record.best(cell, lambda r: r["kind"] == "dense")
        bars = []
        for i, kind in enumerate(kinds):
            mine = record.best([r for r in cell if (r["contender"], record.types(r)) == kind], lambda r: True)
            bars.append((COLOURS[i % len(COLOURS)], mine))
        bars.append(("#bbbbbb", record.best(cell, lambda r: r["kind"] == "peer")))
        for i, (colour, r) in enumerate(bars):
            if r is None or dense is None:
                continue
            height, x = dense["us"] / r["us"], at + (i - (len(bars) - 1) / 2) * width
            axes.bar(x, height, width * 0.94, color=colour)
            axes.annotate(
                f"{height:.1f}", (x, height), (0, 2), "data", "offset points",
                ha="center", va="bottom", fontsize=6, rotation=90, path_effects=[HALO],
            )  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8, zorder=1.5)
    axes.set_xticks(range(len(cells)), [f"m = {cell[0]['m']}" for cell in cells])
    axes.grid(axis="x", visible=False)


def speedups(records: list[Record], path: Path) -> None:
    """Bars: best dense torch over us, a panel for each shape and sparsity, a group for each m."""
    cells = list(record.by_cell(records).values())
    kinds = _kinds(records)
    shapes = sorted({(c[0]["n"], c[0]["k"]) for c in cells})
    sparsities = sorted({c[0]["sparsity"] for c in cells})
    size = (max(5.5, 1 + 3.3 * len(sparsities)), 1.4 + 2.5 * len(shapes))
    figure, grid = plt.subplots(
        len(shapes), len(sparsities), figsize=size, layout="constrained", sharey="col", squeeze=False
    )
    for row, shape in zip(grid, shapes, strict=True):
        for axes, sparsity in zip(row, sparsities, strict=True):
            here = [c for c in cells if ((c[0]["n"], c[0]["k"]), c[0]["sparsity"]) == (shape, sparsity)]
            if not here:
                axes.set_axis_off()
                continue
            _bars(axes, here, kinds)
            axes.set_title(f"{shape[0]} x {shape[1]}, {sparsity:.0%} zeros", fontsize=9)
            axes.margins(y=0.15)
    figure.supylabel("times as fast as the best dense torch", fontsize=9)
    r = records[0]
    labels = [f"{op} {types}" for op, types in kinds] + ["best sparse peer"]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(kinds))] + ["#bbbbbb"]
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in colours]
    figure.legend(handles, labels, loc="outside lower center", ncols=max(2, int(size[0] / 2)), fontsize=8)
    figure.suptitle(f"Speed-up over dense torch, {r['cache']} caches\n{record.where(r)}", fontsize=10)
    figure.savefig(path)
    plt.close(figure)


def show(records: list[Record], folder: Path) -> list[Path]:
    """Writes both pictures for each cache state, number of threads and ISA; returns their paths."""
    _style()
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple, list[Record]] = {}
    for r in records:
        groups.setdefault(record.key(r, ("isa", "threads", "cache")), []).append(r)
    paths = []
    for (isa, threads, cache), group in groups.items():
        if not _ours(group):
            continue
        for name, draw in (("roofline", roofline), ("speedup", speedups)):
            paths.append(folder / f"{name}-{isa}-{threads}t-{cache}.png")
            draw(group, paths[-1])
    return paths
