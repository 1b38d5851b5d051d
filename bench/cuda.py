# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels on this GPU, against dense torch; N:M weights against torch's too (cuda_nm.py), spgemm and
kv_attention against their peers (cuda_spgemm.py, cuda_kv.py):
python -m sparsecore.bench.cuda [--quick] [--out FILE]

Each answer is checked before it is timed. A time is the median of replays of a CUDA graph that holds several
calls on copies of the weight that together exceed the L2 cache, as a model's layers do; W comes from memory.
`fraction`: of the time that the bytes of W alone would take at the copy rate measured here.
"""

import argparse
import json
from pathlib import Path

import torch
from sparsecore import Bitmap, linear, testing

from . import cuda_kv, cuda_nm, cuda_spgemm
from .cuda_graph import copies, copy_rate, seconds

SHAPES = ((1536, 576), (4096, 4096), (11008, 4096))
ZEROS = (0.5, 0.7, 0.9)
ROWS = (1, 4, 16, 32)
LINE = (
    "{n:6} x {k:5}  {zeros:.0%} zeros  m = {m:2}  {value:8}  {us:8.1f} us  dense bfloat16 {dense_us:8.1f} us"
    "  {speedup:5.2f}x  {fraction:.0%} of the copy rate"
)


def measure(n: int, k: int, zeros: float, m: int, value: torch.dtype, rate: float) -> dict:
    w = testing.random_weight(n, k, 1 - zeros, seed=1)
    made = Bitmap.from_dense(w, dtype=value)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = made.to_dense().float()
    y = linear(x.cuda(), made.to("cuda")).cpu()
    reference = x.double() @ exact.double().T
    bound = testing.error_bound(x, exact, None, reference, extra_roundings=2)
    error = (y.double() - reference).abs()
    if not (error <= bound).all():
        raise AssertionError(f"{n}x{k}, {zeros:.0%} zeros, m = {m}, {value}: off by {float(error.max())}")
    size = sum(t.numel() * t.element_size() for t in made.tensors().values())
    there, on_gpu = x.cuda(), [made.to("cuda") for _ in range(copies(size))]
    dense = [w.bfloat16().cuda() for _ in range(copies(n * k * 2))]
    ours = seconds([lambda b=b: linear(there, b) for b in on_gpu])
    theirs = seconds([lambda d=d: torch.nn.functional.linear(there, d) for d in dense])
    return {
        "n": n, "k": k, "zeros": zeros, "m": m, "value": str(value).removeprefix("torch."),
        "bytes": size, "us": ours * 1e6, "dense_us": theirs * 1e6,
        "speedup": theirs / ours, "fraction": size / rate / ours,
    }  # fmt: skip


def run(quick: bool) -> list[dict]:
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copies {rate / 1e9:.0f} GB/s")
    rows = []
    for n, k in SHAPES[1:2] if quick else SHAPES:
        for zeros in ZEROS:
            for m in ROWS:
                for value in (torch.bfloat16, torch.int8):
                    row = measure(n, k, zeros, m, value, rate)
                    rows.append(row)
                    print(LINE.format(**row), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one shape")
    parser.add_argument("--out", type=Path, help="a JSON file of the rows")
    options = parser.parse_args()
    rows: list[dict] = []
    for part in (run, cuda_kv.run, cuda_nm.run, cuda_spgemm.run):
        rows += part(options.quick)
        if options.out:  # what comes after may take long
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
