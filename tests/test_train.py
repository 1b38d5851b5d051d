# SPDX-License-Identifier: Apache-2.0
"""Masks for both directions are the best there are, layers compute what they say, recipes step and learn."""

import copy
import math
from itertools import pairwise, product

import pytest
import torch
from sparsecore import Nm, prune, train
from sparsecore.nn import SparseLinear
from sparsecore.train import masks
from torch.nn.functional import linear

KINDS = [(1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (6, 8), (1, 16)]
SIZES = (30, 70)  # of a layer: neither a multiple of m nor of 64


def layer_of(rows: int = SIZES[0], k: int = SIZES[1], seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(k, rows)


def best_total(block: torch.Tensor, n: int) -> float:
    """Of an m x m block, by linear programming: the constraints are unimodular, so a vertex is a mask."""
    optimize = pytest.importorskip("scipy.optimize", reason="optimal masks are not proven: SciPy is missing")
    m = len(block)
    sums = torch.cat([torch.eye(m).repeat_interleave(m, 1), torch.eye(m).repeat(1, m)]).numpy()
    found = optimize.linprog(-block.flatten().numpy(), A_eq=sums, b_eq=[n] * 2 * m, bounds=(0, 1))
    assert found.success
    return -found.fun


@pytest.mark.parametrize("n, m", KINDS)
def test_transposable_masks_are_n_of_m_both_ways_and_optimal(n, m):
    generator = torch.Generator().manual_seed(n * m)
    scores = torch.rand(3 * m, 4 * m, generator=generator, dtype=torch.float64)
    scores[:m, :m] = 0.0
    scores[:m, m : 2 * m] = torch.randint(0, 3, (m, m), generator=generator).double()  # ties
    scores[m : 2 * m, :m] = 10.0 ** torch.randint(-8, 8, (m, m), generator=generator).double()
    mask = train.transposable_mask(scores, n, m)
    blocks = mask.view(3, m, 4, m)
    assert (blocks.sum(1) == n).all() and (blocks.sum(3) == n).all()
    for i, j in product(range(3), range(4)):
        at = slice(i * m, i * m + m), slice(j * m, j * m + m)
        best = best_total(scores[at], n)
        assert scores[at][mask[at]].sum().item() == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n, m", [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4)])
def test_augmenting_paths_reach_what_trying_every_mask_finds(n, m):
    blocks = torch.rand(500, m, m, generator=torch.Generator().manual_seed(m), dtype=torch.float64) ** 4
    made, best = masks._matching(blocks, n), masks._best_pattern(blocks, n)
    assert len(masks._patterns(2, 4)) == 90
    torch.testing.assert_close((blocks * made).sum((1, 2)), (blocks * best).sum((1, 2)), rtol=1e-11, atol=0)


@pytest.mark.parametrize("rows, k", [(0, 8), (5, 0), (1, 1), (9, 70), (64, 30)])
@pytest.mark.parametrize("n, m", [(2, 4), (4, 8)])
def test_transposable_masks_of_any_size(rows, k, n, m):
    mask = train.transposable_mask(torch.rand(rows, k) + 0.1, n, m)
    assert mask.shape == (rows, k) and mask.dtype is torch.bool
    padded = torch.nn.functional.pad(mask, (0, -k % m, 0, -rows % m))
    blocks = padded.view(padded.shape[0] // m, m, padded.shape[1] // m, m)
    assert (blocks.sum(1) <= n).all() and (blocks.sum(3) <= n).all()
    whole = mask[: rows // m * m, : k // m * m]
    assert (whole.sum() == whole.numel() * n // m).all()


@pytest.mark.parametrize(
    "name, change",
    [
        ("scores", lambda s: (s.int(), 2, 4)),
        ("scores", lambda s: (s[0], 2, 4)),
        ("scores", lambda s: (-s, 2, 4)),
        ("scores", lambda s: (s / 0, 2, 4)),
        ("n", lambda s: (s, 0, 4)),
        ("n", lambda s: (s, 5, 4)),
    ],
)
def test_a_bad_argument_of_a_mask_is_named(name, change):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        train.transposable_mask(*change(torch.ones(8, 8)))


def grads(y, *leaves):
    return torch.autograd.grad(y.square().sum(), leaves)


@pytest.mark.parametrize("backward", ["masked", "bidirectional", "transposable"])
@pytest.mark.parametrize("n, m", [(2, 4), (2, 8), (1, 16)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 5), (0,)])
def test_an_nm_linear_multiplies_by_what_its_masks_select(backward, n, m, lead):
    dense = layer_of()
    layer = train.NmLinear(dense, n, m, backward=backward)
    assert layer.weight is dense.weight and layer.state_dict().keys() == dense.state_dict().keys()
    w, b = dense.weight, dense.bias
    mask = layer.mask
    if backward == "transposable":
        assert torch.equal(mask, train.transposable_mask(w.detach().abs(), n, m))
    else:
        assert torch.equal(mask, Nm.from_dense(w, n, m).to_dense() != 0)
    x = torch.randn(*lead, SIZES[1], requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, linear(x, w * mask, b))
    grad = 2 * y.detach()
    of_x, of_w, of_b = grads(y, x, w, b)
    back = Nm.from_dense(w.detach().t(), n, m).to_dense().t() if backward == "bidirectional" else w * mask
    torch.testing.assert_close(of_x, grad @ back, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        of_w, grad.reshape(-1, SIZES[0]).t() @ x.reshape(-1, SIZES[1]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(of_b, grad.reshape(-1, SIZES[0]).sum(0), rtol=1e-4, atol=1e-4)
    assert (layer.operands()[1] is None) == (backward == "masked")


@pytest.mark.parametrize("leak", [0.25, 1.0])
def test_a_leak_is_differentiated_as_it_stands(leak):
    layer = train.NmLinear(layer_of(), 2, 4)
    layer.leak = leak
    x = torch.randn(5, SIZES[1], requires_grad=True)
    w = layer.weight.detach().clone().requires_grad_()
    y = linear(x, w * (layer.mask + leak * ~layer.mask), layer.bias)
    torch.testing.assert_close(layer(x), y)
    for ours, theirs in zip(grads(layer(x), x, layer.weight), grads(y, x, w), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backward", ["masked", "transposable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backward, dtype):
    layer = train.NmLinear(layer_of(), 2, 4, backward=backward).to(dtype)
    x = torch.randn(6, SIZES[1], dtype=dtype, requires_grad=True)
    y = layer(x)
    of_x, of_w = grads(y, x, layer.weight)
    assert {y.dtype, of_x.dtype, of_w.dtype} == {dtype}
    masked = (layer.weight * layer.mask).float()
    torch.testing.assert_close(y.float(), linear(x.float(), masked, layer.bias.float()), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(of_x.float(), 2 * y.float() @ masked, rtol=2e-2, atol=2e-2)


def test_operands_follow_the_weight_and_masks_wait_for_refresh():
    layer = train.NmLinear(layer_of(), 2, 4, backward="bidirectional")
    x = torch.randn(4, SIZES[1])
    first = layer.mask.clone()
    kept = layer.operands()[0]
    assert layer.operands()[0] is kept
    with torch.no_grad():
        layer.weight.copy_(torch.randn(SIZES))
    assert torch.equal(layer.mask, first)
    torch.testing.assert_close(layer(x), linear(x, layer.weight * first, layer.bias))
    layer.refresh()
    assert not torch.equal(layer.mask, first)
    torch.testing.assert_close(layer(x), linear(x, layer.weight * layer.mask, layer.bias))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    other = layer_of(seed=9)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin(x), train.NmLinear(other, 2, 4)(x))
    assert twin.double().weight.dtype is torch.float64 and "2:4" in str(twin)


def data(count: int = 256, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 64, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, 10, (count,), generator=generator)
    return centres[labels] * 0.6 + torch.randn(count, 64, generator=generator), labels


def model_of(seed: int = 1) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))


def steps(model, optimizer, count, first=0):
    losses = []
    for i in range(first, first + count):
        x, labels = data(seed=i)
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


RECIPES = {
    "sr_ste": lambda model, **more: train.sr_ste_(model, 2, 4, **more),
    "sr_ste transposable": lambda model, **more: train.sr_ste_(
        model, 2, 4, transposable=True, interval=10, **more
    ),
    "bdwp": lambda model, **more: train.bdwp_(model, 2, 8, **more),
    "flow exponential": lambda model, **more: train.decaying_flow_(model, 1, 8, steps=60, **more),
    "flow linear": lambda model, **more: train.decaying_flow_(model, 1, 16, steps=60, shape="linear", **more),
    "cast": lambda model, **more: train.cast_(model, 2, 4, steps=60, decay=1e-3, **more),
    "srigl": lambda model, **more: train.srigl_(model, 0.9, steps=60, interval=10, **more),
}


def accuracy(model) -> float:
    x, labels = data(2000, seed=12345)
    return (model(x).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_and_serves_what_it_learnt(name):
    model = model_of()
    recipe = RECIPES[name](model, exclude="2").attach(
        optimizer := torch.optim.AdamW(model.parameters(), 5e-3)
    )
    before = accuracy(model)
    steps(model, optimizer, 80)
    after = accuracy(model)
    assert list(recipe.layers) == ["0"] and recipe.step == 80
    assert before < 0.3 and after > 0.9, (before, after)  # dense: 0.98
    x = data()[0]
    y = model(x)
    train.finish_(model)
    weight = model[0].weight
    assert isinstance(model[0], SparseLinear) and isinstance(weight, Nm) and weight.density <= 0.5
    assert isinstance(model[2], torch.nn.Linear)
    torch.testing.assert_close(model(x), y)
    kinds = {"bdwp": (2, 8), "flow exponential": (1, 8), "flow linear": (1, 16)}
    if name != "srigl":
        assert (weight.n, weight.m) == kinds.get(name, (2, 4))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_same_run(name):
    model = model_of()
    recipe = RECIPES[name](model).attach(optimizer := torch.optim.AdamW(model.parameters(), 5e-3))
    steps(model, optimizer, 43)  # between two choices of masks
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), recipe.state_dict()))
    now = copy.deepcopy(list(recipe.layers.values()))
    rest = steps(model, optimizer, 30, 43)
    again = model_of(seed=2)
    other = RECIPES[name](again).attach(resumed := torch.optim.AdamW(again.parameters(), 5e-3))
    for target, state in zip((again, resumed, other), states, strict=True):
        target.load_state_dict(state)
    for layer, was in zip(other.layers.values(), now, strict=True):
        assert layer.extra_repr() == was.extra_repr()
        if isinstance(layer, train.NmLinear):
            assert layer.leak == was.leak and all(map(torch.equal, layer.masks(), was.masks()))
        else:
            assert layer.watch == was.watch and torch.equal(
                layer.condensed().positions, was.condensed().positions
            )
    assert steps(again, resumed, 30, 43) == pytest.approx(rest, rel=1e-4)


@pytest.mark.parametrize("transposable", [False, True])
def test_sr_ste_takes_the_step_of_its_equation(transposable):
    model, twin = model_of(), model_of()
    recipe = train.sr_ste_(model, 2, 4, decay=0.05, transposable=transposable, include="0")
    recipe.attach(optimizer := torch.optim.SGD(model.parameters(), 0.1))
    masked = (twin[0].weight * model[0].mask).detach().requires_grad_()
    x, labels = data()
    y = twin[2](torch.relu(linear(x, masked, twin[0].bias)))
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(y, labels), masked)
    expected = twin[0].weight - 0.1 * (grad + 0.05 * (twin[0].weight - masked))
    steps(model, optimizer, 1, first=5)
    torch.testing.assert_close(model[0].weight, expected)
    if not transposable:
        assert torch.equal(model[0].mask, Nm.from_dense(model[0].weight, 2, 4).to_dense() != 0)


def test_masks_follow_the_schedule():
    model = model_of()
    recipe = train.sr_ste_(model, 2, 4, decay=0.0, interval=3, include="0")
    recipe.attach(optimizer := torch.optim.SGD(model.parameters(), 1.0))
    seen = [model[0].mask.clone()]
    for i in range(6):
        steps(model, optimizer, 1, i)
        seen.append(model[0].mask.clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


@pytest.mark.parametrize("shape", ["exponential", "linear"])
def test_the_flow_decays_to_nothing(shape):
    model = model_of()
    recipe = train.decaying_flow_(model, 1, 8, steps=4, shape=shape, include="0")
    recipe.attach(optimizer := torch.optim.SGD(model.parameters(), 0.5))
    layer, leaks = model[0], []
    for i in range(4):
        leaks.append(layer.leak)
        before, mask = layer.weight.detach().clone(), layer.mask.clone()
        steps(model, optimizer, 1, i)
    expected = [10 ** (-0.75 * t) if shape == "exponential" else 1 - t / 4 for t in range(4)]
    assert leaks == pytest.approx(expected) and layer.leak == 0.0
    for i in range(4, 7):
        before, mask = layer.weight.detach().clone(), layer.mask.clone()
        steps(model, optimizer, 1, i)
        assert torch.equal(layer.weight[~mask], before[~mask])
        assert not torch.equal(layer.weight[mask], before[mask])


def test_cast_decays_what_is_not_selected_by_adams_own_measure():
    plain, model = model_of(), model_of()
    recipe = train.cast_(model, 2, 4, steps=2, decay=2e-3, include="0")
    recipe.attach(optimizer := torch.optim.AdamW(model.parameters(), 1e-3))
    mask = model[0].mask.clone()
    dense = torch.optim.AdamW(plain.parameters(), 1e-3)
    assert steps(model, optimizer, 1) == steps(plain, dense, 1)
    state = dense.state[plain[0].weight]
    reach = (
        1e-3 * 2e-3 / ((state["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8)
    )  # lambda is whole after half of steps
    w = plain[0].weight.detach()
    shrunk = w.sign() * (w.abs() - reach).clamp_min(0)
    torch.testing.assert_close(model[0].weight, torch.where(mask, w, shrunk))
    assert (shrunk == 0).any() and not torch.equal(w, shrunk)
    assert model[0].leak == 1.0
    steps(model, optimizer, 1, 1)
    assert model[0].leak == 0.0
    model = model_of()
    train.cast_(model, steps=5).attach(sgd := torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"^optimizer: SGD keeps no exp_avg_sq"):
        steps(model, sgd, 1)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)])
def test_a_fan_in_layer_is_its_weight(lead):
    layer = train.FanInLinear(layer_of(), 7)
    assert layer.fan_in == 7 and layer.neurons == SIZES[0]
    columns = layer.condensed().positions
    assert (columns.diff() > 0).all() and columns.max() < SIZES[1]
    with torch.no_grad():
        layer.alive[3] = False
    assert layer.neurons == 29 and layer.fan_in == 7 and layer.values.numel() == 210
    x = torch.randn(*lead, SIZES[1], requires_grad=True)
    w = layer.weight().to_dense().requires_grad_()
    b = layer.bias.detach().clone().requires_grad_()
    y = linear(x, w, b * layer.alive)
    ours = layer(x)
    torch.testing.assert_close(ours, y)
    assert (ours[..., 3] == 0).all()
    layer.watch = True
    of_x, of_values, of_bias = grads(layer(x), x, layer.values, layer.bias)
    expected = grads(y, x, w, b)
    torch.testing.assert_close(of_x, expected[0])
    torch.testing.assert_close(of_bias, expected[2])
    torch.testing.assert_close(layer.dense_grad, expected[1][layer.alive])
    stored = expected[1][layer.alive].gather(1, layer.condensed().positions.long())
    torch.testing.assert_close(of_values[: 29 * 7], stored.flatten())
    assert (of_values[29 * 7 :] == 0).all()
    assert torch.equal(copy.deepcopy(layer)(x), ours)


def test_new_fan_in_layers_keep_the_variance():
    torch.manual_seed(0)
    dense = torch.nn.Linear(4096, 64, bias=False)
    x = torch.randn(64, 4096)
    ratio = train.FanInLinear(dense, 409)(x).std() / dense(x).std()
    assert 0.9 < ratio < 1.1


def srigl_model(momentum: float = 0.9, **options):
    model = model_of()
    recipe = train.srigl_(model, 0.75, include="0", **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
    return model, recipe.attach(optimizer), optimizer


def test_srigl_drops_the_smallest_and_grows_the_largest_gradients():
    model, _, optimizer = srigl_model(steps=4, interval=2, drop=0.4, salient=0.0)
    layer = model[0]
    steps(model, optimizer, 1)
    assert layer.watch and layer.dense_grad is None
    # The same second step, with the connections left alone: what they are chosen by.
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(twin, other, 1, 1)
    old, gradient = twin[0].weight().to_dense(), twin[0].dense_grad.abs()
    columns = twin[0].condensed().positions.long()
    there = torch.zeros_like(old, dtype=torch.bool).scatter_(1, columns, True)
    momentum = torch.zeros_like(old).scatter_(
        1, columns, other.state[twin[0].values]["momentum_buffer"].view_as(columns)
    )
    steps(model, optimizer, 1, 1)
    count = round(0.4 / 2 * (1 + math.cos(math.pi * 2 / 4)) * there.sum().item())
    magnitude = torch.where(there, old.abs(), torch.inf)
    dropped = magnitude <= magnitude.flatten().kthvalue(count).values
    keep = there & ~dropped
    assert dropped.sum() == count == 307
    new = layer.weight().to_dense()
    columns = layer.condensed().positions.long()
    now = torch.zeros_like(there).scatter_(1, columns, True)
    assert layer.fan_in == 16 and layer.neurons == 96 and (now.sum(1) == 16).all()
    assert (now | ~keep).all() and torch.equal(new[keep], old[keep]) and (new[now & ~keep] == 0).all()
    for row in range(96):
        grown, left = gradient[row][now[row] & ~keep[row]], gradient[row][~now[row]]
        assert not len(grown) or grown.min() >= left.max()
    carried = optimizer.state[layer.values]["momentum_buffer"].view_as(columns)
    torch.testing.assert_close(carried, torch.where(keep, momentum, 0.0).gather(1, columns))
    assert not layer.watch  # steps are over
    steps(model, optimizer, 4, 2)
    assert torch.equal(layer.condensed().positions.long(), columns)


def test_srigl_ablates_neurons_and_gives_their_weights_to_others():
    model, _, optimizer = srigl_model(momentum=0.0, steps=100, interval=2, drop=0.3, salient=0.5)
    layer = model[0]
    capacity = layer.values.numel()
    with torch.no_grad():
        layer.values.view(96, 16)[:40] *= 1e-4  # the smallest, so they are dropped first
        model[2].weight[:, :40] = 0  # and nothing flows back to them
    steps(model, optimizer, 2)
    first = layer.neurons
    assert not layer.alive[:8].all() and 40 <= first < 96
    assert layer.fan_in == min(64, capacity // first) > 16
    assert layer.values.numel() == capacity == layer.positions.numel()
    x = data()[0]
    assert (layer(x)[:, ~layer.alive] == 0).all()
    used = layer.neurons * layer.fan_in
    assert used > capacity - layer.neurons and (layer.values[used:] == 0).all()
    assert layer.neurons <= first
    made = train.finish_(copy.deepcopy(model))
    torch.testing.assert_close(made(x), model(x))


def test_at_least_as_many_neurons_stay_as_hold_the_weights():
    model, _, optimizer = srigl_model(steps=100, interval=1, drop=1.0, salient=1.0)
    steps(model, optimizer, 20)
    layer = model[0]
    assert layer.neurons >= math.ceil(96 * 16 / 64) and layer.fan_in <= 64
    assert (layer.condensed().positions.long().diff() > 0).all()


@pytest.mark.parametrize(
    "name, call",
    [
        ("n", lambda m: train.sr_ste_(m, 3, 4)),
        ("interval", lambda m: train.sr_ste_(m, interval=0)),
        ("model", lambda m: train.sr_ste_(m, include="nothing")),
        ("model", lambda m: train.bdwp_(m[0])),
        ("steps", lambda m: train.decaying_flow_(m, steps=0)),
        ("shape", lambda m: train.decaying_flow_(m, steps=9, shape="square")),
        ("steps", lambda m: train.cast_(m, steps=0)),
        ("sparsity", lambda m: train.srigl_(m, 1.0, steps=9)),
        ("steps", lambda m: train.srigl_(m, steps=0)),
        ("drop", lambda m: train.srigl_(m, steps=9, drop=2)),
        ("salient", lambda m: train.srigl_(m, steps=9, salient=-1)),
        ("layer", lambda m: train.NmLinear(m[1], 2, 4)),
        ("backward", lambda m: train.NmLinear(m[0], 2, 4, backward="both")),
        ("layer", lambda m: train.FanInLinear(m[1], 4)),
        ("fan_in", lambda m: train.FanInLinear(m[0], 65)),
    ],
)
def test_a_bad_argument_is_named_and_the_model_left_alone(name, call):
    model = model_of()
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call(model)
    assert isinstance(model[0], torch.nn.Linear)


def test_an_optimizer_must_hold_the_weights_and_be_attached_once():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recipe = train.srigl_(model, steps=9)
    with pytest.raises(ValueError, match=r"^optimizer: .* layer '0'"):
        recipe.attach(optimizer)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"^optimizer: .* already"):
        recipe.attach(optimizer).attach(optimizer)


def test_a_shared_weight_stays_dense():
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(8, 16), "a": torch.nn.Linear(16, 16)})
    model["head"] = torch.nn.Linear(16, 8, bias=False)
    model["head"].weight = model["embed"].weight
    assert list(train.sr_ste_(model).layers) == ["a"]
    assert isinstance(model["head"], torch.nn.Linear)


def test_finished_layers_take_another_dtype():
    for recipe in (train.sr_ste_, lambda m: train.srigl_(m, steps=5)):
        model = model_of()
        recipe(model)
        dense = [
            layer.operands()[0] if isinstance(layer, train.NmLinear) else layer.weight()
            for layer in model[::2]
        ]
        train.finish_(model, dtype=torch.bfloat16)
        for layer, was in zip(model[::2], dense, strict=True):
            assert layer.weight.dtype is torch.bfloat16
            torch.testing.assert_close(layer.weight.to_dense().float(), was.to_dense(), rtol=2**-8, atol=0)
            assert torch.equal(layer.weight.to_dense() != 0, was.to_dense() != 0)
    assert prune.nm_mask(model_of()[0].weight.abs(), 2, 4).sum() == 96 * 32
