# SPDX-License-Identifier: Apache-2.0
"""DeepSparse 1.8 (the last one) wants an old NumPy: it lives in an environment and a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

VARIABLE = "SPARSECORE_DEEPSPARSE_PYTHON"
HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sparsecore", "deepsparse")
REQUIREMENTS = ("deepsparse==1.8.0", "numpy<2", "setuptools<81")
WORKER = Path(__file__).with_name("deepsparse_worker.py")


class Missing(Exception):
    """Why DeepSparse can't run."""


def python() -> str:
    """The Python of the environment that holds DeepSparse."""
    path = os.environ.get(VARIABLE) or str(HOME / "bin" / "python")
    if not Path(path).exists():
        raise Missing(f"no {path}: run `sparsecore bench deepsparse`, or name a Python in {VARIABLE}")
    return path


def install() -> int:
    """Makes the environment with the newest Python that DeepSparse has wheels for."""
    found = [shutil.which(f"python3.{minor}") for minor in (11, 10, 9, 8)]
    interpreter = next((p for p in found if p), None)
    if interpreter is None:
        print("DeepSparse 1.8 needs Python 3.8 to 3.11, and none is in PATH", file=sys.stderr)
        return 1
    subprocess.run([interpreter, "-m", "venv", HOME], check=True)
    subprocess.run([HOME / "bin" / "python", "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    print(f"DeepSparse is in {HOME}")
    return 0


class Engine:
    """y = x @ W.T as an ONNX MatMul, compiled for `threads` cores and this x's shape."""

    def __init__(self, weight: torch.Tensor, x: torch.Tensor, threads: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="sparsecore-deepsparse-")
        np.save(Path(self.folder.name, "w.npy"), weight.T.contiguous().numpy())
        np.save(Path(self.folder.name, "x.npy"), x.contiguous().numpy())
        self.process = subprocess.Popen(
            [python(), "-I", WORKER, self.folder.name, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.version = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines() or ["it ended without a word"]
            raise Missing(said[-1])
        return json.loads(line)

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def call(self) -> torch.Tensor:
        self._ask("save")
        return torch.from_numpy(np.load(Path(self.folder.name, "y.npy")))

    def sample(self) -> tuple[float, bool]:
        answer = self._ask("time")
        return answer["seconds"], answer["disturbed"]

    def __del__(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.communicate()
