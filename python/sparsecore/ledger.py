# SPDX-License-Identifier: Apache-2.0
"""Which CUDA kernels have passed their cases on hardware since their last change. Standard library only.

The ledger, bench/results/ledger.json, holds for a kernel file the hash of it and of all that it includes, and
where and when that very text last passed: only a run on a device writes it (`make device`). The manifest,
cuda_kernels.json beside the package, holds the hashes of what was built.

python ledger.py manifest CSRC OUT        writes the manifest of the kernel files in CSRC
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class Proof(NamedTuple):
    """A row of the ledger: what passed, where, when."""

    digest: str
    device: str
    date: str  # YYYY-MM-DD
    cases: int


def kernel_files(csrc: Path) -> list[Path]:
    return sorted(csrc.glob("ops/*/*.cu"))


def closure(source: Path, csrc: Path) -> list[Path]:
    """The file and all that it includes from csrc, sorted."""
    found: set[Path] = set()
    left = [source]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [csrc / name for name in INCLUDE.findall(file.read_text())]
    return sorted(found)


def digest(source: Path, csrc: Path) -> str:
    """A hash of a kernel file's closure: paths below csrc and contents."""
    whole = hashlib.sha256()
    for file in closure(source, csrc):
        text = file.read_bytes()
        whole.update(f"{file.relative_to(csrc).as_posix()} {len(text)}\n".encode() + text)
    return whole.hexdigest()


def manifest(csrc: Path) -> dict[str, str]:
    """Kernel file, below csrc, to its digest."""
    return {f.relative_to(csrc).as_posix(): digest(f, csrc) for f in kernel_files(csrc)}


def read(path: Path) -> dict[str, Proof]:
    """The ledger's rows by kernel file; none where there is no file."""
    rows = json.loads(path.read_text()) if path.is_file() else {}
    return {name: Proof(**row) for name, row in rows.items()}


def write(path: Path, ledger: Mapping[str, Proof]) -> None:
    path.write_text(json.dumps({name: ledger[name]._asdict() for name in sorted(ledger)}, indent=1) + "\n")


def status(name: str, built: str, ledger: Mapping[str, Proof]) -> str:
    """What a reader is told of a kernel file whose digest is `built`."""
    proof = ledger.get(name)
    if proof and proof.digest == built:
        return f"proven on {proof.device} at {proof.date}"
    return "unproven since its last change" if proof else "unproven: it has not run on a device yet"


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] != "manifest":
        print(__doc__, file=sys.stderr)
        return 2
    Path(arguments[2]).write_text(json.dumps(manifest(Path(arguments[1])), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
