# SPDX-License-Identifier: Apache-2.0
"""Small models made in code."""

from typing import Any

import pytest
import torch


def llama(seed: int = 0, *, tied: bool = True, layers: int = 3, head_dim: int = 16) -> Any:
    """A random three-block Llama of width 64 and 96 tokens; the test is skipped without transformers."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: nothing proven about real decoder models"
    )
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return transformers.LlamaForCausalLM(config).eval()


def zero_some(model: torch.nn.Module, fraction: float, seed: int = 0) -> None:
    """Zero a random fraction of every nn.Linear weight that is not an embedding's."""
    generator = torch.Generator().manual_seed(seed)
    shared = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and id(module.weight) not in shared:
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) >= fraction)
