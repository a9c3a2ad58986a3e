"""pack_mask, pack_lengths, gather_rows and scatter_rows against their reference."""

import pytest
import torch

import taut
from helpers import RAGGED_LENGTHS, far_rows, gradients_of, misaligned, strided_rows
from taut._native import last_variant
from taut.reference import packing as reference

MASK_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
ANY_DTYPES = (*MASK_DTYPES, torch.complex64, torch.float8_e4m3fn)


def assert_packing_equal(got, want):
    assert isinstance(got, taut.Packing)
    for actual, expected in zip(got, want, strict=True):
        assert actual.dtype == torch.int32 and torch.equal(actual, expected)


def masks():
    """Right padding, left padding, holes."""
    length = max(RAGGED_LENGTHS)
    right = torch.arange(length) < torch.tensor(RAGGED_LENGTHS)[:, None]
    return {"right": right, "left": right.flip(1), "holes": torch.rand(right.shape) < 0.6}


@pytest.mark.parametrize("dtype", MASK_DTYPES)
@pytest.mark.parametrize("padding", ("right", "left", "holes"))
def test_pack_mask(isa, padding, dtype):
    mask = masks()[padding].to(dtype)
    want = reference.pack_mask(mask)
    assert_packing_equal(taut.pack_mask(mask), want)
    assert last_variant("pack_mask") == isa
    assert_packing_equal(taut.pack_mask(misaligned(mask)), want)
    wide = torch.ones(mask.shape[0], 2 * mask.shape[1], dtype=dtype)
    wide[:, ::2] = mask
    assert_packing_equal(taut.pack_mask(wide[:, ::2]), want)
    assert_packing_equal(taut.pack_mask(mask.t().contiguous().t()), want)


def test_pack_mask_by_hand(isa):
    cu_seqlens, indices, positions = taut.pack_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]))
    assert cu_seqlens.tolist() == [0, 2, 2, 4]
    assert indices.tolist() == [1, 2, 6, 8]
    assert positions.tolist() == [0, 1, 0, 1]


def test_any_value_but_zero_is_a_token(isa):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        mask = torch.tensor([[0.0, -0.0, -1.0, 1e-4, float("nan"), float("inf")]], dtype=dtype)
        assert taut.pack_mask(mask).indices.tolist() == [2, 3, 4, 5]
    high = torch.tensor([[1 << 40, 0, -(1 << 63), 0]])
    assert taut.pack_mask(high).indices.tolist() == [0, 2]


def test_large_masks_are_packed_in_parallel(isa):
    mask = torch.rand(300, 500) < 0.7
    assert_packing_equal(taut.pack_mask(mask), reference.pack_mask(mask))
    lengths = torch.randint(0, 501, (300,))
    assert_packing_equal(taut.pack_lengths(lengths, 500), reference.pack_lengths(lengths, 500))


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64))
def test_pack_lengths(isa, dtype):
    lengths, padded = torch.tensor(RAGGED_LENGTHS, dtype=dtype), max(RAGGED_LENGTHS)
    want = reference.pack_mask(masks()["right"])
    assert_packing_equal(taut.pack_lengths(lengths, padded), want)
    assert last_variant("pack_lengths") == isa
    assert_packing_equal(taut.pack_lengths(torch.stack((lengths, -lengths), 1)[:, 0], padded), want)


def test_empty_packings(isa):
    for mask in (torch.ones(0, 5), torch.ones(3, 0), torch.zeros(3, 5)):
        assert_packing_equal(taut.pack_mask(mask), reference.pack_mask(mask))
    for lengths, padded in ((torch.zeros(0, dtype=torch.int32), 5), (torch.zeros(2).int(), 0)):
        want = reference.pack_lengths(lengths, padded)
        assert_packing_equal(taut.pack_lengths(lengths, padded), want)


@pytest.mark.parametrize("dtype", ANY_DTYPES)
@pytest.mark.parametrize("shape", ((29,), (29, 35), (29, 2, 3, 4), (29, 0)))
def test_gather_and_scatter_are_mutual_inverses(isa, shape, dtype):
    x = (100 * torch.randn(shape)).to(dtype)
    indices = torch.randperm(29, dtype=torch.int32)[:17]
    rows = taut.gather_rows(x, indices)
    assert last_variant("gather_rows") == isa
    same = torch.equal if dtype != torch.float8_e4m3fn else equal_bytes
    assert same(rows, x[indices.long()])
    padded = taut.scatter_rows(rows, indices.long(), 29)
    assert last_variant("scatter_rows") == isa
    assert same(taut.gather_rows(padded, indices), rows)
    rest = torch.ones(29, dtype=torch.bool)
    rest[indices.long()] = False
    assert same(padded[rest], torch.zeros((12, *shape[1:])).to(dtype))


def equal_bytes(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
def test_layouts(isa, change):
    x, indices = torch.randn(9, 35).bfloat16(), torch.tensor([8, 0, 3])
    spread = torch.stack((indices, -indices - 1), 1)[:, 0]
    assert torch.equal(taut.gather_rows(change(x), spread), x[indices])
    want = reference.scatter_rows(x[:3], indices, 11)
    assert torch.equal(taut.scatter_rows(change(x[:3]), spread, 11), want)


def test_rows_that_are_not_contiguous(isa):
    x, indices = torch.randn(4, 9, 5).permute(1, 2, 0), torch.tensor([8, 0, 3])
    assert torch.equal(taut.gather_rows(x, indices), x[indices])
    assert torch.equal(taut.gather_rows(x.expand(9, 5, 4)[:, :1].expand(9, 5, 4), indices)[:, 4],
                       x[indices, 0])  # fmt: skip
    assert torch.equal(taut.scatter_rows(x[:3], indices, 9)[indices], x[:3])


def test_large_moves_are_parallel(isa):
    x = torch.randn(3000, 64)
    indices = torch.randperm(3000)[:2000]
    rows = taut.gather_rows(x, indices)
    assert torch.equal(rows, x[indices])
    assert torch.equal(taut.scatter_rows(rows, indices, 3000)[indices], rows)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_gradients(isa, dtype):
    x, indices = torch.randn(9, 5).to(dtype), torch.tensor([8, 0, 3])
    grad = torch.randn(3, 5).to(dtype)
    (dx,) = gradients_of(lambda t: taut.gather_rows(t, indices), [x], grad)
    assert torch.equal(dx, taut.scatter_rows(grad, indices, 9))
    (drows,) = gradients_of(lambda t: taut.scatter_rows(t, indices, 9), [grad], x)
    assert torch.equal(drows, taut.gather_rows(x, indices))
    repeated = torch.tensor([2, 2, 0, 2], dtype=torch.int32)
    grad = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)[:, None].expand(4, 5)
    (dx,) = gradients_of(lambda t: taut.gather_rows(t, repeated), [x], grad)
    assert dx[:, 0].tolist() == [3, 0, 7, 0, 0, 0, 0, 0, 0]


def test_torch_library_and_compile(isa):
    ops = torch.ops.taut
    mask, lengths = torch.tensor([[1, 0, 1], [0, 1, 1]]), torch.tensor([2, 0, 3])
    x, indices = torch.randn(4, 3, requires_grad=True), torch.tensor([3, 1], dtype=torch.int32)
    torch.library.opcheck(ops.pack_mask.default, (mask,))
    torch.library.opcheck(ops.pack_lengths.default, (lengths, 3))
    torch.library.opcheck(ops.gather_rows.default, (x, indices))
    torch.library.opcheck(ops.scatter_rows.default, (x[:2].detach().requires_grad_(), indices, 7))

    def unpad_and_pad(x, mask):
        packing = taut.pack_mask(mask)
        rows = taut.gather_rows(x, packing.indices)
        return taut.scatter_rows(2 * rows, packing.indices, x.shape[0])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(unpad_and_pad, fullgraph=True, backend="aot_eager")
        x = torch.randn(6, 3, requires_grad=True)
        assert torch.equal(compiled(x, mask), unpad_and_pad(x, mask))


def test_refuses_bad_arguments():
    x, indices = torch.randn(4, 3), torch.tensor([0, 4, -1])
    with pytest.raises(ValueError, match=r"pack_mask: attention_mask must be \(batch, length\), g"):
        taut.pack_mask(torch.ones(3))
    with pytest.raises(ValueError, match="attention_mask must be bool, integer or.*complex64"):
        taut.pack_mask(torch.ones(3, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"batch \* length must be below 2\*\*31, got 65536 \* 32"):
        taut.pack_mask(torch.ones(1, 1).expand(65536, 32768))
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 5\], got 6 at index 1"):
        taut.pack_lengths(torch.tensor([0, 6]), 5)
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 5\], got -1 at index 0"):
        taut.pack_lengths(torch.tensor([-1, 6]), 5)
    with pytest.raises(ValueError, match="padded_length must not be negative, got -2"):
        taut.pack_lengths(torch.tensor([0]), -2)
    with pytest.raises(TypeError, match="padded_length must be an int, got str"):
        taut.pack_lengths(torch.tensor([0]), "5")
    with pytest.raises(
        ValueError, match=r"gather_rows: indices must be in \[0, 4\), got 4 at inde"
    ):
        taut.gather_rows(x, indices)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 5\), got -1 at index 2"):
        taut.scatter_rows(x[:3], indices, 5)
    with pytest.raises(ValueError, match=r"indices must have one entry per row of x \(4, 3\), got"):
        taut.scatter_rows(x, indices[:1], 5)
    with pytest.raises(ValueError, match="gather_rows: indices must be int32, int64, got float32"):
        taut.gather_rows(x, torch.zeros(2))
    with pytest.raises(TypeError, match="scatter_rows: rows must be an int, got float"):
        taut.scatter_rows(x, indices, 5.0)
    with pytest.raises(RuntimeError, match=r"gather_rows: x must have at least one dimension"):
        torch.ops.taut.gather_rows(torch.tensor(1.0), indices)
