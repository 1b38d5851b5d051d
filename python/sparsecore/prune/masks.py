# SPDX-License-Identifier: Apache-2.0
"""Which weights to keep: unstructured and n:m masks from a matrix of scores, and who gets which sparsity."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Sparsity = float | str


class NM(NamedTuple):
    """At most ``n`` nonzeros in every ``m`` consecutive weights of a row."""

    n: int
    m: int


def parse_sparsity(sparsity: Sparsity, name: str = "sparsity") -> float | NM:
    """``0.7`` is a fraction of zeros in [0, 1); ``"2:4"`` keeps 2 of every 4 weights along the input.

    Raises:
        ValueError: naming ``name`` when the value is neither.
    """
    if isinstance(sparsity, str):
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", sparsity)
        n, m = (int(g) for g in match.groups()) if match else (0, 0)
        if not 0 < n <= m:
            raise ValueError(f"{name}: {sparsity!r} is not of the form 'n:m' with 0 < n <= m")
        return NM(n, m)
    if isinstance(sparsity, bool) or not 0.0 <= sparsity < 1.0:
        raise ValueError(f"{name}: {sparsity!r} is not in [0, 1)")
    return float(sparsity)


def sparsity_of(name: str, sparsity: Sparsity | Mapping[str, Sparsity]) -> float | NM:
    """The sparsity of the layer ``name``: a mapping's first glob pattern that matches, else 0."""
    if not isinstance(sparsity, Mapping):
        return parse_sparsity(sparsity)
    for pattern, value in sparsity.items():
        if fnmatch.fnmatchcase(name, pattern):
            return parse_sparsity(value, f"sparsity[{pattern!r}]")
    return 0.0


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the ``n`` largest scores in every ``m`` consecutive columns.

    Args:
        scores: [rows, k], ``k`` a multiple of ``m``; any real dtype. Ties keep exactly ``n``.

    Returns:
        bool [rows, k], exactly ``n`` True per group.

    Raises:
        ValueError: when ``k`` is not a multiple of ``m``.
    """
    rows, k = scores.shape
    if k % m:
        raise ValueError(f"scores: {k} columns are not a multiple of m = {m}")
    groups = scores.reshape(rows, k // m, m)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    keep.scatter_(-1, groups.topk(n, dim=-1).indices, True)
    return keep.reshape(rows, k)


def unstructured_mask(scores: Tensor, sparsity: float, *, per_row: bool = False) -> Tensor:
    """Keep the largest scores; exactly ``round(sparsity * count)`` go, over the matrix or in each row.

    Args:
        scores: [rows, k], any real dtype.
        sparsity: fraction of entries to drop, in [0, 1].

    Returns:
        bool [rows, k].
    """
    pool = scores if per_row else scores.reshape(1, -1)
    drop = round(sparsity * pool.shape[1])
    keep = torch.ones_like(pool, dtype=torch.bool)
    if drop:
        keep.scatter_(-1, pool.topk(drop, dim=-1, largest=False, sorted=False).indices, False)
    return keep.reshape(scores.shape)


def keep_mask(scores: Tensor, sparsity: float | NM, *, per_row: bool = False) -> Tensor:
    """:func:`nm_mask` or :func:`unstructured_mask`, by the kind of ``sparsity``."""
    if isinstance(sparsity, NM):
        return nm_mask(scores, *sparsity)
    return unstructured_mask(scores, sparsity, per_row=per_row)
