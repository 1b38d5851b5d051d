# SPDX-License-Identifier: Apache-2.0
"""The emulated grid finds what it is there to find, under every seed, and its tensor cores multiply right."""

import os
from itertools import product

import native
import pytest
import torch

SEEDS = range(12)
RIGHT = {
    "mirror": lambda t: 63 - t,
    "warp_barrier": lambda t: (t ^ 1) + (t ^ 2) + 4,
    "async_copies": lambda t: torch.where((t == 14) | (t == 15), 0, t),
    "collectives": lambda t: 8 * (t >= 0) + 304150000 + 8 * (t - 1),
}
WRONG = {  # kernel to what the error says; each names the block and the thread besides
    "missing_barrier": "uninitialised|which another (wrote|reads) with no barrier between",
    "missing_second_barrier": "which another (wrote|reads) with no barrier between",
    "missing_warp_barrier": "uninitialised|which another (wrote|reads) with no barrier between",
    "divergent_barrier": r"waits at __syncthreads \(faults.cu:\d+\) for thread \(\d+,0,0\), which has ended",
    "two_barriers": r"is at __syncthreads faults.cu:\d+ while thread .* waits at another, faults.cu:\d+",
    "lane_left": r"waits at __shfl_sync \(warp.h:\d+\) for thread \(37,0,0\), which has ended",
    "masks_differ": r"__shfl_sync \(faults.cu:\d+\): lane \d+ brings another mask|for thread",
    "shuffle_from_outside": "a shuffle reads lane 9, which the mask leaves out",
    "read_past_end": r"thread \(63,0,0\): reads 4 bytes at \w+: out of bounds, 4 bytes past the end of in",
    "write_before_begin": r"\(0,0,0\): writes 4 bytes .* out of bounds, 4 bytes before the begin of out",
    "write_input": "writes to in, an input",
    "misaligned": "reads 8 bytes at .* misaligned",
    "uninitialised_shared": r"\(17,0,0\): reads shared memory at \w+ that was not written: uninitialised",
    "past_dynamic_shared": r"dynamic shared memory at byte 2(40|44|48|52) of 240: out of bounds",
    "local_of_another": "out of bounds, a local of thread number",
    "async_not_waited": "an asynchronous copy has not reached",
    "async_no_barrier": "uninitialised|no barrier between|an asynchronous copy has not reached",
    "atomic_and_plain": "(writes|reads) shared memory at .* with no barrier between",
}
on_hardware = os.environ.get("SPARSECORE_CUDA_ON") == "hardware"


@pytest.fixture(scope="module")
def kernels() -> dict[str, native.Variant]:
    return {v.name: v for v in native.cuda_variants("emulator")}


def run(variant: native.Variant, seed: int) -> torch.Tensor:
    out = torch.full((64,), -1, dtype=torch.int32)
    native.call(variant, {"in": torch.arange(64, dtype=torch.int32)}, {"out": out}, seed=seed)
    return out


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_passes_whatever_the_order(kernels, name):
    expected = RIGHT[name](torch.arange(64)).int()
    for seed in SEEDS:
        assert torch.equal(run(kernels[name], seed), expected)


@pytest.mark.skipif(on_hardware, reason="not proven: wrong kernels are caught by hardware, which need not")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_caught_whatever_the_order(kernels, name):
    said = set()
    for seed in SEEDS:
        with pytest.raises(ValueError, match=rf"^(?=block \(\d,0,0\) thread ).*({WRONG[name]})") as error:
            run(kernels[name], seed)
        said.add(str(error.value).split(":")[0])
    assert len(said) > 1, "the seed does not change the order"


def test_every_kernel_of_the_self_test_is_expected(kernels):
    assert kernels.keys() >= RIGHT.keys() | (set() if on_hardware else WRONG.keys())
    assert kernels.keys() <= RIGHT.keys() | WRONG.keys()


# Two kept columns of four, rising, as mma.sp's metadata has them.
PATTERNS = [low | high << 2 for low in range(4) for high in range(low + 1, 4)]
INPUTS = {torch.bfloat16: 16, torch.float16: 16, torch.int8: 32}


def small(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Integers whose products sum up exactly in fp32."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def multiply(a, b, c, kept=None, selector: int = -1, loads: int = 0) -> torch.Tensor:
    out = c.clone()
    inputs = {"a": a, "b": b} | ({} if kept is None else {"kept": kept})
    (variant,) = native.cuda_variants("products")
    native.call(variant, inputs, {"c": out}, selector=selector, loads=loads)
    return out


def expand(a: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[count, 16, K / 2] kept columns to [count, 16, K]."""
    count, rows, half = a.shape
    columns = torch.stack([kept & 3, kept >> 2], -1).long()  # [count, 16, K / 4, 2]
    columns += 4 * torch.arange(half // 2)[:, None]
    dense = torch.zeros(count, rows, 2 * half, dtype=torch.float64)
    return dense.scatter_(2, columns.view(count, rows, half), a.double())


def agree(c: torch.Tensor, exact: torch.Tensor) -> bool:
    return torch.equal(c.double(), exact)


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
def test_every_element_of_a_dense_product_is_where_it_should_be(dtype):
    k = INPUTS[dtype]
    number = torch.int32 if dtype is torch.int8 else torch.float32
    # One element of A at a time meets a B of distinct rows, and one of B an A of distinct columns.
    one_a = torch.eye(16 * k).view(-1, 16, k).to(dtype)
    b = small((16 * k, k, 8), dtype, 1)
    one_b = torch.eye(k * 8).view(-1, k, 8).to(dtype)
    a = small((k * 8, 16, k), dtype, 2)
    for left, right in ((one_a, b), (a, one_b), (a, b[: len(a)])):
        c = small((len(left), 16, 8), number, 3)
        assert agree(multiply(left, right, c), left.double() @ right.double() + c.double())


@pytest.mark.parametrize("dtype, selector", [(torch.bfloat16, 0), (torch.bfloat16, 1), (torch.float16, 0),
                                             (torch.float16, 1), (torch.int8, 0)], ids=str)  # fmt: skip
def test_every_pattern_of_a_sparse_product_in_every_place(dtype, selector):
    half = INPUTS[dtype]
    number = torch.int32 if dtype is torch.int8 else torch.float32
    places = list(product(range(16), range(half // 2), PATTERNS))  # row, four columns, which two are kept
    g = torch.Generator().manual_seed(4)
    patterns = torch.tensor(PATTERNS, dtype=torch.uint8)
    kept = patterns[torch.randint(0, 6, (len(places), 16, half // 2), generator=g)]
    for i, (row, four, pattern) in enumerate(places):
        kept[i, row, four] = pattern
    a, b = small((len(places), 16, half), dtype, 5), small((len(places), 2 * half, 8), dtype, 6)
    c = small((len(places), 16, 8), number, 7)
    exact = expand(a, kept) @ b.double() + c.double()
    assert agree(multiply(a, b, c, kept, selector), exact)
    if dtype is not torch.int8:
        for loads in (1, 2):
            assert agree(multiply(a[::50], b[::50], c[::50], kept[::50], selector, loads), exact[::50])


@pytest.mark.skipif(not on_hardware, reason="not proven: emulated products against a GPU's: no GPU is asked")
@pytest.mark.parametrize("dtype", INPUTS, ids=str)
def test_products_of_any_numbers_are_those_of_hardware(dtype):
    """Not bit for bit: hardware adds in an order and a precision of its own."""
    g, half = torch.Generator().manual_seed(8), INPUTS[dtype]
    kept = torch.tensor(PATTERNS, dtype=torch.uint8)[torch.randint(0, 6, (64, 16, half // 2), generator=g)]
    a, b, c = (torch.randn(64, *shape, generator=g) for shape in ((16, half), (2 * half, 8), (16, 8)))
    whole = dtype is torch.int8
    a, b = ((50 * t).to(dtype) if whole else t.to(dtype) for t in (a, b))
    c = (100 * c).int() if whole else c
    for more in ((), (kept, 0)):
        right = b[:, : half if not more else 2 * half].contiguous()
        there = multiply(a, right, c, *more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARSECORE_CUDA_ON", "emulated")
            here = multiply(a, right, c, *more)
        left = expand(a, kept) if more else a.double()
        size = left.abs() @ right.double().abs() + c.double().abs()
        assert ((there.double() - here.double()).abs() <= (0 if whole else 2.0**-20) * size).all()


@pytest.mark.skipif(on_hardware, reason="not proven on hardware, where it is undefined")
def test_metadata_that_does_not_rise_is_an_error():
    a, b, c = small((1, 16, 16), torch.float16, 1), small((1, 32, 8), torch.float16, 2), torch.zeros(1, 16, 8)
    kept = torch.full((1, 16, 8), PATTERNS[0], dtype=torch.uint8)
    kept[0, 9, 3] = 0b0101
    with pytest.raises(ValueError, match="metadata whose two columns do not rise"):
        multiply(a, b, c, kept, 0)
