# SPDX-License-Identifier: Apache-2.0
"""Samples of kv_decompress."""

from collections.abc import Iterator

import torch

from . import Case, kv_compress, strided

CASES = kv_compress.CASES


def inputs(case: Case) -> dict:
    bitmask, values = torch.ops.sparsecore.kv_compress(**kv_compress.inputs(case))
    return {"bitmask": bitmask, "values": values, "head_dim": kv_compress.head_dim(case)}


def native(inputs: dict) -> tuple[dict, tuple[str, ...], dict]:
    arrays = {n: inputs[n].flatten(0, -2) for n in ("bitmask", "values")}
    return arrays, ("dense",), {"head_dim": inputs["head_dim"]}


def misfits(inputs: dict) -> Iterator[tuple[str, dict]]:
    bits, values, d = inputs["bitmask"], inputs["values"], inputs["head_dim"]
    for wrong in (bits.int(), bits.bool(), bits[0], bits[:-1], bits[:, :-1], strided(bits), bits[None]):
        yield "bitmask", {**inputs, "bitmask": wrong}
    for wrong in (values.double(), values.int(), values[0, 0], strided(values)):
        yield "values", {**inputs, "values": wrong}
    yield "values", {**inputs, "values": values.new_zeros(len(values), d + 1)}
    for wrong in (0, 24, -32, d + 4, 264, 2**62):
        yield "head_dim", {**inputs, "head_dim": wrong}
    yield "bitmask", {**inputs, "head_dim": d + 32}


def damage(inputs: dict) -> Iterator[tuple[str, dict]]:
    """Bits set or cleared, in the first and last rows, at the first and last channel, and past head_dim."""
    bits, d = inputs["bitmask"], inputs["head_dim"]
    last = {0, d // 8 - 1, bits.shape[1] - 1}
    for row in (0, len(bits) // 2, len(bits) - 1):
        for byte in sorted(last):
            for bit in (1, 128):
                wrong = bits.clone()
                wrong[row, byte] ^= bit
                yield "bitmask", {**inputs, "bitmask": wrong}


def broken_rows(inputs: dict) -> set[int]:
    """Rows whose bits are not as many channels as are stored, or of channels past head_dim."""
    bits = (inputs["bitmask"][..., None] >> torch.arange(8) & 1).flatten(-2)
    wrong = bits.sum(-1) != inputs["values"].shape[-1]
    return set((wrong | bits[..., inputs["head_dim"] :].any(-1)).nonzero().flatten().tolist())
