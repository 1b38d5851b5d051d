# SPDX-License-Identifier: Apache-2.0
"""A compressed KV cache for transformers' ``generate()``."""

from sparsecore.cache.longest import cache_bytes, longest_context
from sparsecore.cache.sparse import SparseCache

__all__ = ["SparseCache", "cache_bytes", "longest_context"]
