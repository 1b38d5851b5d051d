# SPDX-License-Identifier: Apache-2.0
"""What README.md shows runs, and the make targets it names exist."""

import re
from pathlib import Path

import pytest
from sparsecore import ledger

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_its_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        if "from transformers" in block:
            pytest.importorskip("transformers", reason="not proven: what README.md shows of transformers")
        exec(compile(block, "README.md", "exec"), names)


def test_its_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)", texts, re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def test_its_op_table_says_what_hardware_has_proven():
    assert ledger.op_table(README, ledger.statuses(ROOT)) == README, "run make format"
    table = README[README.index("| op |") :]
    for op, status in ledger.statuses(ROOT).items():
        assert re.search(rf"^\| `{op}` \|.*\| {re.escape(status)} \|$", table, re.MULTILINE), op
