# SPDX-License-Identifier: Apache-2.0
"""Masks are exact, SparseGPT is optimal where it can be known, and a resumed run is the same run."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from sparsecore import prune
from sparsecore.prune import recipes, sparsegpt
from sparsecore.prune.masks import NM, sparsity_of


def _tokens(samples: int = 8, length: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 96, (samples, length), generator=torch.Generator().manual_seed(seed))


def _correlated(k: int, seed: int = 0) -> torch.Tensor:
    """[512, k] inputs whose covariance has a condition number in the thousands."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) * torch.logspace(0, -2, k)[:, None]
    return torch.randn(512, k, generator=generator) @ mix


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (6, 8), (1, 1), (3, 6), (1, 16)])
def test_nm_mask_is_exact(n: int, m: int) -> None:
    scores = torch.randn(5, 6 * m)
    scores[0] = 0.0  # all ties
    keep = prune.nm_mask(scores, n, m)
    assert (keep.view(5, 6, m).sum(-1) == n).all()
    kept = scores.masked_fill(~keep, torch.inf).view(5, 6, m).amin(-1)
    dropped = scores.masked_fill(keep, -torch.inf).view(5, 6, m).amax(-1)
    assert (kept >= dropped).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("per_row", [False, True])
def test_unstructured_mask_is_exact(sparsity: float, per_row: bool) -> None:
    scores = torch.randint(0, 5, (7, 30)).float()  # many ties
    keep = prune.unstructured_mask(scores, sparsity, per_row=per_row)
    if per_row:
        assert ((~keep).sum(1) == round(sparsity * 30)).all()
    else:
        assert int((~keep).sum()) == round(sparsity * 210)


@pytest.mark.parametrize("bad", ["2:", "4:2", "0:4", "a", 1.0, -0.1, True, float("nan")])
def test_a_bad_sparsity_is_named(bad: object) -> None:
    with pytest.raises(ValueError, match="sparsity"):
        prune.magnitude_(torch.nn.Linear(4, 4), bad)  # type: ignore[arg-type]


def test_the_first_pattern_decides() -> None:
    plan = {"*.down_proj": "2:4", "*.mlp.*": 0.5}
    assert sparsity_of("a.mlp.down_proj", plan) == NM(2, 4)
    assert sparsity_of("a.mlp.up_proj", plan) == 0.5
    assert sparsity_of("a.attn.q_proj", plan) == 0.0


def test_magnitude_leaves_tied_embeddings() -> None:
    model = tiny.llama()
    before = model.lm_head.weight.detach().clone()
    prune.magnitude_(model, 0.5)
    assert torch.equal(model.lm_head.weight, before)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("target", [0.5, 0.7, NM(2, 4), NM(6, 8)])
def test_sparsegpt_beats_magnitude_and_refit_beats_it(target: float | NM) -> None:
    x = _correlated(64)
    dense = torch.randn(48, 64, generator=torch.Generator().manual_seed(2))
    hessian = x.t() @ x
    upper, dead = sparsegpt.inverse_factor(hessian, 1e-4)

    def error(weight: torch.Tensor) -> float:
        return ((dense - weight) @ x.t()).norm().item()

    pruned = sparsegpt.sparsegpt_matrix_(dense.clone(), upper, dead, target, block=16)
    plain = dense * recipes.keep_mask(dense.abs(), target)
    refit = sparsegpt.refit_matrix_(pruned.clone(), dense, hessian, damp=1e-4, steps=20)
    if isinstance(target, NM):
        assert ((pruned.view(48, -1, target.m) != 0).sum(-1) <= target.n).all()
    else:
        assert (pruned == 0).sum() == pytest.approx(target * dense.numel(), abs=4)
    assert error(pruned) < 0.8 * error(plain)
    assert error(refit) < error(pruned)
    assert not ((refit != 0) & (pruned == 0)).any()


def test_sparsegpt_is_obs_on_one_row() -> None:
    """With one column to drop, the rest of the row is the least squares solution without it."""
    x = _correlated(8).double()
    hessian = (x.t() @ x).float()
    dense = torch.tensor([[0.01, 1, -2, 3, 1, 2, -1, 2.0]])
    upper, dead = sparsegpt.inverse_factor(hessian, 0.0)
    pruned = sparsegpt.sparsegpt_matrix_(dense.clone(), upper, dead, 1 / 8)
    gone = int((pruned == 0).nonzero()[0, 1])
    assert gone == 0  # the first column: all others still to come take its error
    best = torch.linalg.lstsq(x[:, 1:], x @ dense[0].double()).solution
    torch.testing.assert_close(pruned[0, 1:].double(), best, rtol=1e-2, atol=1e-2)


def test_refit_reaches_least_squares() -> None:
    x = _correlated(24).double()
    hessian = (x.t() @ x).float()
    dense = torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
    start = dense * prune.unstructured_mask(dense.abs(), 0.5)
    refit = sparsegpt.refit_matrix_(start.clone(), dense, hessian, damp=0.0, steps=200)
    for row in range(6):
        kept = start[row].nonzero()[:, 0]
        best = torch.linalg.lstsq(x[:, kept], x @ dense[row].double()).solution
        ours, theirs = x[:, kept] @ refit[row, kept].double(), x[:, kept] @ best
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_dead_inputs_are_dropped() -> None:
    x = _correlated(32)
    x[:, 5] = 0.0
    upper, dead = sparsegpt.inverse_factor(x.t() @ x, 0.01)
    pruned = sparsegpt.sparsegpt_matrix_(torch.ones(4, 32), upper, dead, 0.5)
    assert dead.nonzero().tolist() == [[5]]
    assert (pruned[:, 5] == 0).all() and torch.isfinite(pruned).all()


@pytest.mark.parametrize("sparsity", [0.6, "2:4", "6:8"])
@pytest.mark.parametrize("recipe", [prune.wanda_, prune.sparsegpt_])
def test_recipes_prune_every_block_exactly(recipe: object, sparsity: float | str) -> None:
    model = tiny.llama()
    embedding = model.model.embed_tokens.weight.detach().clone()
    recipe(model, _tokens(), sparsity, progress=False)  # type: ignore[operator]
    for block in model.model.layers:
        for linear in (
            block.self_attn.q_proj,
            block.self_attn.o_proj,
            block.mlp.up_proj,
            block.mlp.down_proj,
        ):
            zeros = linear.weight == 0
            if isinstance(sparsity, str):
                n, m = map(int, sparsity.split(":"))
                assert (zeros.view(zeros.shape[0], -1, m).sum(-1) >= m - n).all()
            else:
                assert zeros.float().mean().item() == pytest.approx(sparsity, abs=0.02)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(block._forward_pre_hooks for block in model.modules())


def test_wanda_keeps_values() -> None:
    model = tiny.llama()
    before = _weights(model)
    prune.wanda_(model, _tokens(), {"*layers.1.*": 0.5}, progress=False)
    for name, after in _weights(model).items():
        if ".layers.1." in name and "proj" in name:
            assert (after == before[name])[after != 0].all() and (after == 0).any()
        else:
            assert torch.equal(after, before[name])


def test_sparsegpt_output_error_is_below_magnitude() -> None:
    dense, tokens = tiny.llama(), _tokens(16, 32)
    wanted = dense(tokens).logits

    def error(model: torch.nn.Module) -> float:
        return (model(tokens).logits - wanted).norm().item()

    ours = prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, refit=5, progress=False)
    plain = prune.magnitude_(copy.deepcopy(dense), 0.6)
    assert error(ours) < 0.8 * error(plain)


def test_a_pruned_head_is_untied() -> None:
    model = tiny.llama()
    embedding = model.model.embed_tokens.weight.detach().clone()
    prune.sparsegpt_(model, _tokens(), 0.5, head_sparsity=0.4, progress=False)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert (model.lm_head.weight == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_is_bit_identical(
    tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, tokens = tiny.llama(), _tokens()
    arguments = {"head_sparsity": 0.5, "refit": 2, "progress": False}
    whole = prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, **arguments)
    again = prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, **arguments)

    saved = recipes.Checkpoint.save
    calls = []

    def save_then_die(self: recipes.Checkpoint, *args: object) -> None:
        saved(self, *args)
        calls.append(args[0])
        if len(calls) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(recipes.Checkpoint, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, checkpoint=tmp_path, **arguments)
    resumed = prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, checkpoint=tmp_path, **arguments)
    assert len(calls) == 4  # three blocks and the head, each once
    finished = prune.sparsegpt_(copy.deepcopy(dense), tokens, 0.6, checkpoint=tmp_path, **arguments)
    assert len(calls) == 4
    for name, wanted in _weights(whole).items():
        for other in (again, resumed, finished):
            assert torch.equal(_weights(other)[name], wanted), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    dense, tokens = tiny.llama(), _tokens()
    prune.wanda_(copy.deepcopy(dense), tokens, 0.5, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint.*settings"):
        prune.wanda_(copy.deepcopy(dense), tokens, 0.6, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint.*tokens"):
        prune.wanda_(copy.deepcopy(dense), _tokens(seed=2), 0.5, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint.*weights"):
        prune.wanda_(tiny.llama(seed=5), tokens, 0.5, checkpoint=tmp_path, progress=False)
    stage = tmp_path / "model.layers.1.safetensors"
    stage.write_bytes(stage.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"checkpoint.*damaged"):
        prune.wanda_(copy.deepcopy(dense), tokens, 0.5, checkpoint=tmp_path, progress=False)


def test_calibration_tokens_are_disjoint_and_seeded(tmp_path: Path) -> None:
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    path = tmp_path / "text"
    path.write_text(" ".join(map(str, range(1000))))
    tokens = prune.calibration_tokens(path, tokenizer, samples=9, length=100, seed=4)
    assert tokens.shape == (9, 100) and tokens.unique().numel() == 900
    assert (tokens.diff(dim=1) == 1).all()
    assert torch.equal(tokens, prune.calibration_tokens(path.read_text(), tokenizer, 9, 100, seed=4))
    assert not torch.equal(tokens, prune.calibration_tokens(path, tokenizer, 9, 100, seed=5))
    with pytest.raises(ValueError, match="text: 1000 tokens"):
        prune.calibration_tokens(path, tokenizer, samples=11, length=100)


def test_models_without_blocks_and_bad_tokens_are_named() -> None:
    with pytest.raises(ValueError, match="model"):
        prune.wanda_(torch.nn.Linear(4, 4), _tokens(), 0.5)
    with pytest.raises(ValueError, match="tokens"):
        prune.wanda_(tiny.llama(), _tokens().float(), 0.5)
    with pytest.raises(ValueError, match=r"weight: 64 columns.*m = 5"):
        prune.sparsegpt_(tiny.llama(), _tokens(), "2:5", progress=False)


def test_owl_spends_more_on_blocks_with_outliers() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, 3] *= 30
    plan = prune.owl_sparsity(model, _tokens(), 0.6, spread=0.1)
    assert list(plan) == [f"model.layers.{i}.*" for i in range(3)]
    assert sum(plan.values()) / 3 == pytest.approx(0.6)
    assert min(plan, key=plan.__getitem__) == "model.layers.1.*"
    assert max(plan.values()) - min(plan.values()) == pytest.approx(0.2)
    prune.sparsegpt_(model, _tokens(), plan, progress=False)
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert (weight == 0).float().mean().item() == pytest.approx(plan["model.layers.1.*"], abs=0.02)
    with pytest.raises(ValueError, match="spread"):
        prune.owl_sparsity(model, _tokens(), 0.95)
