# SPDX-License-Identifier: Apache-2.0
"""Which CUDA kernels have passed their cases on hardware since their last change. Standard library only.

The ledger, bench/results/ledger.json, holds for a kernel file the hash of it and of all that it includes, and
where and when that very text last passed: only a run on a device writes it (`make device`). The manifest,
cuda_kernels.json beside the package, holds the hashes of what was built.

python ledger.py manifest CSRC OUT        writes the manifest of the kernel files in CSRC
python ledger.py readme ROOT              brings the last column of the op table in ROOT/README.md up to date
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LEDGER = "bench/results/ledger.json"  # of a checkout
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


def statuses(root: Path) -> dict[str, str]:
    """Op to the status of its CUDA kernels, of the sources as they lie in a checkout."""
    ledger = read(root / LEDGER)
    built = manifest(root / "csrc")
    return {Path(name).stem: status(name, hash_, ledger) for name, hash_ in built.items()}


def op_table(text: str, status_of: Mapping[str, str]) -> str:
    """README's text with the last cell of each op's row set: its CUDA kernels' status, or a dash."""

    def row(found: re.Match[str]) -> str:
        ops = re.findall(r"`(\w+)`", found["ops"])
        return f"{found[0][: found.start('last') - found.start()]} {status_of.get(ops[0], '-')} |"

    return re.sub(r"^\| (?P<ops>`\w+`[^|]*)\|.*\|(?P<last>[^|\n]*)\|$", row, text, flags=re.MULTILINE)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["manifest", csrc, out]:
            Path(out).write_text(json.dumps(manifest(Path(csrc)), indent=1) + "\n")
        case ["readme", root]:
            readme = Path(root, "README.md")
            readme.write_text(op_table(readme.read_text(), statuses(Path(root))))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
