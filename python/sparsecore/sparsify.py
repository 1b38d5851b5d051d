# SPDX-License-Identifier: Apache-2.0
"""The format that serves a pruned weight."""

import warnings

import torch
from torch import Tensor

from .formats import _FLOATS, Bitmap, Csr, _dense_2d, _require
from .nm import Nm
from .ops.nm_to_dense import PACKED

# Decode (one row of x) is bound by bytes: a bitmap with values of the dense dtype saves too little
# above this density to pay for its instructions.
BREAK_EVEN_DENSITY = 0.8
# Below it CSR's indices are fewer bytes than a bit per element (1/32 for int32 columns).
CSR_DENSITY = 1 / 32


def sparsify(
    dense_weight: Tensor, *, dtype: torch.dtype | None = None, format: str = "auto"
) -> Csr | Bitmap | Nm | Tensor:
    """Compress a weight whose zeros are already there.

    Args:
        dense_weight: ``[n, k]`` float32, bfloat16 or float16.
        dtype: of the values; float32, bfloat16 or float16, int8 for a bitmap and n:m. Default: the weight's.
        format: ``"csr"``, ``"bitmap"``, ``"2:4"`` and the other kinds of :class:`sparsecore.Nm`, or
            ``"auto"``: CSR below a density of 1/32, bitmap up to the break-even, and above it the dense
            weight itself, with a warning that says so.

    Raises:
        ValueError: naming the argument; for n:m, a weight with more nonzeros in a group.
    """
    kinds = {f"{n}:{m}": (n, m) for n, m in PACKED}
    _require(
        format in ("auto", "csr", "bitmap", *kinds),
        f"format: must be one of {', '.join(('auto', 'csr', 'bitmap', *kinds))}, not {format!r}",
    )
    if format in kinds:
        return Nm.from_dense(dense_weight, *kinds[format], mask=dense_weight != 0, dtype=dtype)
    if format == "csr":
        return Csr.from_dense(dense_weight, dtype=dtype)
    if format == "bitmap":
        return Bitmap.from_dense(dense_weight, dtype=dtype)
    dtype = _dense_2d(dense_weight, dtype, (*_FLOATS, torch.int8))
    total = dense_weight.numel()
    density = int(torch.count_nonzero(dense_weight)) / total if total else 1.0
    if density > BREAK_EVEN_DENSITY and dtype.itemsize >= dense_weight.dtype.itemsize:
        warnings.warn(
            f"dense_weight: kept dense, its density {density:.2f} is above the break-even "
            f"{BREAK_EVEN_DENSITY}",
            stacklevel=2,
        )
        return dense_weight
    if density < CSR_DENSITY and dtype is not torch.int8:
        return Csr.from_dense(dense_weight, dtype=dtype)
    return Bitmap.from_dense(dense_weight, dtype=dtype)
