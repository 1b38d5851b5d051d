# SPDX-License-Identifier: Apache-2.0
"""N:M weights on this GPU against dense torch (cuBLASLt) and torch's semi-structured 2:4 (cuSPARSELt).

All in one run, bfloat16 x, weights from memory as cuda.py has it; `fraction` of the copy rate as there.
"""

from collections.abc import Iterator

import torch
from sparsecore import Nm, linear, ops, testing
from torch import Tensor

from .cuda_graph import copies, copy_rate, seconds

# (out_features, in_features): attention and mlp of Llama-3-8B, mlp of Qwen2.5-7B
SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (18944, 3584))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
FEW_ROWS = (1, 8, 32, 256)
KINDS = ((2, 4), (1, 2), (4, 8), (6, 8), (1, 4), (2, 8), (1, 8), (1, 16))
CHECKED = 64  # rows of x, and columns of y at either end
LINE = (
    "{n:6} x {k:5}  {kind:4}  m = {m:4}  {value:13}  {us:8.1f} us  dense {dense_us:8.1f} us  {speedup:5.2f}x"
    "  cuSPARSELt {peer_us}  {fraction:.0%} of the copy rate"
)


def samples(quick: bool) -> Iterator[tuple[int, int, tuple[int, int], torch.dtype, tuple[int, ...]]]:
    bf16, i8, f8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
    yield 4096, 4096, (2, 4), bf16, ROWS
    if quick:
        return
    for n, k in SHAPES[1:]:
        yield n, k, (2, 4), bf16, ROWS
    for value in (i8, f8):
        yield 4096, 4096, (2, 4), value, FEW_ROWS
    for kind in KINDS[1:]:
        yield 4096, 4096, kind, bf16, FEW_ROWS
    yield 4096, 4096, (410, 0), bf16, FEW_ROWS  # a constant fan-in, 90 % zeros


def check(y: Tensor, x: Tensor, weight: Nm, what: str) -> None:
    """Rows of x and of W at either end, to float64's sums."""
    exact, x = weight.to_dense().cpu(), x[:CHECKED].cpu()
    for part in (slice(0, CHECKED), slice(-CHECKED, None)):
        w = exact[part].float()
        reference = x.double() @ w.double().T
        error = (y[:CHECKED, part].cpu().double() - reference).abs()
        if not (error <= testing.error_bound(x, w, None, reference, extra_roundings=2)).all():
            raise AssertionError(f"{what}: off by {float(error.max())}")


def by_torch(weight: Nm, x: Tensor, count: int) -> str:
    """Microseconds of torch's own 2:4 on `count` copies, or why there are none."""
    if (weight.n, weight.m) != (2, 4) or weight.scales is not None:
        return "-"
    try:
        made = [weight.to_torch() for _ in range(count)]
        torch.nn.functional.linear(x, made[0])
        return f"{1e6 * seconds([lambda w=w: torch.nn.functional.linear(x, w) for w in made]):8.1f} us"  # type: ignore[misc]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).splitlines()[0]


def measure(
    n: int, k: int, kind: tuple[int, int], value: torch.dtype, ms: tuple[int, ...], rate: float
) -> list:
    g = torch.Generator(device="cuda").manual_seed(1)
    w = torch.randn(n, k, generator=g, device="cuda").bfloat16()
    made = Nm.from_dense(w, kind[0], kind[1] or None, dtype=value)
    size = sum(t.numel() * t.element_size() for t in made.tensors().values())
    ours = [Nm.from_tensors({name: t.clone() for name, t in made.tensors().items()}, made.shape)
            for _ in range(copies(size))]  # fmt: skip
    dense = [w.clone() for _ in range(copies(n * k * 2))]
    rows = []
    for m in ms:
        x = torch.randn(m, k, generator=g, device="cuda").bfloat16()
        name = f"{n}x{k} {kind[0]}:{kind[1]} m = {m}, {value}"
        check(linear(x, made), x, made, name)
        us = 1e6 * seconds([lambda b=b, x=x: linear(x, b) for b in ours])  # type: ignore[misc]
        dense_us = 1e6 * seconds([lambda d=d, x=x: torch.nn.functional.linear(x, d) for d in dense])  # type: ignore[misc]
        rows.append({
            "op": "spmm_nm", "n": n, "k": k, "kind": f"{kind[0]}:{kind[1]}", "m": m,
            "value": str(value).removeprefix("torch."), "bytes": size, "us": us, "dense_us": dense_us,
            "peer_us": by_torch(made, x, len(ours)), "speedup": dense_us / us,
            "fraction": size / rate / us * 1e6,
        })  # fmt: skip
        print(LINE.format(**rows[-1]), flush=True)
    return rows


def conversions(n: int, k: int, kind: tuple[int, int], dtype: torch.dtype) -> dict:
    """Of a training step: w to N:M and back."""
    w = [torch.randn(n, k, device="cuda").to(dtype) for _ in range(copies(n * k * 4))]
    made = ops.nm_compress.nm_compress(w[0], *kind, torch.bfloat16)
    exact = ops.nm_compress.reference(w[0], *kind, torch.bfloat16)
    if not all(torch.equal(a, b) for a, b in zip(made, exact, strict=True)):
        raise AssertionError(f"nm_compress {n}x{k} {kind}: not the reference's bits")
    compress = seconds([lambda t=t: ops.nm_compress.nm_compress(t, *kind, torch.bfloat16) for t in w])  # type: ignore[misc]
    spread = seconds([lambda: ops.nm_to_dense.nm_to_dense(made[0], made[1], None, k)] * 4)
    row = {
        "op": "nm_compress", "n": n, "k": k, "kind": f"{kind[0]}:{kind[1]}",
        "dtype": str(dtype).removeprefix("torch."), "us": compress * 1e6, "to_dense_us": spread * 1e6,
    }  # fmt: skip
    print(
        "{n:6} x {k:5}  {kind:5}  nm_compress of {dtype:8} {us:8.1f} us, back {to_dense_us:8.1f} us".format(
            **row
        )
    )
    return row


def run(quick: bool) -> list[dict]:
    rate, rows = copy_rate(), []
    for kind in ((2, 4), (4, 8), (410, 0))[: 1 if quick else 3]:
        rows += [conversions(4096, 4096, kind, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for n, k, kind, value, ms in samples(quick):
        rows += measure(n, k, kind, value, ms, rate)
    return rows
