# SPDX-License-Identifier: Apache-2.0
"""Resumable pruning: one safetensors file per finished stage, under a fingerprint of all it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(
    settings: Mapping[str, Any], tokens: Tensor, weights: Mapping[str, nn.Linear]
) -> dict[str, Any]:
    """Settings plus SHA-256 of the calibration tokens and of the dense weights."""
    digest = hashlib.sha256()
    for name, linear in weights.items():
        digest.update(name.encode())
        digest.update(linear.weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return {
        "settings": dict(settings),
        "tokens": hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest(),
        "weights": digest.hexdigest(),
    }


class Checkpoint:
    """A directory with ``run.json`` and a file per stage.

    Raises:
        ValueError: when ``directory`` holds another run: different settings, tokens or dense weights.
    """

    def __init__(self, directory: str | Path, run: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "run.json"
        text = json.dumps(run, sort_keys=True, indent=1)
        if path.exists():
            there, here = json.loads(path.read_text()), json.loads(text)
            differ = sorted(key for key in here if there.get(key) != here[key])
            if differ:
                raise ValueError(
                    f"checkpoint: {self.directory} belongs to a run with other {', '.join(differ)}"
                )
        else:
            self._replace(path, lambda part: part.write_text(text))

    def _replace(self, path: Path, write: Any) -> None:
        """A file appears whole or not at all, so a killed run leaves no stage half written."""
        part = path.with_suffix(".part")
        write(part)
        os.replace(part, path)

    def save(self, stage: str, weights: Mapping[str, nn.Linear]) -> None:
        from safetensors.torch import save_file

        tensors = {name: linear.weight.detach().cpu().contiguous() for name, linear in weights.items()}
        self._replace(self.directory / f"{stage}.safetensors", lambda part: save_file(tensors, part))

    def restore(self, stage: str, weights: Mapping[str, nn.Linear]) -> bool:
        """Copy the stage's weights into the model; False when it was not finished.

        Raises:
            ValueError: when the file does not hold exactly these weights.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.directory / f"{stage}.safetensors"
        if not path.exists():
            return False
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"checkpoint: {path} is damaged ({error}); delete it to redo the stage"
            ) from error
        shapes = {name: (linear.weight.shape, linear.weight.dtype) for name, linear in weights.items()}
        if {name: (t.shape, t.dtype) for name, t in tensors.items()} != shapes:
            raise ValueError(f"checkpoint: {path} holds other weights than the model's {stage}")
        with torch.no_grad():
            for name, linear in weights.items():
                linear.weight.copy_(tensors[name])
        return True
