# SPDX-License-Identifier: Apache-2.0
"""Csr and Bitmap: round trips, zero-copy ways in and out, checks, and what sparsify chooses."""

import copy
import dataclasses
import pickle
import warnings

import pytest
import sparsecore
import torch
from sparsecore import Bitmap, Csr, testing

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch on its own CSR
SHAPES = [
    (0, 0),
    (0, 5),
    (5, 0),
    (1, 1),
    (3, 7),
    (3, 8),
    (4, 9),
    (5, 63),
    (5, 64),
    (5, 65),
    (33, 130),
    (130, 33),
]
FORMATS = [Csr, Bitmap]


def weight(n: int, k: int, density: float = 0.4, dtype=torch.float32, pattern="uniform") -> torch.Tensor:
    return testing.random_weight(n, k, density, pattern=pattern, seed=n * 1009 + k).to(dtype)


def stored(w: torch.Tensor) -> list[tuple[int, int]]:
    return [tuple(at) for at in w.nonzero().tolist()]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n, k", SHAPES)
def test_dense_there_and_back(n, k, dtype):
    for density in (0.0, 0.4, 1.0):
        w = weight(n, k, density, dtype)
        kinds = [Csr.from_dense(w, index_dtype=i) for i in (torch.int32, torch.int64)] + [
            Bitmap.from_dense(w)
        ]
        for made in kinds:
            made.check()
            assert made.shape == (n, k) and made.nnz == len(stored(w)) and made.dtype is dtype
            assert torch.equal(made.to_dense(), w)
        csr, bitmap = kinds[1], kinds[2]
        assert torch.equal(bitmap.to_csr(index_dtype=torch.int64).col_indices, csr.col_indices)
        assert torch.equal(csr.to_bitmap().bitmask, bitmap.bitmask)
        assert torch.equal(csr.to_bitmap().values, bitmap.values)


def test_the_arrays_are_what_the_format_says():
    w = torch.zeros(3, 70)
    for (row, column), v in {(0, 0): 1.0, (0, 9): 2.0, (2, 63): 3.0, (2, 64): 4.0, (2, 69): 5.0}.items():
        w[row, column] = v
    csr = Csr.from_dense(w)
    assert csr.crow_indices.tolist() == [0, 2, 2, 5] and csr.crow_indices.dtype is torch.int32
    assert csr.col_indices.tolist() == [0, 9, 63, 64, 69]
    bitmap = Bitmap.from_dense(w)
    expected = torch.zeros(3, 16, dtype=torch.uint8)
    expected[0, 0], expected[0, 1], expected[2, 7], expected[2, 8] = 1, 2, 128, 1 | 1 << 5
    assert torch.equal(bitmap.bitmask, expected)
    assert bitmap.row_offsets.tolist() == [0, 2, 2, 5]
    for made in (csr, bitmap):
        assert made.values.tolist() == [1, 2, 3, 4, 5]
        assert made.density == 5 / 210
        assert made.nbytes == sum(t.numel() * t.element_size() for t in made.tensors().values())


def test_dense_matches_torch_csr():
    w = weight(40, 70)
    theirs = w.to_sparse_csr()
    ours = Csr.from_dense(w, index_dtype=torch.int64)
    assert torch.equal(ours.crow_indices, theirs.crow_indices())
    assert torch.equal(ours.col_indices, theirs.col_indices())
    assert torch.equal(ours.values, theirs.values())


@pytest.mark.parametrize("kind", FORMATS)
def test_nan_is_stored_and_minus_zero_is_not(kind):
    w = torch.tensor([[float("nan"), -0.0, 0.0, float("inf"), -1.0]])
    made = kind.from_dense(w)
    assert made.nnz == 3
    torch.testing.assert_close(made.to_dense(), w, equal_nan=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_from_dense_takes_any_strides_and_makes_a_copy(kind):
    w = weight(20, 30)
    for view in (w.T.contiguous().T, torch.cat([w, w], 1)[:, :30], w.repeat_interleave(2, 1)[:, ::2]):
        assert torch.equal(kind.from_dense(view).to_dense(), w)
    full = torch.ones(2, 3)
    made = kind.from_dense(full)
    full.zero_()
    assert torch.equal(made.to_dense(), torch.ones(2, 3))


def test_torch_csr_shares_memory():
    for index in (torch.int32, torch.int64):
        w = weight(20, 30).to_sparse_csr()
        w = torch.sparse_csr_tensor(
            w.crow_indices().to(index), w.col_indices().to(index), w.values(), w.shape
        )
        ours = Csr.from_torch(w)
        back = ours.to_torch()
        for mine, theirs, again in (
            (ours.crow_indices, w.crow_indices(), back.crow_indices()),
            (ours.col_indices, w.col_indices(), back.col_indices()),
            (ours.values, w.values(), back.values()),
        ):
            assert mine.data_ptr() == theirs.data_ptr() == again.data_ptr()
        assert back.layout is torch.sparse_csr and torch.equal(back.to_dense(), w.to_dense())
        x = torch.randn(3, 30)
        assert torch.equal(sparsecore.linear(x, w), sparsecore.linear(x, ours))


def test_scipy_shares_memory():
    sparse = pytest.importorskip("scipy.sparse", reason="not proven: SciPy in and out without a copy")
    dense = weight(20, 30).numpy()
    for make in (sparse.csr_matrix, sparse.csr_array):
        w = make(dense)
        ours = Csr.from_scipy(w)
        back = ours.to_scipy()
        for mine, theirs, again in (
            (ours.crow_indices, w.indptr, back.indptr),
            (ours.col_indices, w.indices, back.indices),
            (ours.values, w.data, back.data),
        ):
            assert mine.data_ptr() == theirs.ctypes.data == again.ctypes.data
        assert (back.toarray() == dense).all()
        ours.values[0] = 7.0
        assert w.data[0] == 7.0
    for wrong in (
        sparse.csc_array(dense),
        sparse.coo_array(dense),
        sparse.csr_array(dense.astype("int64")),
        dense,
    ):
        with pytest.raises(ValueError):
            Csr.from_scipy(wrong)
    unsorted = sparse.csr_array(dense)
    unsorted.indices[:2] = unsorted.indices[1::-1].copy()
    with pytest.raises(ValueError, match="col_indices"):
        Csr.from_scipy(unsorted)


def test_int8_rounds_to_its_scale():
    w = weight(30, 90)
    w[3] = 0
    made = Bitmap.from_dense(w, dtype=torch.int8)
    made.check()
    step = w.abs().amax(1) / 127
    torch.testing.assert_close(made.scales, step)
    assert made.values.dtype is torch.int8 and made.nnz == len(stored(w))
    assert ((made.to_dense() - w).abs() <= step[:, None] / 2 * 1.0001).all()
    assert torch.equal(made.to_csr().to_dense(), made.to_dense())
    assert torch.equal(made.to_dense()[3], torch.zeros(90))
    assert made.to_csr().dtype is torch.float32
    for extreme in (torch.full((2, 4), 3e38), torch.full((2, 4), 1e-35), torch.tensor([[-127.0, 127.0]])):
        once = Bitmap.from_dense(extreme, dtype=torch.int8)
        torch.testing.assert_close(once.to_dense(), extreme, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_there_and_back(kind):
    made = kind.from_dense(weight(20, 30))
    parts = made.tensors()
    again = kind.from_tensors(parts, made.shape)
    assert torch.equal(again.to_dense(), made.to_dense())
    assert all(again.tensors()[name].data_ptr() == t.data_ptr() for name, t in parts.items())
    for name in parts:
        with pytest.raises(ValueError, match=name):
            kind.from_tensors({k: v for k, v in parts.items() if k != name}, made.shape)
    with pytest.raises(ValueError, match="extra"):
        kind.from_tensors({**parts, "extra": torch.zeros(1)}, made.shape)


@pytest.mark.parametrize("kind", FORMATS)
def test_frozen_copied_pickled_moved(kind):
    made = kind.from_dense(weight(20, 30))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.values = torch.zeros(1)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made.to("cpu")):
        assert torch.equal(twin.to_dense(), made.to_dense()) and twin.shape == made.shape
    half = made.to(torch.bfloat16)
    assert half.dtype is torch.bfloat16 and torch.equal(half.to_dense(), made.to_dense().bfloat16())
    assert kind.__name__ in repr(made) and "20" in repr(made)
    assert made.to("meta").device.type == "meta"


@pytest.mark.parametrize("kind", FORMATS)
def test_from_dense_refuses(kind):
    for wrong, name in (
        (torch.zeros(3), "w"),
        (torch.zeros(2, 2, 2), "w"),
        (torch.zeros(2, 2).to_sparse(), "w"),
        (torch.zeros(2, 2, dtype=torch.float64), "dtype"),
        (torch.zeros(2, 2, dtype=torch.int32), "dtype"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            kind.from_dense(wrong)


def fields(made) -> dict:
    return {**made.tensors(), "shape": made.shape}


@pytest.mark.parametrize("change, name", [
    (lambda f: {"crow_indices": f["crow_indices"][:-1]}, "crow_indices"),
    (lambda f: {"crow_indices": f["crow_indices"].float()}, "crow_indices"),
    (lambda f: {"crow_indices": f["crow_indices"].long()}, "col_indices"),
    (lambda f: {"col_indices": f["col_indices"][None]}, "col_indices"),
    (lambda f: {"values": f["values"][1:]}, "values"),
    (lambda f: {"values": f["values"].int()}, "values"),
    (lambda f: {"values": f["values"].to(torch.int8)}, "values"),
    (lambda f: {"shape": (21, 30)}, "crow_indices"),
    (lambda f: {"shape": (20, -1)}, "shape"),
    (lambda f: {"shape": (20,)}, "shape"),
])  # fmt: skip
def test_csr_refuses(change, name):
    good = fields(Csr.from_dense(weight(20, 30)))
    Csr(**good)
    with pytest.raises(ValueError, match=f"^{name}: "):
        Csr(**{**good, **change(good)})


@pytest.mark.parametrize("change, name", [
    (lambda f: {"bitmask": f["bitmask"][:, :-1]}, "bitmask"),
    (lambda f: {"bitmask": f["bitmask"].char()}, "bitmask"),
    (lambda f: {"row_offsets": f["row_offsets"].int()}, "row_offsets"),
    (lambda f: {"row_offsets": f["row_offsets"][1:]}, "row_offsets"),
    (lambda f: {"values": f["values"].double()}, "values"),
    (lambda f: {"values": f["values"].to(torch.int8)}, "scales"),
    (lambda f: {"scales": torch.ones(20)}, "scales"),
    (lambda f: {"shape": (20, 65)}, "bitmask"),
    (lambda f: {"shape": (19, 30)}, "bitmask"),
])  # fmt: skip
def test_bitmap_refuses(change, name):
    good = fields(Bitmap.from_dense(weight(20, 30)))
    Bitmap(**good)
    with pytest.raises(ValueError, match=f"^{name}: "):
        Bitmap(**{**good, **change(good)})


def test_check_reads_the_indices():
    csr = Csr.from_dense(weight(20, 30))
    wrong = {"col_indices": [(0, 30), (0, -1)], "crow_indices": [(0, 1), (9, -5), (20, 3)]}
    for name, at, value in [(name, *change) for name, changes in wrong.items() for change in changes]:
        broken = csr.tensors()[name].clone()
        broken[at] = value
        made = Csr(**{**fields(csr), name: broken})
        with pytest.raises(ValueError, match=f"{name}: "):
            made.check()
    bitmap = Bitmap.from_dense(weight(20, 30))
    for name, at, value in (
        ("bitmask", (0, 7), 1),
        ("bitmask", (19, 0), 0),
        ("row_offsets", 0, 1),
        ("row_offsets", 9, 10**9),
    ):
        broken = bitmap.tensors()[name].clone()
        assert broken[at] != value
        broken[at] = value
        with pytest.raises(ValueError, match=r"bitmask: |row_offsets: "):
            Bitmap(**{**fields(bitmap), name: broken}).check()


def test_sparsify_decides_by_density():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for density, kind in ((0.0, Csr), (0.01, Csr), (0.1, Bitmap), (0.5, Bitmap), (0.7, Bitmap)):
            w = weight(100, 200, density)
            made = sparsecore.sparsify(w)
            assert type(made) is kind and torch.equal(made.to_dense(), w)
            assert type(sparsecore.sparsify(w, format="csr")) is Csr
            assert type(sparsecore.sparsify(w, format="bitmap")) is Bitmap
            assert type(sparsecore.sparsify(w, dtype=torch.int8)) is Bitmap
    dense = weight(50, 50, 1.0)
    with pytest.warns(UserWarning, match="density"):
        assert sparsecore.sparsify(dense) is dense
    assert isinstance(sparsecore.sparsify(dense, format="bitmap"), Bitmap)
    with pytest.raises(ValueError, match=r"^format: "):
        sparsecore.sparsify(dense, format="coo")
    with pytest.raises(ValueError):
        sparsecore.sparsify(torch.zeros(3))
    with pytest.raises(ValueError):
        sparsecore.sparsify(torch.zeros(3, 3), format="csr", dtype=torch.int8)


@pytest.mark.parametrize("make", [lambda w: w, Csr.from_dense, Bitmap.from_dense, torch.Tensor.to_sparse_csr])
def test_linear_takes_every_format(make):
    w, x, bias = weight(20, 30), torch.randn(2, 3, 30), torch.randn(20)
    y = sparsecore.linear(x, make(w), bias)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, w, bias))
    out = torch.empty_like(y)
    assert sparsecore.linear(x, make(w), bias, out=out) is out
    assert torch.equal(out, y)
