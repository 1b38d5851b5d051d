# SPDX-License-Identifier: Apache-2.0
"""The sparse peers, float32: torch's CSR, SciPy, MKL, DeepSparse. MAKE[name](weight, case, threads).

Everyone has the same task: x [m, k] in rows, y [m, n] in rows. torch, SciPy and MKL multiply W by a
matrix from the right, so x and y pass through column-major calls or through copies, whichever of
their styles is fastest. The peers with a _t are given x as [k, m] and leave y as [n, m] for nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import deepsparse, timing
from .cases import Case, f32
from .contender import Contender, Copy, Weight

Styles = dict[str, Callable[[], Any]]


class Unavailable(Exception):
    """Why a peer can't take part."""


def _contender(
    name: str, weight: Weight | Copy, case: Case, styles: Styles, free: bool, **fields: Any
) -> Contender:
    m, n, csr = case.x().numel() // case.k, case.n, weight.csr
    nbytes = csr.nbytes + 4 * m * (n + case.k)
    rows = lambda y: torch.as_tensor(y).reshape(m, n)
    result = (lambda y: torch.as_tensor(y).reshape(n, m).T) if free else rows
    name = name + "_t" * free
    return Contender(name, "peer", f32, f32, styles, result, nbytes, 2 * m * csr.nnz, **fields)


@lru_cache(maxsize=2)
def _x(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """x as [m, k] and as [k, m], both [k] where m is 1; the same for every copy of W."""
    x = case.x().reshape(-1, case.k).contiguous()
    return (x[0].clone(),) * 2 if len(x) == 1 else (x, x.T.contiguous())


def torch_csr(weight: Weight | Copy, case: Case, threads: int, free: bool = False) -> Contender:
    if not torch.backends.mkl.is_available():
        raise Unavailable("this torch is built without MKL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        w = weight.csr.to_torch()
        wt = w.t()
    x, xt = _x(case)
    styles: Styles = {"matmul": lambda: w @ xt}
    if x.dim() == 2 and not free:
        styles = {"x @ w.T": lambda: x @ wt, "copies": lambda: (w @ x.T.contiguous()).T.contiguous()}
    return _contender("torch_csr", weight, case, styles, free)


def scipy_csr(weight: Weight | Copy, case: Case, threads: int, free: bool = False) -> Contender:
    try:
        w = weight.csr.to_scipy()
    except ImportError as error:
        raise Unavailable(str(error)) from None
    x, xt = (t.numpy() for t in _x(case))
    styles: Styles = {"matmul": lambda: w @ xt}
    if x.ndim == 2 and not free:
        styles = {
            "copies": lambda: np.ascontiguousarray((w @ np.ascontiguousarray(x.T)).T),
            "rows": lambda: np.stack([w @ row for row in x]),
        }
    return _contender("scipy_csr", weight, case, styles, free, threads=1)


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
    """MKL's inspector-executor with hints, which sparse_dot_mkl has no call for: analysed once.

    x is [k] or [k, m] in C or Fortran order, and y comes in the same.
    """

    class Descr(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int) for name in ("type", "mode", "diag")]

    GENERAL = Descr(20, 0, 0)
    KEEP, ROW_MAJOR, COLUMN_MAJOR, MANY = 10, 101, 102, 1000

    def __init__(self, w: Any, x: Any) -> None:
        self.lib = ctypes.CDLL(os.environ.get("MKL_RT", "libmkl_rt.so"))
        self.arrays = w.indptr, w.indices, w.data, x  # kept alive: MKL holds their addresses
        n, k = w.shape
        rows = x.flags.c_contiguous
        self.y = np.empty((n, *x.shape[1:]), np.float32, order="C" if rows else "F")
        self.handle = ctypes.c_void_p()
        at = lambda array: ctypes.c_void_p(array.ctypes.data)
        start, end = at(w.indptr), ctypes.c_void_p(w.indptr.ctypes.data + 4)
        handle = ctypes.byref(self.handle)
        self._must(self.lib.mkl_sparse_s_create_csr(handle, 0, n, k, start, end, at(w.indices), at(w.data)))
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        fixed = self.KEEP, one, self.handle, self.GENERAL
        self.args: tuple[Any, ...]
        if x.ndim == 1:
            self._must(self.lib.mkl_sparse_set_mv_hint(self.handle, self.KEEP, self.GENERAL, self.MANY))
            self.run, self.args = self.lib.mkl_sparse_s_mv, (*fixed, at(x), zero, at(self.y))
        else:
            m, order = x.shape[1], self.ROW_MAJOR if rows else self.COLUMN_MAJOR
            hint = self.lib.mkl_sparse_set_mm_hint
            self._must(hint(self.handle, self.KEEP, self.GENERAL, order, m, self.MANY))
            strides = (m, m) if rows else (k, n)
            self.run = self.lib.mkl_sparse_s_mm
            self.args = (*fixed, order, at(x), m, strides[0], zero, at(self.y), strides[1])
        self._must(self.lib.mkl_sparse_optimize(self.handle))

    def _must(self, status: int) -> None:
        if status:
            raise Unavailable(f"MKL answers status {status}")

    def __call__(self) -> Any:
        self._must(self.run(*self.args))
        return self.y

    def __del__(self) -> None:
        self.lib.mkl_sparse_destroy(self.handle)


def mkl_csr(weight: Weight | Copy, case: Case, threads: int, free: bool = False) -> Contender:
    mkl = _load_mkl()
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise Unavailable(str(error)) from None
    mkl.mkl_set_num_threads(threads)
    w = csr_matrix(weight.csr.to_scipy())
    x, xt = (t.numpy() for t in _x(case))
    analysed = _Analysed(w, xt)
    styles: Styles = {"sparse_dot_mkl": lambda: mkl.dot_product_mkl(w, xt), "analysed": analysed}
    if x.ndim == 2 and not free:
        columns = _Analysed(w, x.T)

        def copies() -> Any:
            np.copyto(xt, x.T)
            return np.ascontiguousarray(analysed().T)

        styles = {
            "sparse_dot_mkl": lambda: mkl.dot_product_mkl(w, x.T).T,
            "analysed, columns": lambda: columns().T,
            "analysed, copies": copies,
        }
    return _contender("mkl_csr", weight, case, styles, free, own_threads=True)


def deepsparse_engine(weight: Weight | Copy, case: Case, threads: int) -> Contender:
    try:
        engine = deepsparse.Engine(weight.dense(f32), case.x().reshape(-1, case.k), threads)
    except deepsparse.Missing as error:
        raise Unavailable(str(error)) from None
    made = _contender("deepsparse", weight, case, {"engine": engine.call}, free=False, own_threads=True)
    made.sample = engine.sample  # type: ignore[method-assign]  # on the engine's own clock
    return made


MAKE: dict[str, Callable[..., Contender]] = {
    "torch_csr": torch_csr,
    "scipy_csr": scipy_csr,
    "mkl_csr": mkl_csr,
    "torch_csr_t": partial(torch_csr, free=True),
    "scipy_csr_t": partial(scipy_csr, free=True),
    "mkl_csr_t": partial(mkl_csr, free=True),
    "deepsparse": deepsparse_engine,
}
WARM_ONLY = ("deepsparse",)  # one W a process, out of reach
USUAL = ("torch_csr", "scipy_csr", "mkl_csr")
