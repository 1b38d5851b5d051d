# SPDX-License-Identifier: Apache-2.0
"""The sparse peers, float32: torch's CSR, SciPy, MKL, DeepSparse. MAKE[name](weight, case, threads).

A peer gets x and gives y in the layout that suits it best, and doesn't pay for that or for building its
matrix: it is compared at its best.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import deepsparse, timing
from .cases import Case, f32
from .contender import Contender, Weight


class Unavailable(Exception):
    """Why a peer can't take part."""


def _contender(
    name: str,
    weight: Weight,
    case: Case,
    styles: dict[str, Callable[[], Any]],
    result: Callable,
    **fields: Any,
) -> Contender:
    m, csr = case.x().numel() // case.k, weight.csr
    nbytes = csr.nbytes + 4 * m * (case.n + case.k)
    return Contender(name, "peer", f32, f32, styles, result, nbytes, 2 * m * csr.nnz, **fields)


def _columns(case: Case) -> torch.Tensor:
    """x as [k, m], rows of W meet columns of it; [k] where m is 1."""
    x = case.x().reshape(-1, case.k)
    return x[0].clone() if len(x) == 1 else x.T.contiguous()


def _y(n: int) -> Callable[[Any], torch.Tensor]:
    return lambda y: torch.as_tensor(y).reshape(n, -1).T


def torch_csr(weight: Weight, case: Case, threads: int) -> Contender:
    if not torch.backends.mkl.is_available():
        raise Unavailable("this torch is built without MKL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        w = weight.csr.to_torch()
    x = _columns(case)
    return _contender("torch_csr", weight, case, {"matmul": lambda: w @ x}, _y(case.n))


def scipy_csr(weight: Weight, case: Case, threads: int) -> Contender:
    try:
        w = weight.csr.to_scipy()
    except ImportError as error:
        raise Unavailable(str(error)) from None
    x = _columns(case).numpy()
    return _contender("scipy_csr", weight, case, {"matmul": lambda: w @ x}, _y(case.n), threads=1)


def _load_mkl() -> Any:
    os.environ.setdefault("KMP_BLOCKTIME", str(int(timing.FOREIGN_POOL_S * 1000)))
    library = next(iter(sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))), None)
    if library:
        os.environ.setdefault("MKL_RT", str(library))
    try:
        import sparse_dot_mkl
    except ImportError as error:
        raise Unavailable(str(error).splitlines()[0]) from None
    return sparse_dot_mkl


class _Analysed:
    """MKL's inspector-executor with hints, which sparse_dot_mkl has no call for: analysed once."""

    class Descr(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in ("type", "mode", "diag")]

    GENERAL = Descr(20, 0, 0)
    KEEP, ROW_MAJOR, MANY = 10, 101, 1000

    def __init__(self, w: Any, x: Any) -> None:
        import numpy as np

        self.lib = ctypes.CDLL(os.environ.get("MKL_RT", "libmkl_rt.so"))
        self.arrays = w.indptr, w.indices, w.data, x  # kept alive: MKL holds their addresses
        (n, k), self.m = w.shape, x.size // w.shape[1]
        self.x, self.y = x, np.empty((n, self.m) if x.ndim == 2 else n, np.float32)
        self.handle = ctypes.c_void_p()
        at = lambda array: ctypes.c_void_p(array.ctypes.data)
        start, end = at(w.indptr), ctypes.c_void_p(w.indptr.ctypes.data + 4)
        handle = ctypes.byref(self.handle)
        self._must(self.lib.mkl_sparse_s_create_csr(handle, 0, n, k, start, end, at(w.indices), at(w.data)))
        if x.ndim == 1:
            self._must(self.lib.mkl_sparse_set_mv_hint(self.handle, self.KEEP, self.GENERAL, self.MANY))
        else:
            hint = self.lib.mkl_sparse_set_mm_hint
            self._must(hint(self.handle, self.KEEP, self.GENERAL, self.ROW_MAJOR, self.m, self.MANY))
        self._must(self.lib.mkl_sparse_optimize(self.handle))
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        self.args: tuple[Any, ...]
        if x.ndim == 1:
            self.run = self.lib.mkl_sparse_s_mv
            self.args = self.KEEP, one, self.handle, self.GENERAL, at(x), zero, at(self.y)
        else:
            m = self.m
            self.run = self.lib.mkl_sparse_s_mm
            self.args = (
                self.KEEP, one, self.handle, self.GENERAL, self.ROW_MAJOR, at(x), m, m, zero, at(self.y), m,
            )  # fmt: skip

    def _must(self, status: int) -> None:
        if status:
            raise Unavailable(f"MKL answers status {status}")

    def __call__(self) -> Any:
        self._must(self.run(*self.args))
        return self.y

    def __del__(self) -> None:
        self.lib.mkl_sparse_destroy(self.handle)


def mkl_csr(weight: Weight, case: Case, threads: int) -> Contender:
    mkl = _load_mkl()
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise Unavailable(str(error)) from None
    mkl.mkl_set_num_threads(threads)
    w, x = csr_matrix(weight.csr.to_scipy()), _columns(case).numpy()
    styles: dict[str, Callable[[], Any]] = {
        "sparse_dot_mkl": lambda: mkl.dot_product_mkl(w, x),
        "analysed": _Analysed(w, x),
    }
    return _contender("mkl_csr", weight, case, styles, _y(case.n), own_threads=True)


def deepsparse_engine(weight: Weight, case: Case, threads: int) -> Contender:
    try:
        engine = deepsparse.Engine(weight.dense(f32), case.x().reshape(-1, case.k), threads)
    except deepsparse.Missing as error:
        raise Unavailable(str(error)) from None
    made = _contender("deepsparse", weight, case, {"engine": engine.call}, lambda y: y, own_threads=True)
    made.sample = engine.sample  # type: ignore[method-assign]  # on the engine's own clock
    return made


MAKE: dict[str, Callable[[Weight, Case, int], Contender]] = {
    "torch_csr": torch_csr,
    "scipy_csr": scipy_csr,
    "mkl_csr": mkl_csr,
    "deepsparse": deepsparse_engine,
}
USUAL = ("torch_csr", "scipy_csr", "mkl_csr")
