# SPDX-License-Identifier: Apache-2.0
"""Nm: every pattern of every kind, ways in and out, padding, modules and files, and what is refused."""

import copy
import pickle
from itertools import combinations
from math import comb

import cases
import pytest
import sparsecore
import torch
from sparsecore import Nm, io, nn, testing
from sparsecore.ops import nm_compress, nm_to_dense

KINDS = nm_to_dense.PACKED
FLOATS = cases.FLOATS
SCALED = (torch.int8, torch.float8_e4m3fn)


def isas(op: str) -> list[str]:
    return [isa for o, _, isa, missing in testing.kernels() if o == op and not missing]


def every_pattern(n: int, m: int) -> torch.Tensor:
    """bool [2 C(m, n), 192]: each pattern in every group of a row, then rows that go on by one a group."""
    patterns = torch.zeros(comb(m, n), m, dtype=torch.bool)
    for i, chosen in enumerate(combinations(range(m), n)):
        patterns[i, list(chosen)] = True
    groups = 192 // m
    turned = (torch.arange(len(patterns))[:, None] + torch.arange(groups)) % len(patterns)
    return torch.cat([patterns.repeat(1, groups), patterns[turned].flatten(1)])


@pytest.mark.parametrize("n, m", KINDS)
def test_every_pattern(n, m):
    """All C(m, n) patterns at every place in a word, through compress, dense and product, on every ISA."""
    mask = every_pattern(n, m)
    w = torch.where(mask, torch.arange(1, 193).float() * mask.shape[0] ** -0.5, 0)
    made = nm_compress.reference(w, n, m, w.dtype, mask)
    stored = w[mask].view(mask.shape[0], -1)
    assert torch.equal(made[0].flatten(1), stored)
    assert torch.equal(nm_to_dense.columns(*made[:2], 192), mask.nonzero()[:, 1].view(stored.shape))
    x = torch.eye(192)
    for isa in {*isas("spmm_nm"), *isas("nm_compress"), *isas("nm_to_dense")}:
        with testing.force_isa(isa):
            for dtype in (*FLOATS, torch.int8):
                weight = Nm.from_dense(w, n, m, mask=mask, dtype=dtype)
                assert torch.equal(weight.positions, made[1])
                dense = weight.to_dense().float()
                assert torch.equal(dense != 0, mask)
                for rows in (x, x[:40]):  # each column of W comes out alone
                    assert torch.equal(sparsecore.linear(rows, weight), dense.T[: len(rows)])
                for i in range(0, 192, 13):
                    for width in (1, 2, 4):
                        assert torch.equal(
                            sparsecore.linear(x[i : i + width], weight), dense.T[i : i + width]
                        )


def test_positions_are_as_the_header_says():
    w = torch.zeros(1, 64)
    w[0, [0, 2, 5, 7]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    codes = lambda n, m: Nm.from_dense(w, n, m, mask=w != 0).positions[0].tolist()
    # 2:4: columns 0 and 2, then 1 and 3; groups without a value keep 0 and 1.
    assert codes(2, 4)[:2] == [0b1101_1000, 0b0100_0100]
    assert codes(4, 8)[:2] == [0b1010_0101, 0b0000_1111]
    single = torch.zeros(1, 64)
    single[0, [1, 6, 40]] = 1.0
    code = lambda n, m: Nm.from_dense(single, n, m, mask=single != 0).positions[0].tolist()
    assert code(1, 2)[:1] == [0b0000_0001] and code(1, 4)[:1] == [0b0000_1001]
    assert code(2, 8)[:2] == [0b0110_0001, 0b0001_0000]
    fan_in = Nm.from_dense(w, 4)
    assert fan_in.positions.tolist() == [[0, 2, 5, 7]] and fan_in.positions.dtype is torch.int16
    assert Nm.from_dense(torch.ones(1, 2**15 + 1), 1).positions.dtype is torch.int32


@pytest.mark.parametrize("n, m", [*KINDS, (5, None)])
def test_dense_there_and_back(n, m):
    for rows, k in ((0, 64), (3, 0), (1, 16), (5, 70), (9, 64), (33, 200)):
        if m is None and n > k:
            continue
        w = torch.randn(rows, k, generator=torch.Generator().manual_seed(k))
        made = Nm.from_dense(w, n, m)
        made.check()
        dense = made.to_dense()
        assert made.shape == (rows, k) and ((dense == w) | (dense == 0)).all()
        if rows * k:
            size = m or k
            groups = torch.nn.functional.pad(dense, (0, -k % size)).view(rows, -1, size)
            whole = groups[:, : k // size]
            assert ((whole != 0).sum(-1) == n).all() and (made.n, made.m) == (n, size)
            kept = torch.nn.functional.pad(w.abs(), (0, -k % size), value=-1.0).view(rows, -1, size)
            least = torch.where(groups != 0, kept, torch.inf).amin(-1)
            left = torch.where(groups == 0, kept, -1.0).amax(-1)
            assert (least >= left).all()
            assert torch.equal(Nm.from_dense(dense, n, m, mask=dense != 0).values, made.values)
        again = Nm.from_tensors(made.tensors(), made.shape)
        assert torch.equal(again.to_dense(), dense)


def test_ties_go_to_the_lowest_column_and_nan_comes_first():
    w = torch.tensor([[1.0, -1.0, 1.0, 1.0, 2.0, float("nan"), 3.0, float("-inf")]])
    for isa in isas("nm_compress"):
        with testing.force_isa(isa):
            made = Nm.from_dense(w, 2, 4)
            assert made.values.flatten()[:4].tolist()[:2] == [1.0, -1.0]
            assert made.values[0, 1, 0].isnan() and made.values[0, 1, 1] == float("-inf")
            assert Nm.from_dense(w[:, :4], 2).positions.tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", SCALED)
def test_values_of_8_bits(dtype):
    w = torch.randn(20, 130) * torch.logspace(-6, 6, 20)[:, None]
    made = Nm.from_dense(w, 2, 4, dtype=dtype)
    exact = Nm.from_dense(w, 2, 4).to_dense()
    error = (made.to_dense() - exact).abs()
    # Half a step: of the scale for int8, of 3 bits of fraction and least subnormals for float8.
    step = (
        made.scales[:, None] / 2
        if dtype is torch.int8
        else exact.abs() / 16 + made.scales[:, None] * 2.0**-10
    )
    assert (error <= step * 1.0001).all()
    x = torch.randn(3, 130)
    torch.testing.assert_close(sparsecore.linear(x, made), x @ made.to_dense().T, rtol=1e-4, atol=1e-4 * 1e6)
    for bad in (float("nan"), float("inf")):
        row = torch.full((1, 64), 1.0)
        row[0, 3] = bad
        broken = Nm.from_dense(row, 2, 4, dtype=dtype)
        assert not broken.scales.isfinite().any() and not broken.values.float().any()


def test_what_pads_a_row_takes_no_part():
    made = Nm.from_dense(torch.randn(4, 70), 2, 4)
    values = made.values.clone()
    values[:, 18:] = float("nan")
    for isa in isas("spmm_nm"):
        with testing.force_isa(isa):
            for m in (1, 3, 40):
                x = torch.randn(m, 70)
                y = sparsecore.linear(x, Nm(values, made.positions, made.shape))
                assert torch.equal(y, sparsecore.linear(x, made))
    assert torch.equal(Nm(values, made.positions, made.shape).to_dense(), made.to_dense())


def test_gradients_leave_padding_alone():
    made = Nm.from_dense(torch.randn(4, 70), 2, 4)
    values = made.values.clone().requires_grad_()
    sparsecore.linear(torch.randn(5, 70), Nm(values, made.positions, made.shape)).sum().backward()
    assert not values.grad[:, 18:].any() and values.grad[:, :17].all()


def test_a_weight_that_is_not_n_m_is_refused():
    w = torch.ones(3, 64)
    w[1, 8:10] = 0
    with pytest.raises(ValueError, match=r"^mask: row \d selects more than 2 in a group of 4"):
        Nm.from_dense(w, 2, 4, mask=w != 0)
    with pytest.raises(ValueError, match=r"^mask: .* more than 2"):
        sparsecore.sparsify(w, format="2:4")
    for n, m in ((3, 4), (0, 4), (2, 5), (65, None), (-1, None)):
        with pytest.raises(ValueError, match=r"^n: .*1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8, 1:16"):
            Nm.from_dense(w, n, m)
    with pytest.raises(ValueError, match=r"^dtype: "):
        Nm.from_dense(w, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^format: .*2:4"):
        sparsecore.sparsify(w, format="3:4")


def test_check_and_construction_name_the_argument():
    made = Nm.from_dense(torch.randn(3, 70), 2, 4)
    broken = made.positions.clone()
    broken[1, 2] = 0
    with pytest.raises(
        ValueError, match=r"^positions: row 1: those of the group at column 16 do not rise below 4"
    ):
        Nm(made.values, broken, made.shape).check()
    masks = Nm.from_dense(torch.randn(3, 70), 4, 8)
    broken = masks.positions.clone()
    broken[2, 1] = 7
    with pytest.raises(
        ValueError, match=r"^positions: row 2: the mask of the group at column 8 has not 4 bits set"
    ):
        Nm(masks.values, broken, masks.shape).check()
    fan_in = Nm.from_dense(torch.randn(3, 70), 9)
    broken = fan_in.positions.clone()
    broken[0, 8] = 70
    with pytest.raises(ValueError, match=r"^positions: row 0 has column 70, outside \[0, 70\)"):
        Nm(fan_in.values, broken, fan_in.shape).check()
    values, positions, shape = made.values, made.positions, made.shape
    for name, call in (
        ("values", lambda: Nm(values[:2], positions, shape)),
        ("values", lambda: Nm(values[:, :20], positions, shape)),
        ("values", lambda: Nm(values.flatten(1), positions, shape)),
        ("values", lambda: Nm(values.double(), positions, shape)),
        ("positions", lambda: Nm(values, positions[:, 1:], shape)),
        ("positions", lambda: Nm(values, positions.long(), shape)),
        ("scales", lambda: Nm(values, positions, shape, torch.ones(3))),
        ("scales", lambda: Nm(values.char(), positions, shape)),
        ("shape", lambda: Nm(values, positions, (3,))),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_from_torch_s_semi_structured():
    w = testing.random_weight(64, 128, 0.5, pattern="2:4").half()
    theirs = torch.sparse.SparseSemiStructuredTensorCUTLASS
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass as compress,
    )

    packed, meta = compress(w)
    made = Nm.from_torch(
        theirs(
            w.shape, packed=packed, meta=meta, packed_t=None, meta_t=None, compressed_swizzled_bitmask=None
        )
    )
    assert torch.equal(made.to_dense(), w) and (made.n, made.m) == (2, 4)
    with pytest.raises(ValueError, match=r"^w: must be a SparseSemiStructuredTensor"):
        Nm.from_torch(w)
    with pytest.raises(ValueError, match=r"^weight: torch has 2:4 alone, not 1:4"):
        Nm.from_dense(w, 1, 4).to_torch()


@pytest.mark.parametrize("dtype", (torch.bfloat16, *SCALED), ids=str)
@pytest.mark.parametrize("n, m", [(2, 4), (6, 8), (1, 16), (20, None)])
def test_modules_and_files(n, m, dtype, tmp_path):
    weight = Nm.from_dense(torch.randn(24, 70), n, m, dtype=dtype)
    bias = torch.randn(24)
    layer = nn.SparseLinear(weight, bias)
    x = torch.randn(5, 70)
    y = layer(x)
    assert torch.equal(y, sparsecore.linear(x, weight, bias))
    twins = [copy.deepcopy(layer)]
    if dtype.itemsize > 1 or dtype is torch.int8:  # torch pickles no float8
        twins.append(pickle.loads(pickle.dumps(layer)))
    assert all(torch.equal(twin(x), y) for twin in twins)
    other = nn.SparseLinear(Nm.from_dense(torch.randn(24, 70), n, m, dtype=dtype), torch.zeros(24))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    half = layer.to(torch.float16)
    assert half.weight.dtype is (torch.float16 if dtype is torch.bfloat16 else dtype)
    assert half(x.half()).dtype is torch.float16
    io.save_weights({"a": weight}, tmp_path / "w.safetensors")
    again = io.load_weights(tmp_path / "w.safetensors")["a"]
    assert isinstance(again, Nm) and torch.equal(sparsecore.linear(x, again, bias), y)
    model = torch.nn.Sequential(torch.nn.Linear(70, 24), torch.nn.ReLU())
    model[0] = nn.SparseLinear(weight, bias)
    io.save_model(model, tmp_path / "model")
    loaded = io.load_model(tmp_path / "model", torch.nn.Sequential(torch.nn.Linear(70, 24), torch.nn.ReLU()))
    assert torch.equal(loaded(x), y.relu())


def test_sparsify_makes_what_is_asked_for():
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight.copy_(testing.random_weight(32, 64, 0.5, pattern="2:4"))
    x = torch.randn(3, 64)
    y = model(x)
    report = nn.sparsify_(model, format="2:4", progress=False)
    assert isinstance(model[0].weight, Nm) and "nm float32" in str(report)
    torch.testing.assert_close(model(x), y)


def test_trained_values_stay_where_they_are():
    layer = nn.SparseLinear(Nm.from_dense(torch.randn(8, 70), 2, 4), trainable=True)
    positions = layer.weight.positions.clone()
    optimiser = torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.1)
    x, target = torch.randn(64, 70), torch.randn(64, 8)
    losses = []
    for _ in range(20):
        loss = (layer(x) - target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2 and torch.equal(layer.weight.positions, positions)
    with pytest.raises(ValueError, match=r"^trainable: "):
        nn.SparseLinear(Nm.from_dense(torch.randn(8, 70), 2, 4, dtype=torch.float8_e4m3fn), trainable=True)


def checkpoint(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """w as sparse-24-bitmask has it."""
    bits = torch.nn.functional.pad(w != 0, (0, -w.shape[1] % 8)).view(len(w), -1, 8)
    return {
        "layer.weight.shape": torch.tensor(w.shape)[:, None],
        "layer.weight.compressed": w[w != 0].view(len(w), -1),
        "layer.weight.bitmask": (bits * (1 << torch.arange(8))).sum(-1).to(torch.uint8),
    }


def test_sparse_24_bitmask_checkpoints(tmp_path):
    from safetensors.torch import save_file

    for k in (64, 68, 132):
        w = testing.random_weight(12, k, 0.5, pattern="2:4").bfloat16()
        save_file(checkpoint(w), tmp_path / "a.safetensors")
        made = io.load_sparse_bitmask(tmp_path / "a.safetensors")["layer"]
        assert isinstance(made, Nm) and (made.n, made.m) == (2, 4) and torch.equal(made.to_dense(), w)
    for name, change in (
        ("bitmask", lambda t: t ^ 1),
        ("bitmask", lambda t: t[:, 1:]),
        ("bitmask", lambda t: t.int()),
        ("compressed", lambda t: t[:, 1:]),
        ("compressed", lambda t: t.double()),
        ("shape", lambda t: t + 1),
        ("shape", lambda t: -t),
        ("shape", lambda t: t.float()),
    ):
        parts = checkpoint(w)
        parts[f"layer.weight.{name}"] = change(parts[f"layer.weight.{name}"]).contiguous()
        save_file(parts, tmp_path / "b.safetensors")
        with pytest.raises(ValueError, match=r"b\.safetensors: layer: (shape|bitmask|compressed): "):
            io.load_sparse_bitmask(tmp_path / "b.safetensors")
