# SPDX-License-Identifier: Apache-2.0
"""The examples that need no download run, on little."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_training_on_digits_runs_every_recipe():
    for package in ("sklearn", "tqdm", "rich"):
        pytest.importorskip(package, reason=f"the example of training is not proven: {package} is missing")
    recipes = ["dense", "sr_ste", "bdwp", "flow", "cast", "srigl"]
    command = [
        sys.executable,
        str(EXAMPLES / "train_digits.py"),
        "--width",
        "128",
        "--epochs",
        "8",
        "--seeds",
        "1",
    ]
    run = subprocess.run([*command, "--recipes", *recipes], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    scores = [float(score) for score in re.findall(r"^│ \w.*? │ +([\d.]+) │", run.stdout, re.MULTILINE)]
    assert len(scores) == len(recipes) and min(scores) > 60, run.stdout  # chance: 10
