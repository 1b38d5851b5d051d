# SPDX-License-Identifier: Apache-2.0
"""Run by an environment that holds an installed wheel and no compiler: import, doctor, formats, spgemm."""

import platform
import shutil
import sys
from pathlib import Path

import sparsecore
import torch
from sparsecore import doctor

for package in sparsecore.__path__:
    assert Path(package).is_relative_to(sys.prefix), f"sparsecore comes from {package}, not from {sys.prefix}"
assert not [c for c in ("cc", "c++", "gcc", "g++", "clang", "nvcc") if shutil.which(c)], (
    "a compiler is in PATH"
)

report = doctor.report()
assert report.count("in use") == len({kernel.op for kernel in doctor.kernels()}) >= 2, report

generator = torch.Generator().manual_seed(0)
k, n = 257, 130
dense = torch.randn(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < 0.3)
for m in (1, 5, 64):
    x = torch.randn(m, k, generator=generator)
    exact = x.double() @ dense.double().T
    bound = 2.0**-23 * k * (x.double().abs() @ dense.double().abs().T)
    for form in (sparsecore.Csr, sparsecore.Bitmap):
        y = sparsecore.linear(x, form.from_dense(dense))
        assert (y - exact).abs().le(bound).all(), f"{form.__name__}, m={m}"

a = sparsecore.Csr.from_dense(dense)
b = sparsecore.Csr.from_dense(dense.T.contiguous())
exact = dense.double() @ dense.double().T
bound = 2.0**-23 * k * (dense.double().abs() @ dense.double().abs().T)
assert (sparsecore.spgemm(a, b).to_dense() - exact).abs().le(bound).all(), "spgemm"

cuda = [p for folder in sparsecore.__path__ for p in Path(folder).glob("lib/libsparsecore_cuda.so")]
if torch.version.cuda and cuda:  # loads without a device, though nothing can run
    torch.ops.load_library(cuda[0])
    for name in doctor.cuda_kernels():
        op = f"sparsecore::{Path(name).stem}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), f"{op} has no CUDA kernel"

print(
    f"ok: Python {platform.python_version()}, torch {torch.__version__}, sparsecore {sparsecore.__version__}"
)
