"""The Triton kernels over packed signs against their reference: on the GPU, or interpreted."""

import pytest
import torch

from binary_cases import (
    assert_int8_attention,
    int8_inputs,
    plain_qk_only,
    random_words,
    scales_of_every_size,
)
from helpers import cu_seqlens_of, strided_rows
from taut.ops.binary_gemm import pack_binary_weight
from taut.reference.binary_gemm import pack_bits
from triton_helpers import DTYPES, assert_agrees, launch, reference

LENGTHS = (0, 1, 63, 65, 0, 4)
BEHIND = 3


def random_bits(rows, columns, rails=1):
    x = torch.randn(rows, columns)
    return pack_bits(x.masked_fill(x.abs() < 0.1, 0.0), None, rails)


def random_weight(out_features, in_features):
    return pack_binary_weight(random_bits(out_features, in_features))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 64, 130))
def test_bits(columns, dtype):
    x = torch.randn(35, columns).to(dtype)
    x[0, 0], x[1, 0], x[2, 0] = 0.0, float("nan"), float("inf")
    for rails in (1, 2):
        for tie in ("strict", "geq"):
            (bits,) = assert_agrees("pack_bits", strided_rows(x), None, rails, tie)
            assert_agrees("pack_bits", x, torch.randn(columns), rails, tie)
        assert_agrees("unpack_bits", bits, columns)


@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("shape", ((1, 1), (64, 64), (130, 70), (300, 130)))
def test_linear(shape, rails):
    in_features, out_features = shape
    packed = random_weight(out_features, in_features)
    x = random_bits(70, in_features, rails)
    sizes = out_features, in_features
    ones = torch.ones(out_features)
    (out,) = assert_agrees("binary_linear", x, None, packed, ones, None, *sizes, "none", None, None)
    assert torch.equal(out, out.round())
    for shape in ((out_features,), (3, out_features)):
        thresholds = torch.randint(-9, 10, shape, dtype=torch.int32)
        assert_agrees("binary_linear_bits", x, packed, thresholds, *sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_codes_and_epilogue(dtype):
    packed, x_scale = random_weight(70, 130), torch.rand(40, 1)
    scale, bias = torch.randn(2, 70) / 10
    q = torch.randint(-128, 128, (40, 130)).to(torch.int8)
    residual = torch.randn(40, 70).to(dtype)
    rest = 70, 130, "gelu", residual, dtype
    assert_agrees("binary_linear", strided_rows(q), x_scale, packed, scale, bias, *rest)
    assert_agrees("binary_linear", random_bits(40, 130), None, packed, scale, None, *rest)


def test_linear_layer_norm():
    packed = random_weight(70, 130)
    scale, bias, threshold, weight, norm_bias = torch.randn(5, 70)
    x, residual = random_bits(40, 130), torch.randn(40, 70)
    for args in (
        (residual, weight, norm_bias, 1e-5, threshold),
        (residual, None, None, 1e-5, None),
    ):
        op = "binary_linear_layer_norm"
        out, bits = launch(op, x, None, packed, scale, bias, 130, *args)
        want, _ = reference(op, x, None, packed, scale, bias, 130, *args)
        torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-4)
        assert torch.equal(bits, pack_bits(out, args[-1]))


def words_of_heads(heads=2):
    tokens = sum(LENGTHS) + BEHIND
    q, k, v = random_words(3, tokens, heads)
    k[::5] = q[tokens // 2]
    return q, k, v, cu_seqlens_of(LENGTHS)


@pytest.mark.parametrize(
    "options",
    (
        ("bool", "geq", 0.125, 0.0),
        ("elastic", "strict", 0.125, 0.02),
        ("elastic", "strict", 1.0, 0.3),
        ("elastic", "strict", 0.001, 1e-7),
    ),
)
def test_attention_sums(options):
    (sums,) = assert_agrees("binary_attention", *words_of_heads(), *options, None, 0)
    assert sums.any()


@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("given", (False, True))
def test_attention_bits(given, rails):
    thresholds = torch.randint(-5, 6, ((2, 64), (3, 2, 64))[rails - 1], dtype=torch.int32)
    options = "bool", "strict", 0.125, 0.0, thresholds if given else None, rails
    (bits,) = assert_agrees("binary_attention", *words_of_heads(), *options)
    assert bits.any() and (bits[-BEHIND:] == 0).all()


def test_attention_of_views():
    q, k, v, cu = words_of_heads(3)
    wide = torch.stack((q, k, v), 2).flatten(1)  # q, k, v of a head side by side
    views = wide.unflatten(1, (3, 3)).unbind(2)
    assert not views[0].is_contiguous()
    assert_agrees("binary_attention", *views, cu, "bool", "strict", 0.125, 0.0, None, 2)


@pytest.mark.parametrize("slopes", (None, torch.tensor([0.5, 0.0])))
@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_attention(dtype, slopes):
    q, k, _, cu = words_of_heads()
    v = torch.randn(*q.shape, 64).to(dtype)
    plain = plain_qk_only(q, k, v, cu, 0.2, slopes)
    args = q, k, v, cu, 0.2, slopes, None, None
    assert_agrees("binary_qk_attention", *args, plain=(plain,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_attention_with_int8_values(dtype):
    q, k, _, cu = words_of_heads()
    v = torch.randint(-128, 128, (*q.shape, 64)).to(torch.int8)
    v_scale = torch.rand(q.shape[0], 1)
    plain = plain_qk_only(q, k, (v * v_scale[:, :, None]).to(dtype), cu, 0.2, None)
    args = q, k, v, cu, 0.2, None, v_scale, dtype
    assert_agrees("binary_qk_attention", *args, plain=(plain,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_attention_with_scales_of_every_size(dtype):
    lengths = (20, 64, 5, 70)
    q, k, v, cu, _ = int8_inputs(lengths)
    smallest, largest = (-6, 2) if dtype == torch.float16 else (-37, 33)
    v_scale = scales_of_every_size(lengths, smallest, largest)
    (out,) = launch("binary_qk_attention", q, k, v, cu, 0.125, None, v_scale, dtype)
    assert_int8_attention(out, q, k, v, cu, v_scale)
