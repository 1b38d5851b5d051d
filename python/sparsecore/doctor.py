# SPDX-License-Identifier: Apache-2.0
"""What sparsecore finds here: versions, ISA, devices, and the kernel each op uses and why."""

import importlib.util
import json
import os
import platform
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

import sparsecore
from sparsecore import ledger, testing
from sparsecore.built_with import COMPILER, NVCC, TORCH_HEADERS


class Kernel(NamedTuple):
    """A row of the kernel table; an op's rows stand best first."""

    op: str
    name: str
    isa: str
    missing: str  # what this CPU lacks for it; empty: it can run


def kernels() -> list[Kernel]:
    return [Kernel(*row) for row in testing.kernels()]


def in_use(table: Iterable[Kernel], forced: str) -> Kernel:
    """The variant of one op that a call runs: the forced ISA's, else the first that can run."""
    rows = list(table)
    able = [row for row in rows if (row.isa == forced if forced else not row.missing)]
    return able[0] if able else rows[-1]


def check_isa(name: str, table: Iterable[Kernel]) -> None:
    """Refuses a SPARSECORE_ISA that no kernel is built for or that this CPU does not run."""
    missing = {row.isa: row.missing for row in table}
    if name not in missing:
        raise ImportError(f"SPARSECORE_ISA={name}: no such ISA; this build has {', '.join(missing)}")
    if missing[name]:
        raise ImportError(f"SPARSECORE_ISA={name}: {missing[name]}")


def _why(row: Kernel, used: Kernel, forced: str) -> str:
    if row is used:
        return "in use"
    if row.missing:
        return row.missing
    return f"{forced} is forced" if forced else f"{used.isa} comes first"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cuda() -> str:
    if not torch.version.cuda:
        return "none (this torch is built without CUDA)"
    if not torch.cuda.is_available():
        return f"none (torch is built for CUDA {torch.version.cuda} and finds no device)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) + (f"; not used: {sparsecore.cuda_missing}" if sparsecore.cuda_missing else "")


def cuda_kernels() -> dict[str, str]:
    """Kernel file to whether hardware has proven it as it was built; none where nvcc was not."""
    found = [p for folder in sparsecore.__path__ if (p := Path(folder, "cuda_kernels.json")).is_file()]
    built = json.loads(found[0].read_text()) if found else {}
    bench = importlib.util.find_spec("sparsecore.bench")
    folders = list(bench.submodule_search_locations or []) if bench else []
    proofs = ledger.read(Path(*folders[:1], "results", "ledger.json"))
    return {name: ledger.status(name, digest, proofs) for name, digest in built.items()}


def _cuda_lines() -> list[str]:
    kernels = cuda_kernels()
    if not kernels:
        return ["CUDA kernels: none, sparsecore was built without nvcc"]
    use = f"not loaded: {sparsecore.cuda_missing}" if sparsecore.cuda_missing else "loaded"
    rows = [(Path(name).stem, status) for name, status in kernels.items()]
    return [f"CUDA kernels, by nvcc {NVCC}: {use}", *_table(rows)]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows)
    return ["  " + "  ".join(row).rstrip() for row in cells]


def report() -> str:
    forced = torch.ops.sparsecore._isa()
    isa = "the best one that runs here (SPARSECORE_ISA forces one)"
    if forced:
        by = " by SPARSECORE_ISA" if os.environ.get("SPARSECORE_ISA") == forced else ""
        isa = f"{forced} is forced{by}"
    table = kernels()
    facts = [
        ("sparsecore", f"{sparsecore.__version__} ({sparsecore.library})"),
        ("built with", f"{COMPILER}, headers of torch {TORCH_HEADERS}"),
        ("torch", str(torch.__version__)),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads)"),
        ("cpu", _cpu_name()),
        ("cuda", _cuda()),
    ]
    isas = {row.isa: row.missing for row in reversed(table)}  # from scalar up
    isa_rows = [(name, f"no: {missing}" if missing else "yes") for name, missing in isas.items()]
    kernel_rows = []
    for op, group in groupby(table, key=lambda row: row.op):
        rows = list(group)
        used = in_use(rows, forced)
        kernel_rows += [(op if row is rows[0] else "", row.name, _why(row, used, forced)) for row in rows]
    return "\n".join(
        [
            *_table(facts),
            "",
            f"ISA: {isa}",
            *_table(isa_rows),
            "",
            "Ops and their kernels",
            *_table(kernel_rows),
            "",
            *_cuda_lines(),
        ]
    )
