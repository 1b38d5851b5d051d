# SPDX-License-Identifier: Apache-2.0
"""`sparsecore bench spgemm`: A·A against SciPy, MKL, GraphBLAS and torch; A·Aᵀ where A is not square,
or on request.

Matrices are .npz files of scipy.sparse.save_npz, or, without any, made ones: uniform, banded, power-law.
Everyone is checked against float64 before it is timed, and they take turns, call by call.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sparsecore
import torch
from rich.console import Console
from rich.table import Table

from . import machine, peers, record, timing
from .cases import Case

Calls = dict[str, Callable[[], Any]]
OWN_THREADS = ("mkl", "graphblas")  # beside torch's
DTYPES = {"f32": np.float32, "f64": np.float64}
MADE = {"uniform": (3000, 12), "banded": (4000, 15), "power_law": (4000, 10)}


def made(kind: str) -> Any:
    """[n, n] with so many elements a row on average."""
    import scipy.sparse as sp

    n, width = MADE[kind]
    random = np.random.default_rng(7)
    if kind == "banded":
        return sp.diags_array([random.standard_normal(n)] * width, offsets=list(range(width)), shape=(n, n))
    rows = random.integers(n, size=n * width)
    columns = random.integers(n, size=n * width)
    if kind == "power_law":
        rows, columns = (((t / n) ** 3 * n).astype(np.int64) for t in (rows, columns))
    return sp.coo_array((random.standard_normal(n * width), (rows, columns)), shape=(n, n))


def matrices(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    import scipy.sparse as sp

    for file in files:
        yield file.stem, sp.csr_matrix(sp.load_npz(file))
    if not files:
        for kind in MADE:
            yield kind, sp.csr_matrix(made(kind))


def contenders(a: Any, b: Any, threads: int, say: Callable[[str], None]) -> Calls:
    x, y = (
        sparsecore.Csr(*(torch.from_numpy(t) for t in (m.indptr, m.indices, m.data)), m.shape) for m in (a, b)
    )
    calls: Calls = {"sparsecore": lambda: sparsecore.spgemm(x, y), "scipy": lambda: a @ b}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tx, ty = x.to_torch(), y.to_torch()
    if torch.backends.mkl.is_available():
        calls["torch"] = lambda: tx @ ty
    try:
        mkl = peers._load_mkl()
        mkl.mkl_set_num_threads(threads)
        calls["mkl"] = lambda: mkl.dot_product_mkl(a, b)
    except peers.Unavailable as error:
        say(f"mkl is left out: {error}")
    try:
        import graphblas as gb

        gb.ss.config["nthreads"] = threads
        ga, gbb = gb.io.from_scipy_sparse(a), gb.io.from_scipy_sparse(b)

        def graphblas() -> Any:
            c = ga.mxm(gbb, gb.semiring.plus_times).new()
            c.wait()
            return c

        calls["graphblas"] = graphblas
    except ImportError as error:
        say(f"graphblas is left out: {error}")
    return calls


def as_scipy(result: Any) -> Any:
    import scipy.sparse as sp

    if isinstance(result, sparsecore.Csr):
        return result.to_scipy()
    if isinstance(result, torch.Tensor):
        arrays = (result.values(), result.col_indices(), result.crow_indices())
        return sp.csr_matrix(tuple(t.numpy() for t in arrays), shape=tuple(result.shape))
    if hasattr(result, "ncols"):
        import graphblas as gb

        return gb.io.to_scipy_sparse(result, "csr")
    return result


def error(result: Any, exact: Any, size: Any, longest: int) -> float:
    """Largest error in units of gamma(longest) * |A||B|; right up to 1. Stored zeros count as absent."""
    unit = np.finfo(result.data.dtype).eps / 2 * (longest + 2)
    off = abs(result.astype(np.float64) - exact)
    over = off - size * unit
    return 1.0 if over.nnz == 0 or over.max() <= 1e-300 else float("inf")


MADV_NOHUGEPAGE = 15  # of Linux


class Peak:
    """Most memory that a call adds, C's arrays at least, where the kernel can start its count anew; else 0.
    What earlier calls freed and the heap kept goes back to the system first: it would hide as much of the
    next call. And the wish for large pages that NumPy leaves on the heap ends: 0.5 MB there would take 2."""

    def __init__(self, call: Callable[[], Any]) -> None:
        before = self._start()
        kept = call()
        self.bytes = 0
        if before:
            grown = self._read("VmHWM") - before
            c = as_scipy(kept)
            self.bytes = max(grown, c.data.nbytes + c.indices.nbytes + c.indptr.nbytes)

    @staticmethod
    def _read(name: str) -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) * 1024

    def _start(self) -> int:
        libc = ctypes.CDLL(None)
        if trim := getattr(libc, "malloc_trim", None):
            trim(0)
            for line in Path("/proc/self/maps").read_text().splitlines():
                if line.endswith("[heap]"):
                    begin, end = (int(at, 16) for at in line.split()[0].split("-"))
                    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_NOHUGEPAGE)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            return self._read("VmRSS")
        except OSError:
            return 0


@dataclass
class Turn:
    """What timing.measure asks of a contender."""

    call: Callable[[], Any]
    own_threads: bool
    neighbours: timing.Neighbours

    def sample(self) -> tuple[float, bool]:
        return timing.sample(self.call)


def neighbours(seconds: float) -> timing.Neighbours:
    """A product so small that one thread does it: libraries whose threads are their own may be beside."""
    weight = Case(1, 96, 1024, density=0.3)
    bitmap = sparsecore.Bitmap.from_dense(weight.dense())
    x = weight.x()
    return timing.Neighbours(lambda: bitmap.linear(x), seconds)


def measure(calls: Calls, options: argparse.Namespace) -> dict[str, dict[str, float | int]]:
    turns = [
        Turn(call, who in OWN_THREADS and options.threads > 1, options.neighbours)
        for who, call in calls.items()
    ]
    times = timing.measure(turns, options.repeat, options.seconds, lambda: None)
    return {who: t.summary() for who, t in zip(calls, times, strict=True)}


def cell(
    name: str,
    matrix: Any,
    dtype: str,
    transposed: bool,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> list:
    a = matrix.astype(DTYPES[dtype])
    b = type(a)(a.T.tocsr()) if transposed else a
    lengths = np.diff(b.indptr)[a.indices]
    calls = contenders(a, b, options.threads, say)
    wide = [m.astype(np.float64) for m in (a, b)]
    exact, size = wide[0] @ wide[1], abs(wide[0]) @ abs(wide[1])
    ours = sparsecore.spgemm(*((m.indptr, m.indices, None, m.shape) for m in (a, b)))
    facts = {"matrix": name, "product": "A·Aᵀ" if transposed else "A·A",
             "m": a.shape[0], "k": a.shape[1], "n": b.shape[1], "nnz": int(a.nnz), "dtype": dtype,
             "threads": options.threads, "flops": 2 * int(lengths.sum()),
             "nnz_c": len(ours[1]), "compression": float(lengths.sum() / max(len(ours[1]), 1)),
             **machine.facts()}  # fmt: skip
    errors = {
        who: error(as_scipy(call()), exact, size, int(np.diff(a.indptr).max())) for who, call in calls.items()
    }
    memory = {who: Peak(call).bytes for who, call in calls.items()}
    return [
        facts
        | {"contender": who, **times, "error": errors[who], "peak_bytes": memory[who]}
        | ({} if errors[who] <= 1 else {"us": None})
        for who, times in measure(calls, options).items()
    ]


def speedup(records: list[record.Record], key: str = "us") -> float | None:
    """The best peer's over ours."""
    ours = [r[key] for r in records if r["contender"] == "sparsecore" and r["us"]]
    others = [r[key] for r in records if r["contender"] != "sparsecore" and r["us"]]
    return min(others) / ours[0] if ours and others else None


def by_matrix(records: list[record.Record]) -> list[list[record.Record]]:
    cells: dict[tuple, list[record.Record]] = {}
    for r in records:
        cells.setdefault((r["matrix"], r["product"], r["dtype"], r["threads"]), []).append(r)
    return list(cells.values())


def show(console: Console, records: list[record.Record]) -> None:
    columns = "matrix, product, dtype, threads, Mflop, compression, who, ms, p10, peak MB, ours is"
    table = Table(*columns.split(", "))
    for group in by_matrix(records):
        factor = speedup(group)
        for r in group:
            mine = r["contender"] == "sparsecore"
            head = [
                r["matrix"],
                r["product"],
                r["dtype"],
                str(r["threads"]),
                f"{r['flops'] / 1e6:.2f}",
                f"{r['compression']:.1f}",
            ]
            table.add_row(
                *(head if mine else [""] * 6), r["contender"], f"{r['us'] / 1e3:.3f}" if r["us"] else "WRONG",
                f"{r['p10'] / 1e3:.3f}", f"{r['peak_bytes'] / 1e6:.1f}",
                f"{factor:.2f}x" if mine and factor else "", style="bold" if mine else "",
            )  # fmt: skip
    console.print(table)
    factors = [f for group in by_matrix(records) if (f := speedup(group))]
    if factors:
        mean, worst = statistics.geometric_mean(factors), min(factors)
        console.print(f"against the best peer of each: geometric mean {mean:.2f}x, least {worst:.2f}x")


def plot(records: list[record.Record], path: Path) -> None:
    """Speed-up over the best peer by compression ratio, a mark for each matrix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for (dtype, threads), marker in zip(
        sorted({(r["dtype"], r["threads"]) for r in records}), "osD^v<>P", strict=False
    ):
        points = [(g[0]["compression"], f, g[0]["matrix"]) for g in by_matrix(records)
                  if (g[0]["dtype"], g[0]["threads"]) == (dtype, threads) and (f := speedup(g))]  # fmt: skip
        axes.scatter(
            [p[0] for p in points],
            [p[1] for p in points],
            marker=marker,
            label=f"{dtype}, {threads} thread(s)",
        )
        if dtype == "f32":
            for x, y, name in points:
                axes.annotate(name, (x, y), (3, 3), textcoords="offset points", fontsize=6)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="products per nonzero of C",
        ylabel="times as fast as the best peer",
    )
    axes.set_title(
        f"A·A and A·Aᵀ, {records[0]['device']}, {records[0]['date'][:10]}", loc="left", fontsize=10
    )
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(prog="sparsecore bench spgemm", description=__doc__)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE.npz")
    p.add_argument("--dtypes", default="f32,f64", help="of f32, f64")
    p.add_argument("--transposed", action="store_true", help="A·Aᵀ of square matrices too")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--repeat", type=int, default=15, help="samples of each contender")
    p.add_argument("--seconds", type=float, default=1.0, help="for the samples of a contender, at least 3")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="adds records to it")
    p.add_argument("--plot", type=Path, metavar="FILE.png")
    options = p.parse_args(argv)
    console = Console(width=140, highlight=False)
    torch.set_num_threads(options.threads)
    options.neighbours = neighbours(min(options.seconds, 2.0))
    said: set[str] = set()
    say = lambda text: None if text in said else (said.add(text), console.print(text))[1]
    records: list[record.Record] = []
    for name, matrix in matrices(options.files):
        square = matrix.shape[0] == matrix.shape[1]
        products = (False, True) if square and options.transposed else (not square,)
        for dtype, transposed in itertools.product(options.dtypes.split(","), products):
            new = cell(name, matrix, dtype, transposed, options, say)
            records += new
            if options.out:
                record.append(options.out, new)
    show(console, records)
    if options.plot:
        plot(records, options.plot)
    return int(any(r["us"] is None for r in records if r["contender"] == "sparsecore"))
