# SPDX-License-Identifier: Apache-2.0
"""kv_attention on this GPU, one query token, bfloat16, against torch's scaled_dot_product_attention and,
where it is installed, FlashInfer, all on the same tokens, dense.

Caches come from memory, as weights do in cuda.py. SDPA runs twice: as models call it (enable_gqa), and with
the queries of a group as tokens of one head, which reads K and V once; the faster one counts. Ours is dense
pages (0 %) and pages pruned by magnitude. `fraction` is of the copy rate, for the bytes of the pages alone.
"""

from collections.abc import Callable, Iterator

import torch
from sparsecore.ops.kv_attention import kv_attention
from sparsecore.ops.kv_compress import kv_compress, mask_bytes
from sparsecore.ops.kv_decompress import kv_decompress
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import cuda_kv_append
from .cuda_graph import copies, copy_rate, seconds

PAGE = 64
HEADS, GROUP, HEAD_DIM = 8, 4, 128  # Llama-3-8B
ZEROS = (0.0, 0.5, 0.7)
LINE = (
    "batch {batch}  {tokens:6} tokens  {zeros:4.0%} zeros  {us:8.1f} us  SDPA {sdpa_us:8.1f} us  "
    "{speedup:5.2f}x  FlashInfer {flashinfer_us}  {fraction:.0%} of the copy rate"
)


def samples(quick: bool) -> Iterator[tuple[int, int]]:
    yield 1, 32768
    if not quick:
        yield from ((8, 32768), (1, 131072), (8, 131072))


def ours(k: Tensor, v: Tensor, zeros: float) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Arguments of kv_attention after q, and the keys and values that they stand for. k, v: ``[pages, heads,
    PAGE, d]``, pages of one sequence after the other."""
    d, dense_pages = k.shape[3], k if zeros == 0 else k[:0]
    if zeros == 0:
        packed = (
            k.new_zeros(0, HEADS, PAGE, mask_bytes(d), dtype=torch.uint8),
            k.new_zeros(0, HEADS, PAGE, 0),
        )
        return (*packed, dense_pages, *packed, v), k, v
    keep = -(-round(1000 * (1 - zeros)) * d // 1000)
    packed_k, packed_v = kv_compress(k, keep), kv_compress(v, keep)
    return (
        (*packed_k, dense_pages, *packed_v, v[:0]),
        kv_decompress(*packed_k, d),
        kv_decompress(*packed_v, d),
    )


def check(out: Tensor, q: Tensor, k: Tensor, v: Tensor, what: str) -> None:
    """The first sequence, to float64's sums within 16 roundings of a sum of weights times |v|."""
    q, k, v = (x[0].double() for x in (q, k, v))
    weights = (q.view(HEADS, GROUP, -1) @ k.transpose(1, 2) * k.shape[2] ** -0.5).softmax(-1)
    off = (out[0].double().view(HEADS, GROUP, -1) - weights @ v).abs() / (weights @ v.abs())
    if not off.max() <= 16 * torch.finfo(torch.bfloat16).eps:
        raise AssertionError(f"{what}: off by {float(off.max())}")


def by_flashinfer(q: Tensor, caches: list[tuple[Tensor, Tensor]], batch: int, tokens: int) -> str:
    """Microseconds of FlashInfer's decode on pages ``[pages, heads, PAGE, d]``, or why there are none."""
    try:
        import flashinfer

        pages = tokens // PAGE
        steps = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
        planned = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(2**27, dtype=torch.uint8, device="cuda"), "HND"
        )
        planned.plan(
            steps * pages, torch.arange(batch * pages, dtype=torch.int32, device="cuda"),
            torch.full((batch,), PAGE, dtype=torch.int32, device="cuda"),
            HEADS * GROUP, HEADS, HEAD_DIM, PAGE, data_type=torch.bfloat16,
        )  # fmt: skip
        call = lambda cache: planned.run(q.flatten(1, 2).view(batch, HEADS * GROUP, HEAD_DIM), cache)
        return f"{1e6 * seconds([lambda c=c: call(c) for c in caches]):8.1f} us"  # type: ignore[misc]
    except Exception as error:  # another project's: whatever it says
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def by_sdpa(q: Tensor, whole: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds of the faster way; k and v: ``[batch, heads, tokens, d]``."""
    grouped = q.view(len(q), HEADS, GROUP, -1)
    ways: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True),
        lambda k, v: scaled_dot_product_attention(grouped, k, v),
    )
    return min(seconds([lambda k=k, v=v, way=way: way(k, v) for k, v in whole]) for way in ways)  # type: ignore[misc]


def in_rows(x: Tensor, batch: int) -> Tensor:
    """Pages as ``[batch, heads, tokens, d]``."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3).contiguous()


def measure(batch: int, tokens: int, rate: float) -> Iterator[dict]:
    g = torch.Generator(device="cuda").manual_seed(tokens)
    make = lambda *sizes: torch.randn(*sizes, generator=g, device="cuda").bfloat16()
    q, pages = make(batch, HEADS * GROUP, 1, HEAD_DIM), batch * (tokens // PAGE)
    k, v = (make(pages, HEADS, PAGE, HEAD_DIM) for _ in "kv")
    table = torch.arange(pages, dtype=torch.int32, device="cuda").view(batch, -1)
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
    count = copies(4 * k.numel())
    whole = [(in_rows(k, batch), in_rows(v, batch)) for _ in range(count)]
    check(scaled_dot_product_attention(q, *whole[0], enable_gqa=True), q, *whole[0], "SDPA")
    sdpa = by_sdpa(q, whole)
    del whole
    flashinfer = by_flashinfer(q, [(k.clone(), v.clone()) for _ in range(count)], batch, tokens)
    for zeros in ZEROS:
        arrays, stored_k, stored_v = ours(k, v, zeros)
        there, name = -2 - table if zeros == 0 else table, f"batch {batch}, {tokens} tokens, {zeros:.0%}"
        check(
            kv_attention(q, *arrays, there, lengths)[0],
            q,
            in_rows(stored_k, batch),
            in_rows(stored_v, batch),
            name,
        )
        size = sum(t.numel() * t.element_size() for t in arrays)
        caches = [tuple(t.clone() for t in arrays) for _ in range(copies(size))]
        us = 1e6 * seconds([lambda c=c, at=there: kv_attention(q, *c, at, lengths) for c in caches])  # type: ignore[misc]
        keep = arrays[1].shape[3]
        pack_us = 1e6 * seconds([lambda keep=keep: kv_compress(k, keep)] * 2) if zeros else 0.0  # type: ignore[misc]
        yield {
            "op": "kv_attention", "batch": batch, "tokens": tokens, "zeros": zeros, "bytes": size,
            "us": us, "sdpa_us": sdpa * 1e6, "flashinfer_us": flashinfer, "speedup": sdpa * 1e6 / us,
            "fraction": size / rate / us * 1e6, "compress_us": pack_us,
        }  # fmt: skip


def run(quick: bool) -> list[dict]:
    rate, rows = copy_rate(), list(cuda_kv_append.run(quick))
    for batch, tokens in samples(quick):
        for row in measure(batch, tokens, rate):
            rows.append(row)
            print(LINE.format(**row), flush=True)
    return rows
