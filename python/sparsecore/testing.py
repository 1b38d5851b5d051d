# SPDX-License-Identifier: Apache-2.0
"""What tests of sparse kernels need: an error bound, a forced ISA, guarded inputs, matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Run every op's kernel for one ISA: "scalar", "neon", "avx2" or "avx512".

    An op without a kernel for it runs its scalar one. Process-wide; the variable SPARSECORE_ISA does
    the same from the start.

    Raises:
        RuntimeError: unknown name, or an ISA that this CPU can't run.
    """
    before = torch.ops.sparsecore._isa()
    torch.ops.sparsecore._force_isa(name)
    try:
        yield
    finally:
        torch.ops.sparsecore._force_isa(before)


def last_kernel() -> str:
    """Name of the kernel that this process ran last, e.g. ``spmm_csr_avx2``."""
    return torch.ops.sparsecore._last_kernel()


def kernels() -> list[tuple[str, str, str, str]]:
    """(op, kernel, ISA, why this CPU can't run it or ""), best first within an op."""
    return [tuple(line.split("\t")) for line in torch.ops.sparsecore._kernels().splitlines()]  # type: ignore[misc]


def error_bound(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *,
    extra_roundings: int = 1,
    statistical: bool = False,
) -> Tensor:
    """How far a float32 sum of products may lie from the exact one, componentwise.

    ``gamma(c) * (|x| @ |W|.T + |bias|) + u_out * |y| + least subnormal`` with ``c`` the stored
    elements of the row plus `extra_roundings`, ``gamma(c) = c u / (1 - c u)``, u = 2^-24 (Higham 2002,
    section 3.1). `statistical` takes ``6 sqrt(c) u`` instead (Higham and Mary 2019), for long rows
    and fixed seeds.

    Args:
        x: ``[..., k]``; weight: dense ``[n, k]``, both exact as float64; bias: ``[n]`` or None.
        y: the float64 reference ``[..., n]``, cast to the output's dtype by the caller's op.

    Returns:
        float64 ``[..., n]``. A row with no stored element and no bias gives exactly the rounding of y.
    """
    u = 2.0**-24
    count = (weight != 0).sum(1).double() + extra_roundings
    gamma = 6 * count.sqrt() * u if statistical else count * u / (1 - count * u)
    size = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        size = size + bias.double().abs()
    return gamma * size + output_rounding(y.double(), x.dtype)


def output_rounding(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Half a unit in the last place of `dtype` at y, subnormals included; 0 at 0."""
    info = torch.finfo(dtype)
    return torch.where(y == 0, 0.0, (y.abs() * info.eps / 2).clamp_min(info.smallest_normal * info.eps))


def guarded(t: Tensor, band: int = 64) -> Tensor:
    """A copy of t inside a band of NaN (floats) or of the extreme value (integers) on either side."""
    fill = float("nan") if t.is_floating_point() else torch.iinfo(t.dtype).max
    memory = torch.full((t.numel() + 2 * band,), fill, dtype=t.dtype)
    inner = memory[band : band + t.numel()].view(t.shape)
    inner.copy_(t)
    return inner


def random_weight(n: int, k: int, density: float, *, pattern: str = "uniform", seed: int = 0) -> Tensor:
    """A dense float32 ``[n, k]`` weight with zeros.

    Args:
        pattern: "uniform"; "banded" around the diagonal; "power_law", row lengths falling as 1/rank;
            "one_dense_row", the rest uniform; "empty_rows", every other row; "n:m", e.g. "2:4": n of every m
            columns whatever the density, with m = 0 n of every row.
        density: of nonzeros, on average.

    Raises:
        ValueError: for an unknown pattern.
    """
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=g)
    w[w == 0] = 1.0
    uniform = torch.rand(n, k, generator=g)
    rows, cols = torch.arange(n)[:, None], torch.arange(k)[None, :]
    if pattern == "uniform":
        keep = uniform < density
    elif pattern == "banded":
        keep = (cols * max(n, 1) - rows * max(k, 1)).abs() <= density * n * k / 2
    elif pattern == "power_law":
        share = 1.0 / (1 + rows.float())
        keep = uniform < (share * density * n / share.sum().clamp_min(1e-9)).clamp_max(1.0)
        keep = keep[torch.randperm(n, generator=g)]
    elif pattern == "one_dense_row":
        keep = (uniform < density) | (rows == n // 2)
    elif pattern == "empty_rows":
        keep = (uniform < density) & (rows % 2 == 1)
    elif ":" in pattern:
        most, group = map(int, pattern.split(":"))
        size = group or max(k, 1)
        ranked = torch.nn.functional.pad(uniform, (0, -k % size), value=2.0).view(n, -(-k // size), size)
        keep = (ranked.argsort(-1).argsort(-1) < most).view(n, -(-k // size) * size)[:, :k]
    else:
        raise ValueError(f"pattern: unknown {pattern!r}")
    return w * keep
