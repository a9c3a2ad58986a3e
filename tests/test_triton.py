"""Every Triton kernel but attention's, against its reference: on the GPU, or in the interpreter."""

import pytest
import torch

import taut
from helpers import cu_seqlens_of, strided_rows
from taut.reference.dense_gemm import pack_weight
from triton_helpers import DTYPES, assert_agrees, launch, reference, to_device

# A sigmoid far below zero is 1 / inf.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh")
LENGTHS = (0, 1, 63, 64, 65, 0, 5)
ROWS = 70  # crosses a block of rows and a block of partial sums


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


# ---- norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (7, 65, 384))
def test_norm(dtype, columns):
    x, residual = (2 * normal(2, ROWS, columns) + 1).to(dtype)
    bias, weight, norm_bias = normal(3, columns, dtype=dtype)
    out, total, mean, rstd = assert_agrees(
        "layer_norm", x, residual, bias, weight, norm_bias, 1e-5, True
    )
    grad_out, grad_sum = normal(2, ROWS, columns, dtype=dtype)
    saved = x, residual, bias, weight
    assert_agrees("layer_norm_backward", grad_out, grad_sum, *saved, mean, rstd)
    _, _, rstd = assert_agrees("rms_norm", *saved, 1e-5, True)
    assert_agrees("rms_norm_backward", grad_out, grad_sum, *saved, rstd)


def test_norm_without_options():
    x, grad_out = normal(2, 5, 33)
    _, _, mean, rstd = assert_agrees("layer_norm", x, *(None,) * 4, 1e-5, False)
    assert_agrees("layer_norm_backward", grad_out, None, x, *(None,) * 3, mean, rstd)
    _, _, rstd = assert_agrees("rms_norm", x, *(None,) * 3, 1e-5, False)
    assert_agrees("rms_norm_backward", grad_out, None, x, *(None,) * 3, rstd)


@pytest.mark.parametrize("columns", (1, 20000))
def test_norm_of_extreme_widths(columns):
    x, weight = normal(3, columns), normal(columns)
    assert_agrees("layer_norm", x, None, None, weight, weight, 1e-5, False)
    assert_agrees("rms_norm", x, None, None, weight, 1e-5, False)


def test_norm_of_one_row_is_that_of_a_batch():
    x, bias = normal(ROWS, 96), normal(96)
    batch = launch("layer_norm", x, None, bias, None, None, 1e-5, False)
    alone = launch("layer_norm", x[33:34], None, bias, None, None, 1e-5, False)
    assert torch.equal(alone[0], batch[0][33:34])


def test_norm_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="rms_norm: tensors must be float32.*got float64"):
        launch("rms_norm", normal(1, 8).double(), *(None,) * 3, 1e-5, False)
    with pytest.raises(ValueError, match=r"rms_norm: weight must be \(8,\).*got \(5,\)"):
        launch("rms_norm", normal(1, 8), None, None, normal(5), 1e-5, False)


# ---- activation


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation):
    x, bias, grad_out = 3 * normal(ROWS, 290), normal(290), normal(ROWS, 290)
    for given in (bias, None):
        assert_agrees("bias_activation", x, given, activation)
        assert_agrees("bias_activation_backward", grad_out, x, given, activation)
        assert_agrees("bias_glu", x, given, activation)
        assert_agrees("bias_glu_backward", grad_out[:, 145:], x, given, activation)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_activation_narrow(dtype):
    x, bias, grad_out = normal(9, 70, dtype=dtype), normal(70, dtype=dtype), normal(9, 70)
    assert_agrees("bias_activation", x, bias, "gelu")
    assert_agrees("bias_activation_backward", grad_out.to(dtype), x, bias, "gelu")
    assert_agrees("bias_glu", x, bias, "silu")
    assert_agrees("bias_glu_backward", grad_out[:, :35].to(dtype), x, bias, "silu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_far_from_zero(activation):
    """The derivative reaches its limits, where squares overflow too; NaN stays NaN."""
    x = torch.tensor([[float("-inf"), -3e38, -90.0, 0.5, 90.0, 3e38, float("inf"), float("nan")]])
    near = x.clamp(-90, 90)
    got, _ = launch("bias_activation_backward", torch.ones_like(x), x, None, activation)
    want, _ = reference("bias_activation_backward", torch.ones_like(x), near, None, activation)
    torch.testing.assert_close(got, want, equal_nan=True)
    got, want = (f("bias_activation", near, None, activation)[0] for f in (launch, reference))
    torch.testing.assert_close(got, want, equal_nan=True)


def test_tanh_keeps_its_relative_accuracy_near_zero():
    x = torch.cat([sign * torch.logspace(-30, 0, 331) for sign in (1, -1)])[None]
    got = launch("bias_activation", x, None, "tanh")[0]
    torch.testing.assert_close(got.double(), x.double().tanh(), rtol=1e-6, atol=0)


# ---- packing


@pytest.mark.parametrize("length", (0, 1, 65, 600))
def test_pack_mask(length):
    mask = torch.rand(4, length) > 0.4
    mask[1] = False
    for dtype in (torch.bool, torch.int64, torch.float32):
        assert_agrees("pack_mask", mask.to(dtype))


def test_pack_lengths():
    for dtype in (torch.int32, torch.int64):
        assert_agrees("pack_lengths", torch.tensor([0, 600, 1, 64], dtype=dtype), 600)
    assert_agrees("pack_lengths", torch.zeros(0, dtype=torch.int64), 7)


@pytest.mark.parametrize("dtype", (torch.bool, torch.float16, torch.float32, torch.int64))
@pytest.mark.parametrize("shape", ((), (3, 5), (1030,)))
def test_moving_rows(dtype, shape):
    x = (100 * normal(12, *shape)).to(dtype)
    indices = torch.randperm(12)[:9]
    assert_agrees("gather_rows", x, indices)
    assert_agrees("scatter_rows", x[:9], indices.int(), 15)


def test_moving_rows_skips_indices_outside():
    """The launcher's own check reads the data; behind it the kernel must still stay inside."""
    from taut.triton_kernels import packing

    x, indices = to_device((normal(4, 8), torch.tensor([1, -1, 4, 3])))
    gathered = packing.gather_rows.__wrapped__(x, indices)
    assert torch.equal(gathered, torch.stack((x[1], 0 * x[1], 0 * x[1], x[3])))
    scattered = packing.scatter_rows.__wrapped__(x, indices, 4)
    assert torch.equal(scattered, torch.stack((0 * x[0], x[0], 0 * x[0], x[3])))


# ---- embedding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tables", ("word", "word, type 0", "all"))
def test_embedding(dtype, tables):
    input_ids, positions = torch.randint(0, 50, (ROWS,)), torch.randint(0, 20, (ROWS,)).int()
    types = torch.randint(0, 3, (ROWS,))
    word, position = normal(50, 40, dtype=dtype), normal(20, 40, dtype=dtype)
    token_type, (weight, norm_bias) = normal(3, 40, dtype=dtype), normal(2, 40, dtype=dtype)
    args = {
        "word": (input_ids, None, None, word, None, None, None),
        "word, type 0": (input_ids, None, None, word, None, token_type, weight),
        "all": (input_ids, positions, types, word, position, token_type, weight),
    }[tables]
    _, mean, rstd = assert_agrees("embed_layer_norm", *args, norm_bias, 1e-5)
    grad_out = normal(ROWS, 40, dtype=dtype)
    assert_agrees("embed_layer_norm_backward", grad_out, *args, mean, rstd)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tables", ("word", "all"))
def test_lowbit_embedding(dtype, tables):
    input_ids, positions = torch.randint(0, 50, (ROWS,)), torch.randint(0, 20, (ROWS,)).int()
    word, word_scale = taut.quantize_per_token(normal(50, 40))
    position, token_type = normal(20, 40, dtype=dtype), normal(3, 40, dtype=dtype)
    weight, norm_bias = normal(2, 40, dtype=dtype)
    args = {
        "word": (input_ids, None, None, word, word_scale, None, None, weight, None),
        "all": (
            *(input_ids, positions, None, word, word_scale, position, token_type, weight),
            norm_bias,
        ),
    }[tables]
    assert_agrees("lowbit_embed_layer_norm", *args, 1e-5)


def test_embedding_never_reads_outside_its_tables():
    from taut.triton_kernels import embedding

    word, ids = to_device((normal(5, 16), torch.tensor([4, 5, -1, 0])))
    out, *_ = embedding.embed_layer_norm.__wrapped__(ids, None, None, word, *(None,) * 4, 1e-5)
    assert out[1:3].isnan().all() and out[[0, 3]].isfinite().all()


# ---- pooling


@pytest.mark.parametrize("mode", ("cls", "mean", "max", "last"))
@pytest.mark.parametrize("normalize", (False, True))
def test_pooling(mode, normalize):
    cu_seqlens = cu_seqlens_of(LENGTHS)
    for dtype in DTYPES:
        x = normal(sum(LENGTHS) + 3, 40, dtype=dtype)
        grad_out = normal(len(LENGTHS), 40, dtype=dtype)
        assert_agrees("pool", x, cu_seqlens, mode, normalize)
        assert_agrees("pool_backward", grad_out, x, cu_seqlens, mode, normalize)


@pytest.mark.parametrize("mode", ("cls", "mean", "max", "last"))
def test_pooling_of_special_values(mode):
    """Maxima of -inf and ties, NaN that stays in its sequence, rows at either end."""
    x, cu_seqlens = normal(8, 3), torch.tensor([0, 3, 6, 8], dtype=torch.int32)
    x[3:6] = torch.tensor([float("-inf"), float("nan"), 1.0])
    x[5, 1] = float("inf")
    grad_out = normal(3, 3)
    for op, args in (("pool", ()), ("pool_backward", (grad_out,))):
        got, want = launch(op, *args, x, cu_seqlens, mode, False), None
        want = reference(op, *args, x, cu_seqlens, mode, False)
        torch.testing.assert_close(got, want, equal_nan=True)


# ---- dense_gemm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((0, 70, 40), (1, 1, 1), (65, 130, 33), (33, 64, 130)))
def test_packed_linear(dtype, shape):
    rows, channels, features = shape
    x, packed = (
        normal(rows, features, dtype=dtype),
        pack_weight(normal(channels, features).to(dtype)),
    )
    for bias in (None, normal(channels), normal(channels, dtype=dtype)):
        assert_agrees("packed_linear", x, packed, bias, channels, "gelu")
        residual, weight = normal(rows, channels, dtype=dtype), normal(channels, dtype=dtype)
        norm = residual, weight, None if bias is None else weight
        assert_agrees("packed_linear_layer_norm", x, packed, bias, *norm, 1e-5)


# ---- layouts


def test_rows_may_be_strided():
    x, bias, cu_seqlens = normal(9, 40), normal(40), torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = pack_weight(normal(10, 40))
    for op, rest in (
        ("layer_norm", (None, bias, None, None, 1e-5, True)),
        ("bias_activation", (bias, "gelu")),
        ("bias_glu", (bias, "gelu")),
        ("gather_rows", (torch.arange(9),)),
        ("pool", (cu_seqlens, "mean", True)),
        ("packed_linear", (packed, None, 10, "none")),
    ):
        want = launch(op, x, *rest)
        for layout in (strided_rows(x), x.t().contiguous().t()):
            got = launch(op, layout, *rest)
            assert all(map(torch.equal, got, want)), op


def test_no_rows():
    x, bias = normal(0, 8), normal(8)
    assert_agrees("layer_norm", x, None, bias, None, None, 1e-5, True)
    assert_agrees("layer_norm_backward", x, None, x, None, bias, None, normal(0), normal(0))
    assert_agrees("bias_activation", x, bias, "gelu")
    assert_agrees("bias_glu_backward", x[:, :4], x, bias, "gelu")
    ids = torch.zeros(0, dtype=torch.int64)
    assert_agrees("embed_layer_norm", ids, None, None, normal(3, 8), *(None,) * 4, 1e-5)
    assert_agrees("gather_rows", normal(3, 8), ids)
    assert_agrees("pool", x, torch.zeros(3, dtype=torch.int32), "max", True)
