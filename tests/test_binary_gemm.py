"""Packed signs and 1-bit linears: every instruction set against the reference, to the bit."""

import pytest
import torch

import taut
from binary_cases import random_bits, random_weight, some_zeros
from helpers import assert_close_by_comparison, misaligned, on_one_thread, strided_rows
from taut._native import last_variant
from taut.reference import binary_gemm as reference

NAN = float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# in_features, out_features: words and panels that are full, partial and single.
SHAPES = ((1, 1), (64, 64), (65, 70), (300, 130), (768, 64), (4500, 3))


def exact_sums(x, packed, out_features, in_features):
    return reference._sums(x, packed, out_features, in_features).float()


# ---- packing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (0, 1, 63, 64, 65, 130, 257))
def test_pack_and_unpack(isa, columns, dtype):
    x = some_zeros(7, columns).to(dtype)
    threshold = torch.randn(columns)
    threshold[::3] = x.float()[0, ::3]  # ties that are not at 0
    for rails in (1, 2):
        for tie in ("strict", "geq"):
            for limit in (None, threshold):
                bits = taut.pack_bits(x, limit, rails=rails, tie=tie)
                assert last_variant("pack_bits") == isa
                assert torch.equal(bits, reference.pack_bits(x, limit, rails, tie))
                for view in (strided_rows(x), misaligned(x)):
                    assert torch.equal(bits, taut.pack_bits(view, limit, rails=rails, tie=tie))
            signs = taut.unpack_bits(bits, columns)
            assert last_variant("unpack_bits") == isa
            assert torch.equal(signs, reference.unpack_bits(bits, columns))


def test_bit_order_and_ties():
    x = torch.zeros(1, 70)
    x[0, 0], x[0, 63], x[0, 65], x[0, 5] = 1.0, 2.0, 3.0, -1.0
    assert taut.pack_bits(x).tolist() == [[1 - 2**63, 2]]
    assert taut.pack_bits(x, rails=2).tolist() == [[[1 - 2**63, 2], [32, 0]]]
    assert taut.pack_bits(x, tie="geq").tolist() == [[-1 - 32, 63]]
    assert torch.equal(taut.unpack_bits(taut.pack_bits(x, rails=2), 70), x.sign().to(torch.int8))


def test_special_values(isa):
    x = torch.tensor([[NAN, float("inf"), -float("inf"), -0.0, 1e-45, -1e-45]])
    assert taut.unpack_bits(taut.pack_bits(x), 6).tolist() == [[-1, 1, -1, -1, 1, -1]]
    assert taut.unpack_bits(taut.pack_bits(x, tie="geq"), 6).tolist() == [[-1, 1, -1, 1, 1, -1]]
    assert taut.unpack_bits(taut.pack_bits(x, rails=2), 6).tolist() == [[0, 1, -1, 0, 1, -1]]
    threshold = torch.tensor([0.0, NAN, NAN, 0, float("inf"), -float("inf")])
    for tie in ("strict", "geq"):
        want = reference.pack_bits(x, threshold, 2, tie)
        assert torch.equal(taut.pack_bits(x, threshold, rails=2, tie=tie), want)


def test_weight_round_trip():
    bits = random_bits(130, 70)
    packed = taut.pack_binary_weight(bits)
    assert packed.shape == (3, 2, 64) and packed.is_contiguous()
    assert packed[1, 1, 3] == bits[67, 1]
    assert torch.equal(taut.unpack_binary_weight(packed, 130), bits)


# ---- linear layers


@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(isa, shape, rails):
    in_features, out_features = shape
    packed = random_weight(out_features, in_features)
    for rows in (0, 1, 3, 4, 9, 131):
        variant = f"{isa}/tiles" if isa == "amx" and rows == 131 else isa
        x = random_bits(rows, in_features, rails)
        want = exact_sums(x, packed, out_features, in_features)
        out = taut.binary_linear(x, packed, torch.ones(out_features), in_features=in_features)
        assert last_variant("binary_linear") == variant
        assert torch.equal(out, want)
        for shape in ((out_features,), (3, out_features)):
            thresholds = torch.randint(-9, 10, shape, dtype=torch.int32)
            bits = taut.binary_linear_bits(x, packed, thresholds, in_features=in_features)
            assert last_variant("binary_linear_bits") == variant
            assert torch.equal(bits, reference.compare(want.double(), thresholds))


def test_zero_on_both_rails_is_zero_and_stray_bits_are_ignored(isa):
    packed = random_weight(70, 100)
    x = random_bits(5, 100, 2)
    stray = x.clone()
    stray[..., 1] |= -1 << 36  # behind column 100
    stray[:, :, 0] |= 2  # +1 and -1 at once
    want = exact_sums(stray, packed, 70, 100)
    assert torch.equal(taut.binary_linear(stray, packed, torch.ones(70), in_features=100), want)
    x[:, :, 0] &= ~2
    assert torch.equal(want, exact_sums(x, packed, 70, 100))


def test_the_most_features(isa):
    """Counts of 2^16: one more than 16 bits hold."""
    features = 65536
    x = taut.pack_bits(torch.ones(2, features))
    packed = taut.pack_binary_weight(torch.stack((x[0], ~x[0])))
    ones = torch.ones(2)
    out = taut.binary_linear(x, packed, ones, in_features=features)
    assert out.tolist() == [[features, -features]] * 2
    for rows in (1, 20):
        codes = torch.full((rows, features), -128, dtype=torch.int8)
        x_scale = torch.ones(rows, 1)
        out = taut.binary_linear(codes, packed, ones, in_features=features, x_scale=x_scale)
        assert out.tolist() == [[-128 * features, 128 * features]] * rows


def test_thresholds_at_the_ends(isa):
    packed, x = random_weight(70, 64), random_bits(9, 64)
    sums = exact_sums(x, packed, 70, 64).int()
    lowest, highest = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
    for value in (lowest, -65, -64, 64, highest):
        t = torch.full((70,), value, dtype=torch.int32)
        bits = taut.binary_linear_bits(x, packed, t, in_features=64)
        assert torch.equal(bits, reference.pack_flags(sums > value))
    t = torch.stack((sums[0], sums[0] - 1, sums[0] + 1))  # the first row: 0 everywhere, then -1
    bits = taut.binary_linear_bits(x, packed, t, in_features=64)
    assert (bits[0, 0] == 0).all()
    assert torch.equal(taut.unpack_bits(bits[:1], 70), torch.full((1, 70), -1, dtype=torch.int8))
    everything = torch.tensor([[0], [lowest], [0]], dtype=torch.int32).expand(3, 70).contiguous()
    bits = taut.binary_linear_bits(x, packed, everything, in_features=64)
    assert torch.equal(taut.unpack_bits(bits, 70), sums.sign().to(torch.int8))


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("shape", SHAPES)
def test_codes(isa, shape, bits):
    in_features, out_features = shape
    packed, ones = random_weight(out_features, in_features), torch.ones(out_features)
    for rows in (0, 1, 5, 20):
        q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, in_features)).to(torch.int8)
        q[rows // 2 :] //= 2  # rows that need fewer bits
        q[-1:] = torch.randint(-128, 128, (in_features,))  # and one that needs more
        x_scale = torch.ones(rows, 1)
        want = exact_sums(q, packed, out_features, in_features)
        for x in (q, strided_rows(q)):
            out = taut.binary_linear(x, packed, ones, in_features=in_features, x_scale=x_scale)
            assert torch.equal(out, want)


def test_codes_by_bytes_or_by_counts(isa):
    """Which way codes go depends on how many bits and rows there are; the sums do not."""
    packed, ones = random_weight(70, 130), torch.ones(70)
    amx = isa == "amx"
    for rows, bits, way in (
        (1, 2, ""),
        (200, 2, "/tiles" if amx else ""),
        (200, 8, "/tiles" if amx else "/bytes"),
        (16, 8, "/bytes"),
        (1, 8, "" if isa == "avx512_bf16" or amx else "/bytes"),
    ):
        q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, 130)).to(torch.int8)
        q[:, 0] = -(2 ** (bits - 1))
        x_scale = torch.ones(rows, 1)
        out = taut.binary_linear(q, packed, ones, in_features=130, x_scale=x_scale)
        assert last_variant("binary_linear") == isa + way
        assert torch.equal(out, exact_sums(q, packed, 70, 130))


@pytest.mark.parametrize("codes", (False, True))
@pytest.mark.parametrize("epilogue", ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_epilogue(isa, dtype, epilogue, codes):
    packed, (scale, bias) = random_weight(130, 300), torch.randn(2, 130) / 10
    x = random_bits(21, 300)
    x_scale = None
    if codes:
        x, x_scale = torch.randint(-8, 8, (21, 300)).to(torch.int8), torch.rand(21, 1)
    residual = torch.randn(21, 130).to(dtype)
    out = taut.binary_linear(
        x, packed, scale, bias, in_features=300, x_scale=x_scale, epilogue=epilogue,
        residual=strided_rows(residual), out_dtype=dtype,
    )  # fmt: skip
    args = packed, scale.double(), bias.double(), 130, 300, epilogue, residual
    exact = reference.binary_linear(x, x_scale, *args, torch.float64)
    plain = reference.binary_linear(x, x_scale, packed, scale, bias, *args[3:], dtype)
    assert_close_by_comparison(out, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(isa, dtype):
    packed, (scale, bias, threshold) = random_weight(130, 300), torch.randn(3, 130) / 10
    weight, norm_bias = torch.randn(2, 130).to(dtype)
    residual = torch.randn(140, 130).to(dtype)
    x = random_bits(140, 300)
    for affine in ((weight, norm_bias), (None, None)):
        args = packed, scale, bias, 300, residual, *affine, 1e-5, threshold
        out, bits = on_one_thread(
            taut.binary_linear_layer_norm,
            x, packed, scale, bias, residual, *affine, in_features=300, bit_threshold=threshold,
        )  # fmt: skip
        tiles = isa == "amx"
        assert last_variant("binary_linear_layer_norm") == (f"{isa}/tiles" if tiles else isa)
        plain, _ = reference.binary_linear_layer_norm(x, None, *args)
        wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
        wide[0], wide[4] = packed, residual
        total = exact_sums(x, packed, 130, 300).double() * wide[1] + wide[2] + residual
        exact = torch.nn.functional.layer_norm(total, (130,), *wide[5:7], 1e-5)
        assert_close_by_comparison(out, plain, exact)
        clear = (exact - threshold).abs() > 1e-4
        assert clear.double().mean() > 0.99
        signs = taut.unpack_bits(bits, 130) > 0
        assert torch.equal(signs[clear], (exact > threshold)[clear])
        if dtype == torch.float32:
            assert torch.equal(bits, taut.pack_bits(out, threshold))


def test_layer_norm_of_codes(isa):
    packed, scale, residual = random_weight(70, 100), torch.rand(70), torch.randn(9, 70)
    q, x_scale = torch.randint(-8, 8, (9, 100)).to(torch.int8), torch.rand(9, 1)
    out, bits = taut.binary_linear_layer_norm(
        q, packed, scale, None, residual, in_features=100, x_scale=x_scale
    )
    want = taut.binary_linear(q, packed, scale, in_features=100, x_scale=x_scale, residual=residual)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(want, (70,)))
    assert torch.equal(bits, taut.pack_bits(out))


def test_batch_invariance(isa):
    """A row's results do not depend on other rows or on the number of threads."""
    packed, scale = random_weight(200, 768), torch.rand(200)
    x, residual = random_bits(150, 768, 2), torch.randn(150, 200)
    q, x_scale = torch.randint(-128, 128, (150, 768)).to(torch.int8), torch.rand(150, 1)
    thresholds = torch.randint(-9, 10, (3, 200), dtype=torch.int32)

    def run(rows):
        return (
            taut.binary_linear(x[rows], packed, scale, in_features=768, epilogue="gelu"),
            taut.binary_linear(q[rows], packed, scale, in_features=768, x_scale=x_scale[rows]),
            taut.binary_linear_bits(x[rows], packed, thresholds, in_features=768),
            *taut.binary_linear_layer_norm(
                x[rows], packed, scale, None, residual[rows], in_features=768
            ),
        )

    together = run(slice(None))
    for a, b in zip(together, on_one_thread(run, slice(None)), strict=True):
        assert torch.equal(a, b)
    for rows in (slice(0, 1), slice(77, 78), slice(60, 130)):
        for a, b in zip(together, run(rows), strict=True):
            assert torch.equal(a[rows], b)


def test_nan_stays_in_its_row(isa):
    packed, scale, x = random_weight(70, 64), torch.rand(70), random_bits(9, 64)
    residual = torch.randn(9, 70)
    residual[4] = NAN
    out, bits = taut.binary_linear_layer_norm(x, packed, scale, None, residual, in_features=64)
    assert out[4].isnan().all() and (bits[4] == 0).all()
    assert out[torch.arange(9) != 4].isfinite().all()


# ---- laws of every op


def op_calls():
    packed, scale, residual = random_weight(70, 100), torch.rand(70), torch.randn(5, 70)
    bits, q = random_bits(5, 100), torch.randint(-8, 8, (5, 100)).to(torch.int8)
    thresholds = torch.zeros(3, 70, dtype=torch.int32)
    return {
        "pack_bits": (torch.randn(5, 100), torch.randn(100), 2, "geq"),
        "unpack_bits": (bits, 100),
        "binary_linear": (
            q, torch.rand(5, 1), packed, scale, None, 70, 100, "gelu", residual.bfloat16(),
            torch.bfloat16,
        ),
        "binary_linear_bits": (bits, packed, thresholds, 70, 100),
        "binary_linear_layer_norm": (
            bits, None, packed, scale, scale, 100, residual, None, None, 1e-5, None,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(op_calls()))
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.taut, name), op_calls()[name])


def test_compile():
    packed, scale, x = random_weight(70, 100), torch.rand(70), torch.randn(5, 100)
    thresholds = torch.zeros(70, dtype=torch.int32)

    def layer(x):
        bits = taut.pack_bits(x)
        hidden = taut.binary_linear_bits(bits, packed, thresholds, in_features=100)
        back = taut.unpack_bits(hidden, 70).float()
        return taut.binary_linear(bits, packed, scale, in_features=100, residual=back)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_errors():
    packed, scale, x = random_weight(70, 100), torch.rand(70), random_bits(5, 100)
    thresholds = torch.zeros(70, dtype=torch.int32)
    q = torch.zeros(5, 100, dtype=torch.int8)
    linear = taut.binary_linear
    for error, call, message in (
        (ValueError, lambda: taut.pack_bits(torch.zeros(3)),
         r"pack_bits: x must be \(rows, columns\), got \(3,\)"),
        (ValueError, lambda: taut.pack_bits(torch.zeros(3, 4), rails=3),
         "pack_bits: rails must be one of 1, 2, got 3"),
        (ValueError, lambda: taut.pack_bits(torch.zeros(3, 4), tie="even"),
         "pack_bits: tie must be one of strict, geq, got 'even'"),
        (ValueError, lambda: taut.pack_bits(torch.zeros(3, 4).double()),
         "pack_bits: x must be float32, bfloat16, float16, got float64"),
        (ValueError, lambda: taut.unpack_bits(x, 200),
         r"unpack_bits: bits must be \(rows, 4\) or .*, bits of 200 columns, got \(5, 2\)"),
        (TypeError, lambda: taut.pack_binary_weight(None),
         "pack_binary_weight: bits must be a torch.Tensor, got NoneType"),
        (TypeError, lambda: linear(x, None, scale, in_features=100),
         "binary_linear: packed must be a torch.Tensor"),
        (ValueError, lambda: linear(x.int(), packed, scale, in_features=100),
         "binary_linear: x must be int64, got int32"),
        (ValueError, lambda: linear(x, packed, scale, in_features=200),
         r"binary_linear: x must be \(rows, 4\)"),
        (ValueError, lambda: linear(x, packed[:1], scale, in_features=100),
         r"binary_linear: packed must be \(2, 2, 64\), pack_binary_weight of a \(70, 100\)"),
        (ValueError, lambda: linear(x, packed, scale, in_features=70000),
         "binary_linear: in_features must be at most 65536, got 70000"),
        (ValueError, lambda: linear(q, packed, scale, in_features=100),
         "binary_linear: x_scale must be given with x of int8, got None"),
        (ValueError, lambda: linear(x, packed, scale, in_features=100, x_scale=torch.ones(5, 1)),
         "binary_linear: x_scale must be None with x of bits"),
        (ValueError, lambda: linear(x, packed, scale, in_features=100, epilogue="elu"),
         "binary_linear: epilogue must be one of none, relu"),
        (ValueError, lambda: linear(x, packed, scale, in_features=100, out_dtype=torch.int8),
         "binary_linear: out_dtype must be float32, bfloat16 or float16, got torch.int8"),
        (ValueError,
         lambda: linear(x, packed, scale, in_features=100, residual=torch.zeros(5, 71)),
         r"binary_linear: residual must be \(5, 70\), got \(5, 71\)"),
        (ValueError, lambda: taut.binary_linear_bits(q, packed, thresholds, in_features=100),
         "binary_linear_bits: x must be int64 bits, got int8"),
        (ValueError,
         lambda: taut.binary_linear_bits(x, packed, thresholds.expand(2, 70), in_features=100),
         r"binary_linear_bits: thresholds must be \(70,\) or \(3, 70\), got \(2, 70\)"),
        (ValueError,
         lambda: taut.binary_linear_layer_norm(
             x, packed, scale, None, torch.zeros(4, 70), in_features=100),
         r"binary_linear_layer_norm: residual must be \(5, out_features\), got \(4, 70\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
