# SPDX-License-Identifier: Apache-2.0
"""The examples that need no download run, on little."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

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


def test_long_context_measures_every_cache():
    """On a tiny model: no zeros change nothing, all zeros do, and every cache takes its turns."""
    for package in ("tqdm", "rich", "transformers"):
        pytest.importorskip(
            package, reason=f"the example of long contexts is not proven: {package} is missing"
        )
    sys.path.insert(0, str(EXAMPLES))
    try:
        import long_context
    finally:
        sys.path.remove(str(EXAMPLES))
    texts = [torch.randint(3, 96, (400,), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    kinds: dict[str, dict] = {
        name: {"keep": keep, "window": 16, "page": 16} for name, keep in (("all", 1.0), ("none", 0.0))
    }
    results = list(long_context.measure(tiny.llama(head_dim=32), texts, [100, 250], kinds, 90, 3))
    assert [runs["dense"].context for runs in results] == [100, 250]
    for runs in results:
        assert list(runs) == ["dense", "all", "none"]
        assert all(len(run.losses) == 180 and len(run.steps) == 3 for run in runs.values())
        dense, alike, other = (run.perplexity for run in runs.values())
        assert abs(alike / dense - 1) < 1e-4 < abs(other / dense - 1)
    assert results[1]["none"].nbytes < results[1]["dense"].nbytes
    assert long_context.table(results).row_count == 6
