# SPDX-License-Identifier: Apache-2.0
"""The cache: a layer of pages for each full-attention layer of a model; saved and loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from ..io.files import naming, read_tensors
from .layer import SparseLayer
from .pages import Pages, Rule

FORMAT, VERSION = "sparsecore-kv-cache", 1


class SparseCache(Cache):
    """Keys and values pruned per token and stored with a bit a channel; the latest and the first stay dense.

        model.set_attn_implementation("sparsecore")
        cache = SparseCache(model.config, keep=0.5)
        model.generate(**inputs, past_key_values=cache)

    A prompt attends to its own K and V as they are; they are pruned as they are stored (the per-token rule of
    Mustafar, 2025), when their page is no longer recent. Under another attention implementation the answers
    are the same, but every step decompresses the whole cache. Layers that are no plain full attention
    (sliding windows, states) are kept as transformers' ``DynamicCache`` keeps them.

    ``generate()`` in all its modes, ``reorder_cache``, ``crop`` and ``batch_select_indices`` work as for a
    ``DynamicCache``. After a crop what was pruned stays pruned.
    """

    def __init__(
        self,
        config: Any,
        *,
        keep: float | tuple[float, float] = 0.5,
        window: int = 128,
        sinks: int = 4,
        page: int = 64,
        dtype: torch.dtype | None = None,
    ):
        """
        Args:
            config: the model's.
            keep: share of the channels of a token that is kept, or (of K, of V), rounded up to whole ones; 1:
                everything stays dense.
            window: latest tokens that stay dense, at least; rounded up to pages beside the one that fills.
            sinks: first tokens that stay dense, rounded up to whole pages. Left padding counts.
            page: tokens of a page, a multiple of 16 in [16, 1024].
            dtype: of what is stored, float32, bfloat16 or float16; by default that of the model's keys.

        Raises:
            ValueError: naming the argument, when it is out of range.
        """
        shares = (keep, keep) if isinstance(keep, (int, float)) else tuple(keep)
        if len(shares) != 2 or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"keep: must be in [0, 1], or two such, for K and V, not {keep}")
        if not (16 <= page <= 1024 and page % 16 == 0):
            raise ValueError(f"page: must be a multiple of 16 in [16, 1024], not {page}")
        if window < 1:
            raise ValueError(f"window: must be at least the token that is generated, 1, not {window}")
        if sinks < 0:
            raise ValueError(f"sinks: must be at least 0, not {sinks}")
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype: must be float32, bfloat16 or float16, not {dtype}")
        keep_k, keep_v = map(float, shares)
        self.rule = Rule((keep_k, keep_v), math.ceil((window - 1) / page) + 1, math.ceil(sinks / page), page)
        decoder = config.get_text_config(decoder=True)
        layers = [
            SparseLayer(decoder, self.rule, dtype) if type(layer) is DynamicLayer else layer
            for layer in DynamicCache(config=config).layers
        ]
        if not any(isinstance(layer, SparseLayer) for layer in layers):
            raise ValueError("config: has no layer of plain full attention")
        super().__init__(layers=layers)

    def _sparse(self) -> list[SparseLayer]:
        return [layer for layer in self.layers if isinstance(layer, SparseLayer)]

    def _pages(self) -> list[Pages]:
        return [layer.pages for layer in self._sparse() if layer.pages]

    @property
    def nbytes(self) -> int:
        """Bytes that the pages of all layers take, room for tokens to come counted."""
        return sum(pages.nbytes for pages in self._pages())

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file that `load` reads: tokens, bits and values as they are stored.

        Raises:
            ValueError: for an empty cache, and one with layers that are no plain full attention.
        """
        from safetensors.torch import save_file

        every = self._pages()
        if not every or len(every) < len(self.layers):
            raise ValueError("a cache is saved once it holds tokens, and of plain full attention alone")
        tensors = {f"{i}.{name}": t for i, pages in enumerate(every) for name, t in pages.state().items()}
        rule = self.rule
        head = {"version": VERSION, "layers": len(every), "length": every[0].length, "keep": rule.keep}
        head |= {"recent": rule.recent, "sinks": rule.sinks, "page": rule.page}
        save_file(tensors, path, {"format": FORMAT, FORMAT: json.dumps(head)})

    @classmethod
    def load(cls, path: str | Path, config: Any) -> SparseCache:
        """The cache that `save` wrote, to go on with, for the model of `config`.

        Raises:
            ValueError: naming the file and the entry, for what is no such file, of another version, or of
                another model. The file is not trusted.
        """
        path = Path(path)
        tensors, metadata = read_tensors(path)
        with naming(path):
            length, count, rule = _head(metadata)
            made = cls(config, keep=rule.keep, page=rule.page)
            made.rule = rule
            layers = made._sparse()
            if not count == len(layers) == len(made.layers):
                raise ValueError(
                    f"layers: {count} of full attention, not {len(layers)} of {len(made.layers)}"
                )
        for i, layer in enumerate(layers):
            with naming(path, f"layer {i}"):
                layer.rule = rule
                layer.pages = Pages.from_state(rule, length, _state(tensors, i))
            layer.is_initialized = True
        if len({len(pages.table) for pages in made._pages()}) != 1:
            raise ValueError(f"{path}: table: layers differ in their number of sequences")
        return made


def _head(metadata: dict[str, str]) -> tuple[int, int, Rule]:
    """(length, layers, rule) of a file's metadata."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"format: must be {FORMAT}, not {metadata.get('format')!r}")
    try:
        head = json.loads(metadata.get(FORMAT, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{FORMAT}: not JSON: {error}") from error
    if not isinstance(head, dict) or head.get("version") != VERSION:
        raise ValueError(
            f"version: this reads {VERSION}, not {head.get('version') if isinstance(head, dict) else head}"
        )
    numbers = {name: head.get(name) for name in ("length", "layers", "recent", "sinks", "page")}
    for name, n in numbers.items():
        if type(n) is not int or not 0 <= n < 2**24 or (n == 0 and name != "sinks"):
            raise ValueError(f"{name}: must be an integer below 2^24, not {n!r}")
    keep = head.get("keep")
    if not (isinstance(keep, list) and len(keep) == 2 and all(isinstance(k, float) for k in keep)):
        raise ValueError(f"keep: must be two numbers, not {keep!r}")
    rule = Rule((keep[0], keep[1]), head["recent"], head["sinks"], head["page"])
    return head["length"], head["layers"], rule


def _state(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    halves = [f"{half}_{name}" for half in "kv" for name in ("bitmask", "values", "dense")]
    missing = [name for name in ("table", *halves) if f"{layer}.{name}" not in tensors]
    if missing:
        raise ValueError(f"{missing[0]}: is missing")
    return {name: tensors[f"{layer}.{name}"] for name in ("table", *halves)}
