# SPDX-License-Identifier: Apache-2.0
"""Sparse matrix kernels for PyTorch."""

import importlib
import os
from importlib.metadata import version
from pathlib import Path

import torch

__version__ = version("sparsecore")


def _load() -> Path:
    if torch.__version__ < "2.10":
        raise ImportError(f"sparsecore needs torch >= 2.10, this is {torch.__version__}")
    for folder in __path__:
        path = Path(folder, "lib", "libsparsecore_cpu.so")
        if path.is_file():
            torch.ops.load_library(path)
            return path
    raise ImportError(f"no lib/libsparsecore_cpu.so in {list(__path__)}: run `pip install .` in the checkout")


def _load_cuda() -> str:
    """Loads the CUDA kernels. Returns why not, or "". Asks the driver for devices without waking them."""
    if not torch.version.cuda:
        return "this torch is built without CUDA"
    paths = [Path(folder, "lib", "libsparsecore_cuda.so") for folder in __path__]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return "sparsecore was built without nvcc and has no CUDA kernels"
    if torch.cuda.device_count() == 0:
        return f"torch is built for CUDA {torch.version.cuda} and finds no device"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path} does not load: {error}"
    return ""


library = _load()
cuda_missing = _load_cuda()

if _forced := os.environ.get("SPARSECORE_ISA"):
    from . import doctor

    doctor.check_isa(_forced, doctor.kernels())

from .formats import Bitmap, Csr  # noqa: E402  (need the library)
from .linear import linear  # noqa: E402
from .nm import Nm  # noqa: E402
from .sparsify import sparsify  # noqa: E402
from .spgemm import SpgemmPlan, spgemm, spgemm_plan  # noqa: E402

__all__ = ["Bitmap", "Csr", "Nm", "SpgemmPlan", "linear", "sparsify", "spgemm", "spgemm_plan"]

_LATER = ("bench", "cache", "doctor", "io", "nn", "prune", "testing", "train")


def __getattr__(name: str) -> object:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
