"""Linear layers over low-bit weights against their reference, on every instruction set."""

import itertools
import random

import pytest
import torch
from torch.nn import functional

import taut
from helpers import assert_close_by_comparison, misaligned, strided_rows
from lowbit_weights import FLOATS, check_integers, codes_of, integer_variant, operands, weight_of
from taut._native import last_variant
from taut.formats import BITS, GROUP_SIZES, LowbitWeight, dequantize_codes, pack_codes
from taut.reference import lowbit_gemm as reference
from taut.reference import quantize as quantize_reference
from taut.reference.dense_gemm import ACTIVATIONS

# Most shapes here are too small to share.
pytestmark = pytest.mark.usefixtures("one_thread")
# (rows, out_features, in_features): on and around the edges of tiles of 2, 4, 6 and 16 rows, panels
# of 64 channels, quads, units of 32 and blocks of 64 input features.
SHAPES = (
    (0, 64, 64),
    (1, 1, 1),
    (1, 200, 128),
    (5, 63, 3),
    (16, 64, 4),
    (17, 65, 63),
    (33, 200, 65),
    (6, 64, 96),
    (130, 65, 200),
    (7, 130, 128),
)


# ---- packing


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("out_features, in_features", ((1, 1), (63, 3), (64, 64), (200, 130)))
def test_pack_and_unpack(isa, bits, out_features, in_features):
    codes = torch.randint(2**bits, (out_features, in_features), dtype=torch.uint8)
    string = pack_codes(codes, bits)
    packed = taut.pack_lowbit(string, bits, in_features)
    assert packed.data_ptr() % 64 == 0
    assert torch.equal(packed, reference.pack_lowbit(string, bits, in_features))
    assert torch.equal(taut.unpack_lowbit(packed, bits, out_features, in_features), string)
    for moved in (strided_rows(string), misaligned(string), string.T.contiguous().T):
        assert torch.equal(taut.pack_lowbit(moved, bits, in_features), packed)


def test_packed_layout():
    """The documented places of one code: n = 65, k = 70 is panel 1, channel 1, block 1, quad 1."""
    for bits, row, shift in ((8, 1, 0), (4, 0, 4), (2, 0, 2), (3, 0, 2)):
        codes = torch.zeros(70, 100, dtype=torch.uint8)
        codes[65, 70] = 2**bits - 1
        packed = taut.pack_lowbit(pack_codes(codes, bits), bits, 100)
        assert packed.shape == (2, 2, 2 * bits, 64, 4)
        low = min(bits, 2) if bits == 3 else bits
        assert packed[1, 1, row, 1, 2] == (2**low - 1) << shift
        if bits == 3:
            assert packed[1, 1, 4, 1, 2] == 1 << 1
        assert packed[0, 0].count_nonzero() == 0


# ---- integer activations


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers(isa, bits, shape):
    rows, out_features, in_features = shape
    for group_size in (0, *(size for size in (32, 64) if size < in_features)):
        for zero_point in (None, "whole", "half"):
            weight = weight_of(out_features, in_features, bits, group_size, zero_point, powers=True)
            groups = weight.scale.shape[1]
            check_integers(rows, weight, x_groups=groups if zero_point else 1)
            if rows:
                assert last_variant("lowbit_linear") == integer_variant(isa, rows)
    check_integers(rows, weight, x_zero_point=-0.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_group_sizes(isa, bits, group_size):
    weight = weight_of(70, 600, bits, group_size, "half", powers=True)
    bias = torch.randint(-8, 8, (70,)).float()
    check_integers(19, weight, bias=bias, x_groups=weight.scale.shape[1])
    check_integers(19, weight, x_zero_point=-0.5, bias=bias.bfloat16())
    assert last_variant("lowbit_linear") == integer_variant(isa, 19)


@pytest.mark.parametrize("seed", (1, 2, 3, 4, 5, 6, None, None))
def test_fuzz(isa, seed):
    draw = random.Random(torch.initial_seed() if seed is None else seed)
    torch.manual_seed(draw.randrange(1 << 31))
    for _ in range(6):
        rows, out_features = draw.randint(1, 140), draw.randint(1, 150)
        bits, group_size = draw.choice(BITS), draw.choice(GROUP_SIZES)
        weight = weight_of(
            out_features, draw.randint(1, 300), bits, group_size,
            draw.choice((None, "whole", "half")), powers=True,
        )  # fmt: skip
        x_groups = draw.choice((1, weight.scale.shape[1]))
        check_integers(rows, weight, draw.choice((0.0, -0.5)), x_groups)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", (-128, -127, 127))
def test_extremes_do_not_saturate(isa, bits, value):
    codes = torch.full((65, 4096), 2**bits - 1, dtype=torch.uint8)
    scale = torch.ones(65, 1)
    for zero_point in (None, torch.zeros(65, 1)):
        weight = LowbitWeight(pack_codes(codes, bits), scale, zero_point, None, bits, 4096)
        for rows in (1, 18):
            x = torch.full((rows, 4096), value, dtype=torch.int8)
            out = taut.lowbit_linear(
                x, weight, x_scale=torch.ones(rows, 1), out_dtype=torch.float32
            )
            zero = 2 ** (bits - 1) if zero_point is None else 0
            assert (out == float(value * (2**bits - 1 - zero) * 4096)).all()


def test_per_channel_products_are_exact_whatever_the_scales(isa):
    """One group: the fp32 operations have one order, so any scale gives equal bits."""
    for bits in BITS:
        x, x_scale = codes_of(20, 700), torch.rand(20, 1)
        for zero_point, bias in itertools.product((None, "half"), (None, torch.randn(130))):
            weight = weight_of(130, 700, bits, zero_point=zero_point)
            for dtype in FLOATS:
                got = taut.lowbit_linear(x, weight, bias, x_scale=x_scale, out_dtype=dtype)
                want = reference.lowbit_linear(*operands(weight, x, x_scale, bias), out_dtype=dtype)
                assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("x_bits", (4, 8))
def test_quantizes_x_inside(isa, dtype, x_bits):
    """As quantizing first does, to the bit."""
    x = torch.randn(37, 200).to(dtype)
    for bits in BITS:
        weight = weight_of(70, 200, bits, 64)
        q, x_scale = quantize_reference.quantize_per_token(x, bits=x_bits)
        want = taut.lowbit_linear(q, weight, x_scale=x_scale, out_dtype=dtype)
        got = taut.lowbit_linear(x, weight, activation=f"int{x_bits}")
        assert torch.equal(got, want)
        assert last_variant("lowbit_linear") == integer_variant(isa, 37)


# ---- fp32 behind the sums, and floating-point activations


def exact_total(weight, x, bias, x_scale=None):
    """x W^T + bias in fp64; x of int8 with a scale per row, or floating point."""
    values = dequantize_codes(
        taut.formats.unpack_codes(weight.codes, weight.bits, weight.in_features).double(),
        *(t if t is None else t.double() for t in (weight.scale, weight.zero_point)),
        weight.codebook, weight.bits, weight.group_size,
    ) if weight.codebook is None else weight.dequantize().double()  # fmt: skip
    x = x.double() if x_scale is None else x.double() * x_scale.double()
    return functional.linear(x, values, None if bias is None else bias.double())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues(isa, dtype, activation):
    weight = weight_of(70, 130, 8, 64)
    x, x_scale = codes_of(37, 130), torch.rand(37, 1) / 20000
    bias = torch.randn(70).to(dtype)
    residual = torch.randn(37, 70).to(dtype)
    got = taut.lowbit_linear(
        x, weight, bias, epilogue=activation, residual=residual, x_scale=x_scale, out_dtype=dtype
    )
    total = exact_total(weight, x, bias, x_scale)
    exact = ACTIVATIONS[activation](total) + residual.double()
    plain = ACTIVATIONS[activation](total.to(dtype)) + residual
    assert_close_by_comparison(got, plain, exact)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_floating_point_activations(isa, dtype, shape):
    rows, out_features, in_features = shape
    x = torch.randn(rows, in_features).to(dtype)
    # A single product may cancel with a bias, and only its rounding be left.
    bias = torch.randn(out_features) if out_features > 1 else None
    for bits, group_size, zero_point, codebook in (
        (8, 0, None, None),
        (8, 32, "half", None),
        (4, 64, "whole", None),
        (3, 128, None, None),
        (2, 0, "half", None),
        (4, 0, None, "shared"),
        (4, 64, None, "own"),
        (3, 0, None, "own"),
        (8, 0, None, "own"),
    ):
        weight = weight_of(out_features, in_features, bits, group_size, zero_point, codebook)
        got = taut.lowbit_linear(x, weight, bias, activation="none")
        if rows:
            assert last_variant("lowbit_linear") == f"{isa}/float"
        plain_bias = None if bias is None else bias.to(dtype)
        plain = functional.linear(x, weight.dequantize().to(dtype), plain_bias)
        assert_close_by_comparison(got, plain, exact_total(weight, x, bias))


@pytest.mark.parametrize("out_bits, out_group_size", ((8, 0), (4, 0), (8, 32), (8, 128)))
@pytest.mark.parametrize("activation", ("int8", "none"))
def test_linear_quantize(isa, out_bits, out_group_size, activation):
    for rows in (1, 40):
        weight = weight_of(200, 130, 4, 64)
        x, bias = torch.randn(rows, 130), torch.randn(200)
        options = {"out_bits": out_bits, "out_group_size": out_group_size}
        q, scale = taut.lowbit_linear_quantize(
            x, weight, bias, activation=activation, epilogue="gelu", **options
        )
        assert last_variant("lowbit_linear_quantize").startswith(isa)
        x_bits = 8 if activation == "int8" else 0
        want = reference.lowbit_linear_quantize(
            *operands(weight, x, bias=bias, x_bits=x_bits), "gelu", **options
        )
        assert q.shape == want[0].shape and scale.shape == want[1].shape
        # gelu is as accurate as bf16 needs: codes beside a half may round to the other side.
        # In its tail 1 + erf of the reference has few digits left, and a group may lie there whole.
        torch.testing.assert_close(scale, want[1], rtol=1e-3, atol=1e-8)
        size = out_group_size or 200
        shown = want[1].gt(1e-6).repeat_interleave(size, 1)[:, :200]
        difference = (q.int() - want[0].int())[shown].abs()
        assert difference.max() <= 1 and difference.float().mean() < 0.02


def test_linear_quantize_is_exact_without_rounding(isa):
    weight = weight_of(200, 130, 4, powers=True)
    x, x_scale = codes_of(40, 130), torch.ones(40, 1)
    for out_bits, out_group_size in ((8, 0), (4, 64), (8, 256)):
        got = taut.lowbit_linear_quantize(
            x, weight, x_scale=x_scale, epilogue="relu", out_bits=out_bits,
            out_group_size=out_group_size,
        )  # fmt: skip
        want = reference.lowbit_linear_quantize(
            *operands(weight, x, x_scale), "relu", out_bits, out_group_size
        )
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", (1, 40, 130))
def test_linear_layer_norm(isa, dtype, rows):
    weight = weight_of(200, 130, 8, 64, "half")
    x, x_scale = codes_of(rows, 130), torch.rand(rows, 1) / 20000
    bias, residual = torch.randn(200), torch.randn(rows, 200).to(dtype)
    affine = torch.randn(2, 200).to(dtype)
    out, q, scale = taut.lowbit_linear_layer_norm(
        x, weight, bias, residual, *affine, x_scale=x_scale, quantize=True
    )
    assert last_variant("lowbit_linear_layer_norm") == integer_variant(isa, rows)
    total = exact_total(weight, x, bias, x_scale)
    exact = functional.layer_norm(total + residual.double(), (200,), *affine.double(), 1e-5)
    plain = functional.layer_norm(total.to(dtype) + residual, (200,), *affine, 1e-5)
    assert_close_by_comparison(out, plain, exact)
    want_q, want_scale = quantize_reference.quantize_rows(exact.float(), 8)
    torch.testing.assert_close(scale[:, 0], want_scale, rtol=1e-5, atol=0)
    assert (q.int() - want_q.int()).abs().max() <= 1
    assert (q != want_q).float().mean() < 0.01
    alone, *empty = taut.lowbit_linear_layer_norm(
        x, weight, bias, residual, *affine, x_scale=x_scale
    )
    assert torch.equal(alone, out) and all(t.shape == (0, 0) for t in empty)


def test_optional_arguments(isa):
    weight = weight_of(70, 130, 4)
    x, residual = torch.randn(9, 130), torch.randn(9, 70)
    zeros, ones = torch.zeros(70), torch.ones(70)
    got = taut.lowbit_linear_layer_norm(x, weight, None, residual)
    want = taut.lowbit_linear_layer_norm(x, weight, zeros, residual, ones, zeros)
    assert torch.equal(got[0], want[0])
    explicit = LowbitWeight(weight.codes, weight.scale, torch.full((70, 1), 8.0), None, 4, 130)
    assert torch.equal(taut.lowbit_linear(x, explicit), taut.lowbit_linear(x, weight))
