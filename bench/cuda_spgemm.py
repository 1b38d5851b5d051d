# SPDX-License-Identifier: Apache-2.0
"""sparsecore.spgemm on this GPU against torch.sparse.mm, cuSPARSE's ALG2 and ALG3, and CuPy, if there.

A·A of made matrices. Every answer is held to the CPU's in float64 before its time counts; they take turns,
call by call. Times are of whole calls with the wait for the device: every one reads the number of nonzeros.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sparsecore import ops
from torch import Tensor

from . import cusparse

ROUNDS = 7
SECONDS = 4.0  # at most for a matrix and dtype, beyond three rounds
DTYPES = (torch.float32, torch.float64)
LINE = "{matrix:10}  {dtype:8}  {who:18}  {ms:9.3f} ms  {gflops:7.1f} Gflop/s  {peak_mb:8.1f} MB  {note}"


def stencil(side: int, unknowns: int) -> tuple[Tensor, Tensor, int]:
    """Rows, columns, size: side^3 nodes with 27 neighbours and so many unknowns each: finite elements."""
    axis = torch.arange(side)
    node = torch.cartesian_prod(axis, axis, axis)
    near = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 3)
    other = node[:, None] + near
    inside = ((other >= 0) & (other < side)).all(-1)
    number = lambda t: (t[..., 0] * side + t[..., 1]) * side + t[..., 2]
    rows, columns = number(node)[:, None].expand(-1, 27)[inside], number(other)[inside]
    i, j = torch.cartesian_prod(torch.arange(unknowns), torch.arange(unknowns)).T
    return (
        (rows[:, None] * unknowns + i).flatten(),
        (columns[:, None] * unknowns + j).flatten(),
        unknowns * side**3,
    )


def scattered(size: int, width: int, power: int = 1) -> tuple[Tensor, Tensor, int]:
    """size * width elements anywhere; power 3: rows and columns of low numbers have most, as in graphs."""
    g = torch.Generator().manual_seed(7)
    rows, columns = (
        (torch.rand(size * width, generator=g, dtype=torch.float64) ** power * size).long() for _ in range(2)
    )
    return rows, columns, size


MATRICES: dict[str, Callable[[], tuple[Tensor, Tensor, int]]] = {
    "fem": lambda: stencil(24, 3),
    "stencil": lambda: stencil(48, 1),
    "scattered": lambda: scattered(400_000, 8),
    "graph": lambda: scattered(60_000, 8, 3),
    "small": lambda: scattered(2000, 10),
}


def matrix(name: str, dtype: torch.dtype) -> cusparse.Matrix:
    rows, columns, size = MATRICES[name]()
    places = (rows * size + columns).unique().cuda()
    crow = torch.searchsorted(places, torch.arange(size + 1, device="cuda") * size).int()
    values = torch.randn(places.numel(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return crow, (places % size).int(), values.to("cuda", dtype), size


def calls(a: cusparse.Matrix) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Who, and a call that gives (crow_indices, col_indices, values); rows of peers may be unsorted."""
    yield "sparsecore", lambda: ops.spgemm.spgemm(*a[:3], *a[:3], a[3])
    yield "sparsecore atomics", lambda: ops.spgemm.spgemm(*a[:3], *a[:3], a[3], deterministic=False)
    plan = ops.spgemm.pattern(*a[:2], *a[:2], a[3])
    yield "sparsecore plan", lambda: (*plan, ops.spgemm.values(*a[:3], *a[:3], *plan, a[3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = torch.sparse_csr_tensor(*a[:3], (a[3], a[3]))

    def by_torch() -> tuple[Tensor, Tensor, Tensor]:
        c = torch.sparse.mm(t, t)
        return c.crow_indices(), c.col_indices(), c.values()

    yield "torch", by_torch
    for algorithm in cusparse.ALGORITHMS:
        yield f"cuSPARSE {algorithm}", lambda algorithm=algorithm: cusparse.spgemm(a, a, algorithm)
    try:
        import cupy
        from cupyx.scipy.sparse import csr_matrix

        cupy.cuda.set_allocator(lambda size: _of_torch(cupy, size))
        array = lambda i: cupy.from_dlpack(a[i])
        c = csr_matrix((array(2), array(1), array(0)), shape=(a[3], a[3]))
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        print(f"CuPy is left out: {error}")
        return

    def by_cupy() -> tuple[Tensor, Tensor, Tensor]:
        made = c @ c
        return tuple(torch.from_dlpack(x) for x in (made.indptr, made.indices, made.data))  # type: ignore[return-value]

    yield "CuPy", by_cupy


def _of_torch(cupy: Any, size: int) -> Any:
    """Memory for CuPy out of torch's, so that both are counted alike."""
    held = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(held.data_ptr(), size, held), 0)


def wrong(answer: Any, a: cusparse.Matrix, exact: Any, sizes: Tensor) -> str:
    """'' for what lies within gamma(products of a row) * |A||A| of float64's, place by place."""
    crow, col, values = answer
    n, longest = a[3], int(a[0].diff().max()) * 2
    rows = torch.arange(n, device="cuda").repeat_interleave(crow.long().diff())
    places, order = (rows * n + col).sort()
    if not torch.equal(crow, exact[0]) or not torch.equal(places % n, exact[1].long()):
        return "WRONG pattern"
    unit = torch.finfo(values.dtype).eps / 2 * (longest + 2)
    off = (values[order].double() - exact[2]).abs() > sizes * unit + 1e-300
    return "WRONG values" if bool(off.any()) else ""


def once(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    kept = call()
    torch.cuda.synchronize()
    taken = time.perf_counter() - begun
    del kept
    return taken


def measure(name: str, dtype: torch.dtype) -> list[dict]:
    a = matrix(name, dtype)
    crow, col, wide = (t.cpu() for t in (*a[:2], a[2].double()))
    exact = tuple(t.cuda() for t in ops.spgemm.spgemm(crow, col, wide, crow, col, wide, a[3]))
    sizes = ops.spgemm.spgemm(crow, col, wide.abs(), crow, col, wide.abs(), a[3])[2].cuda()
    products = int(a[0].long().diff()[a[1].long()].sum())
    facts = {"op": "spgemm", "matrix": name, "m": a[3], "nnz": a[1].numel(), "flops": 2 * products,
             "dtype": str(dtype).removeprefix("torch."), "nnz_c": exact[1].numel(),
             "compression": products / exact[1].numel()}  # fmt: skip
    notes, peaks, takers = {}, {}, {}
    for who, call in calls(a):
        try:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            answer = call()
            torch.cuda.synchronize()
            peaks[who] = torch.cuda.max_memory_allocated() - before
            notes[who] = wrong(answer, a, exact, sizes)
            takers[who] = call
            del answer
        except (RuntimeError, OSError, AttributeError) as error:
            print(f"{name} {dtype}: {who} is left out: {str(error).splitlines()[0]}")
    times: dict[str, list[float]] = {who: [] for who in takers}
    end = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn >= 3 and time.perf_counter() > end:
            break
        for who, call in takers.items():
            times[who].append(once(call))
    return [
        facts | {"who": who, "ms": statistics.median(t) * 1e3, "least_ms": min(t) * 1e3,
                 "peak_mb": peaks[who] / 1e6, "gflops": 2 * products / statistics.median(t) / 1e9,
                 "note": notes[who]}
        for who, t in times.items()
    ]  # fmt: skip


def run(quick: bool) -> list[dict]:
    rows = []
    for name in ("small",) if quick else MATRICES:
        for dtype in DTYPES:
            rows += (mine := measure(name, dtype))
            for row in mine:
                print(LINE.format(**row), flush=True)
    return rows
