# SPDX-License-Identifier: Apache-2.0
"""Starts an op as a copy of spmm_csr with its scalar kernel alone: it builds, and the generic suites pass.

make new-op NAME=spmm_ell     then write over what the format or the equation changes
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "spmm_csr"
FILES = [
    "csrc/ops/{op}/{op}.h",
    "csrc/ops/{op}/{op}_scalar.cpp",
    "csrc/ops/{op}/kernels.cpp",
    "csrc/ops/{op}/op.cpp",
    "python/sparsecore/ops/{op}.py",
    "tests/cases/{op}.py",
    "tests/native/{op}.cpp",
]


def without_isas(kernels: str) -> str:
    """A kernel table's source with the scalar row alone."""
    return re.sub(r"^#if defined.*?^#endif\n", "", kernels, flags=re.MULTILINE | re.DOTALL)


def add_import(path: Path, name: str) -> None:
    lines = path.read_text().splitlines()
    imports = [i for i, line in enumerate(lines) if line.startswith("from .")]
    line = next(lines[i] for i in imports if MODEL in lines[i]).replace(MODEL, name)
    lines.insert(next((i for i in imports if lines[i] > line), imports[-1] + 1), line)
    path.write_text("\n".join(lines) + "\n")


def main(arguments: list[str]) -> int:
    name = arguments[0] if len(arguments) == 1 else ""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        sys.exit("usage: make new-op NAME=<lower_case_name>")
    if (ROOT / "csrc" / "ops" / name).exists():
        sys.exit(f"there is an op {name} already")
    for template in FILES:
        text = (ROOT / template.format(op=MODEL)).read_text().replace(MODEL, name)
        target = ROOT / template.format(op=name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(without_isas(text) if target.name == "kernels.cpp" else text)
        print(f"wrote   {target.relative_to(ROOT)}")
    add_import(ROOT / "python/sparsecore/ops/__init__.py", name)
    changelog = ROOT / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("### Added\n", f"### Added\n- Op `{name}`.\n", 1))
    print("edited  python/sparsecore/ops/__init__.py, CHANGELOG.md")
    print(f"next    write over them, then: make build && .venv/bin/python -m pytest -k {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
