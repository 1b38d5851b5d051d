# SPDX-License-Identifier: Apache-2.0
"""The command `sparsecore bench`: run, compare, plot, deepsparse, spgemm, kv."""

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import cases, deepsparse, machine, record, select
from .select import Cell

try:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
except ImportError:
    sys.exit("sparsecore bench needs rich: pip install 'sparsecore[bench]'")

from . import bars, compare, kv, peers, spgemm, table
from .run import Run

CONSOLE = Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def many(kind: Callable[[str], object]) -> Callable[[str], tuple]:
    """The type of an option that takes values with commas between."""

    def parse(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(",") if part)

    parse.__name__ = kind.__name__
    return parse


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


WHAT = {
    "--cases": {
        "metavar": "GLOB",
        "help": "cases by name, e.g. 'm1-*-f32-f32*'; with --bars, of those; --list shows them",
    },
    "--m": {"type": many(int), "metavar": "M,...", "help": "rows of x"},
    "--sparsity": {"type": many(float), "metavar": "S,...", "help": "share of zeros in W"},
    "--shapes": {"type": many(select.shape), "metavar": "NxK,...", "help": "out_features x in_features"},
    "--dtypes": {"type": many(select.pair), "metavar": "X[/VALUES],...", "help": "e.g. f32,f32/bf16,bf16/i8"},
    "--bars": {"action": "store_true", "help": "the speeds that the project must reach, and whether it does"},
    "--quick": {"action": "store_true", "help": "a short pass over run, compare and plot"},
    "--list": {"action": "store_true", "help": "name the cases and stop"},
}
HOW = {
    "--threads": {"type": many(int), "metavar": "N,...", "help": "default: as torch has it"},
    "--isa": {
        "type": many(one_of(*machine.PEER_ISA)),
        "metavar": "ISA,...",
        "help": "hold us and every peer to it, each ISA in a process of its own",
    },
    "--peers": {
        "type": many(one_of(*peers.MAKE, "none", "all")),
        "default": peers.USUAL,
        "metavar": "PEER,...",
        "help": f"{', '.join(peers.MAKE)}, all or none; default: {', '.join(peers.USUAL)}",
    },
    "--repeat": {"type": int, "metavar": "N", "help": "samples of each contender in a cell (default 15)"},
    "--seconds": {
        "type": float,
        "metavar": "S",
        "help": "for the samples of a contender in a cell, disturbed ones included (default 1)",
    },
    "--patience": {
        "type": float,
        "default": 0.0,
        "metavar": "S",
        "help": "seconds to wait in all for other processes to leave the cores free",
    },
    "--out": {"type": Path, "metavar": "FILE.jsonl", "help": "adds records to it (default: in build/bench)"},
}
CACHES = {"cold": ("cold",), "warm": ("warm",), "both": ("cold", "warm")}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="sparsecore bench",
        description="Checks every contender against float64, then times them side by side. Also: "
        "`sparsecore bench compare A B`, `plot FILE`, `bars FILE`, `spgemm`, `kv`, "
        "`deepsparse` (installs that peer).",
    )
    what = p.add_argument_group("what (without any of these: the cases for bench of every op)")
    ops = tuple(cases.ops())
    what.add_argument("--ops", type=many(one_of(*ops)), default=ops, metavar="OP,...", help=", ".join(ops))
    how = p.add_argument_group("how")
    for group, options in ((what, WHAT), (how, HOW)):
        for name, settings in options.items():
            group.add_argument(name, **settings)  # type: ignore[arg-type]
    state = how.add_mutually_exclusive_group()
    meaning = {"cold": "meet another copy of W in every call", "warm": "call in a row", "both": "the default"}
    for name, text in meaning.items():
        state.add_argument(f"--{name}", dest="cache", action="store_const", const=name, help=text)
    return p


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options ask for."""
    extra: list[tuple[str, cases.Case]] = []
    if options.cases:
        return select.cells(select.named(options.ops, options.cases, options.dtypes))
    if options.quick:
        options.shapes, options.sparsity, options.m = ((384, 256),), (0.8,), (1, 16)
        extra = select.made(options.ops, options.shapes, (0.5,), (1,), (select.pair("f32/bf16"),), "2:4")
    if options.m or options.sparsity or options.shapes:
        pairs = options.dtypes or tuple(map(select.pair, ("f32", "f32/bf16", "bf16")))
        return select.cells(
            select.made(
                options.ops,
                options.shapes or bars.SHAPES,
                options.sparsity or bars.SPARSITIES,
                options.m or tuple(bars.TIMES_DENSE),
                pairs,
            )
            + extra
        )
    return select.cells(select.named(options.ops, "*", options.dtypes))


def time_cells(run: Run, cells: list[Cell], out: Path, show_tables: bool = True) -> list[record.Record]:
    """Runs cells, writes each one's records at once, prints a table when a weight is done."""
    records: list[record.Record] = []
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn(),
        console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=len(cells) * len(run.threads))
        run.say = CONSOLE.print
        pending: list[record.Record] = []
        for new in run.cells(cells, lambda text: progress.update(task, description=text)):
            record.append(out, new)
            records += new
            if show_tables and pending and (new[0]["n"], new[0]["k"], new[0]["sparsity"]) != (
                pending[0]["n"], pending[0]["k"], pending[0]["sparsity"]):  # fmt: skip
                table.show(CONSOLE, pending)
                pending = []
            pending += new
            progress.advance(task)
        if show_tables:
            table.show(CONSOLE, pending)
    return records


def default_out(isa: str) -> Path:
    device = re.sub(r"[^a-z0-9.]+", "-", machine.cpu_name().lower().replace("(r)", "")).strip("-")
    now = datetime.datetime.now()
    return Path("build", "bench", f"{now:%Y-%m-%d-%H%M%S}-{device}-{isa}.jsonl")


def wrong(records: list[record.Record]) -> bool:
    """Says which of our ops were outside the error bound."""
    ours = [r for r in records if r["kind"] == "ours" and r["us"] is None]
    faults = {(r["contender"], r["case"], record.types(r)) for r in ours}
    for who, case, types in sorted(faults):
        CONSOLE.print(f"WRONG: {who} {types} on {case}", style="bold red")
    return bool(faults)


def quick(run: Run, cells: list[Cell]) -> int:
    with tempfile.TemporaryDirectory(prefix="sparsecore-bench-") as name:
        folder = Path(name)
        first = time_cells(run, cells, folder / "a.jsonl")
        second = time_cells(run, cells[:1], folder / "b.jsonl", show_tables=False)
        if wrong(first + second):
            return 1
        compare.show(CONSOLE, record.load(folder / "a.jsonl"), record.load(folder / "b.jsonl"))
        try:
            from . import plot
        except ImportError as error:
            CONSOLE.print(f"skipped: the plots are not proven: {error}")
        else:
            CONSOLE.print(f"{len(plot.show(first, folder))} plots drawn")
    return 0


def run_main(argv: Sequence[str]) -> int:
    p = parser()
    options = p.parse_args(argv)
    if options.isa and len(options.isa) > 1:
        command = [sys.executable, "-m", "sparsecore", "bench", *argv]  # the last --isa counts
        return max([subprocess.run([*command, "--isa", isa]).returncode for isa in options.isa])
    if options.isa:
        machine.enter(options.isa[0], list(argv))
    name = options.cases or "*"
    lone = bars.deepsparse_cells(options.ops, name) if options.bars else []  # on one core, against DeepSparse
    cells = bars.cells(options.ops, name) if options.bars else chosen(options)
    if options.list:
        for cell in [*cells, *lone]:
            for op, case in cell.ours:
                CONSOLE.print(f"{op} {case.name}")
        return 0
    if not cells and not lone:
        p.error("no case is left")
    names = tuple(peers.MAKE) if "all" in options.peers else () if "none" in options.peers else options.peers
    caches = CACHES[options.cache or ("cold" if options.bars else "both")]
    run = Run(options.threads or (torch.get_num_threads(),), caches, names, patience=options.patience)
    if options.quick:
        run.rounds, run.seconds, run.quick, run.copies = 3, 0.05, True, 3
        return quick(run, cells)
    run.rounds = options.repeat or run.rounds
    run.seconds = options.seconds or run.seconds
    out = options.out or default_out(str(run.facts["isa"]))
    CONSOLE.print(f"{machine.cpu_name()}, {machine.cores()} cores; records in {out}", soft_wrap=True)
    if options.bars:
        run.threads = (machine.cores(),)
        records = time_cells(run, cells, out)
        one = Run((1,), CACHES["both"], tuple({*names, "deepsparse"}), run.rounds, patience=run.patience)
        records += time_cells(one, lone, out)
        return 1 if wrong(records) or not bars.show(CONSOLE, records) else 0
    return 1 if wrong(time_cells(run, cells, out)) else 0


def compare_main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(prog="sparsecore bench compare", description="Two result files.")
    p.add_argument("a", type=Path)
    p.add_argument("b", type=Path)
    p.add_argument("--everyone", action="store_true", help="dense and peers too")
    p.add_argument("--strict", action="store_true", help="fail when anything became slower or wrong")
    options = p.parse_args(argv)
    counts = compare.show(CONSOLE, record.load(options.a), record.load(options.b), options.everyone)
    return int(options.strict and counts["slower"] + counts["broken"] > 0)


def plot_main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(prog="sparsecore bench plot", description="PNGs of a result file.")
    p.add_argument("file", type=Path)
    p.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    options = p.parse_args(argv)
    from . import plot

    for path in plot.show(record.load(options.file), options.out):
        print(path)
    return 0


def bars_main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(prog="sparsecore bench bars", description="The bars, from a result file.")
    p.add_argument("file", type=Path)
    return 0 if bars.show(CONSOLE, record.load(p.parse_args(argv).file)) else 1


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    commands = {
        "compare": compare_main,
        "plot": plot_main,
        "bars": bars_main,
        "spgemm": spgemm.main,
        "kv": kv.main,
        "deepsparse": lambda _: deepsparse.install(),
    }
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    return run_main(arguments)


if __name__ == "__main__":
    sys.exit(main())
