# SPDX-License-Identifier: Apache-2.0
"""The one progress bar, on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any, TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], show: bool, what: str, unit: str) -> Iterable[T]:
    """The items, behind a tqdm bar when ``show``.

    Raises:
        ImportError: tqdm is not installed.
    """
    if not show:
        return items
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install sparsecore[model]") from error
    total = len(items) if isinstance(items, Sized) else None
    made: Any = tqdm(items, desc=what, unit=unit, total=total, dynamic_ncols=True)
    return made
