# SPDX-License-Identifier: Apache-2.0
"""cuSPARSE's SpGEMM by its C interface, of the library that torch has loaded: ALG2 and ALG3, which
torch.sparse.mm does not choose. Calls and their order as in NVIDIA's manual, "cusparseSpGEMM()"."""

import ctypes
from functools import cache

import torch
from torch import Tensor

ALGORITHMS = {"ALG2": 4, "ALG3": 5}
INDEX = {torch.int32: 2, torch.int64: 3}
VALUE = {torch.float32: 0, torch.float64: 1}
CHUNK = 0.2  # of the products that ALG3 holds at once
Matrix = tuple[Tensor, Tensor, Tensor, int]  # crow_indices, col_indices, values, columns


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcusparse.so.12")


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name}: status {status}")


@cache
def _handle() -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call("cusparseCreate", ctypes.byref(made))
    return made


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def _describe(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> ctypes.c_void_p:
    made, long, integer = ctypes.c_void_p(), ctypes.c_int64, ctypes.c_int
    index = integer(INDEX[crow.dtype])
    sizes = long(crow.numel() - 1), long(columns), long(col.numel())
    arrays = _pointer(crow), _pointer(col), _pointer(values)
    kinds = index, index, integer(0), integer(VALUE[values.dtype])
    _call("cusparseCreateCsr", ctypes.byref(made), *sizes, *arrays, *kinds)
    return made


def spgemm(a: Matrix, b: Matrix, algorithm: str) -> tuple[Tensor, Tensor, Tensor]:
    """crow_indices, col_indices and values of A @ B, on torch's current stream and in its memory."""
    crow, values, n = a[0], a[2], b[3]
    _call("cusparseSetStream", _handle(), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    made = torch.empty_like(crow)
    none = values.new_empty(0)
    x, y, z = _describe(*a), _describe(*b), _describe(made, crow.new_empty(0), none, n)
    number = ctypes.c_float if values.dtype is torch.float32 else ctypes.c_double
    one, zero, plan = number(1), number(0), ctypes.c_void_p()
    _call("cusparseSpGEMM_createDescr", ctypes.byref(plan))
    plain = ctypes.c_int(0)
    kind, how = ctypes.c_int(VALUE[values.dtype]), ctypes.c_int(ALGORITHMS[algorithm])
    product = _handle(), plain, plain, ctypes.byref(one), x, y, ctypes.byref(zero), z, kind, how, plan
    try:
        sizes = [ctypes.c_size_t() for _ in range(3)]
        first, second, third = (ctypes.byref(s) for s in sizes)
        room = lambda size: torch.empty(max(size.value, 1), dtype=torch.uint8, device=values.device)
        _call("cusparseSpGEMM_workEstimation", *product, first, None)
        work = room(sizes[0])
        _call("cusparseSpGEMM_workEstimation", *product, first, _pointer(work))
        chunk = ctypes.c_float(CHUNK)
        _call("cusparseSpGEMM_estimateMemory", *product, chunk, third, None, None)
        estimate = room(sizes[2])
        _call("cusparseSpGEMM_estimateMemory", *product, chunk, third, _pointer(estimate), second)
        del estimate
        scratch = room(sizes[1])
        _call("cusparseSpGEMM_compute", *product, second, _pointer(scratch))
        shape = [ctypes.c_int64() for _ in range(3)]
        _call("cusparseSpMatGetSize", z, *(ctypes.byref(s) for s in shape))
        col, result = crow.new_empty(shape[2].value), values.new_empty(shape[2].value)
        _call("cusparseCsrSetPointers", z, _pointer(made), _pointer(col), _pointer(result))
        _call("cusparseSpGEMM_copy", *product)
        torch.cuda.current_stream().synchronize()  # its buffers go now
        return made, col, result
    finally:
        _call("cusparseSpGEMM_destroyDescr", plan)
        for matrix in (x, y, z):
            _call("cusparseDestroySpMat", matrix)
