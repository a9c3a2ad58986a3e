"""Linear layers over low-bit weights against their reference, on every instruction set."""

import itertools
import random

import pytest
import torch
from torch.nn import functional

import taut
from helpers import assert_close_by_comparison, misaligned, strided_rows
from taut._native import last_variant, libraries
from taut.formats import BITS, GROUP_SIZES, LowbitWeight, dequantize_codes, pack_codes
from taut.reference import lowbit_gemm as reference
from taut.reference import quantize as quantize_reference
from taut.reference.dense_gemm import ACTIVATIONS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
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


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of threads, and puts it back; one, where nothing else is asked for: most
    shapes here are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def weight_of(
    out_features, in_features, bits, group_size=0, zero_point=None, codebook=None, powers=False
):
    """A random weight; zero_point: None, "whole" or "half"; codebook: None, "shared" or "own"."""
    codes = torch.randint(2**bits, (out_features, in_features), dtype=torch.uint8)
    groups = -(-in_features // group_size) if group_size else 1
    shape = (out_features, groups)
    scale = 2.0 ** torch.randint(-3, 3, shape) if powers else 0.5 + torch.rand(shape)
    if zero_point is not None:
        zero_point = torch.randint(2**bits, shape) + (0.5 if zero_point == "half" else 0.0)
    if codebook is not None:
        codebook = torch.randn((2**bits,) if codebook == "shared" else (out_features, 2**bits))
    packed = pack_codes(codes, bits)
    return LowbitWeight(packed, scale, zero_point, codebook, bits, in_features, group_size)


def codes_of(rows, in_features, bits=8):
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, in_features), dtype=torch.int8)


def operands(weight, x, x_scale=None, bias=None, x_bits=8):
    return (
        x, x_scale, weight.packed, weight.scale, weight.zero_point, weight.codebook, bias,
        weight.out_features, weight.bits, weight.group_size, x_bits,
    )  # fmt: skip


def integer_variant(isa, rows):
    """Blocks of rows are as equal as they come, so the last may be too low for tiles."""
    if isa == "amx" and rows >= 17:
        return f"{isa}/tiles"
    return f"{isa}/vnni" if isa.startswith(("avx512_bf16", "amx")) else isa


def check_integers(rows, weight, x_zero_point=0.0, x_groups=1, bias=None, x=None):
    """Bit-equality: scales are powers of two, so that every fp32 operation is exact."""
    x = codes_of(rows, weight.in_features) if x is None else x
    x_scale = 2.0 ** torch.randint(-2, 3, (rows, x_groups))
    options = {"x_zero_point": x_zero_point, "out_dtype": torch.float32}
    got = taut.lowbit_linear(x, weight, bias, x_scale=x_scale, **options)
    want = reference.lowbit_linear(*operands(weight, x, x_scale, bias), **options)
    assert torch.equal(got, want)


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


# ---- rows


def every_op(x, weight, bias, residual, **options):
    linear = taut.lowbit_linear(x, weight, bias, epilogue="gelu", **options)
    quantized = taut.lowbit_linear_quantize(x, weight, bias, **options)
    normed = taut.lowbit_linear_layer_norm(x, weight, bias, residual, quantize=True, **options)
    return (linear, *quantized, *normed)


@pytest.mark.parametrize("activation", ("int8", "none"))
@pytest.mark.parametrize("change", (misaligned, strided_rows))
def test_layouts(isa, activation, change):
    for dtype in FLOATS:
        weight = weight_of(70, 100, 4, 32)
        x, bias, residual = (torch.randn(*s).to(dtype) for s in ((37, 100), (70,), (37, 70)))
        want = every_op(x, weight, bias, residual, activation=activation)
        weight._packed = misaligned(weight.packed)
        got = every_op(change(x), weight, misaligned(bias), change(residual), activation=activation)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    q, x_scale = codes_of(37, 100), torch.rand(37, 4)
    want = taut.lowbit_linear(q, weight, x_scale=x_scale, out_dtype=torch.float32)
    got = taut.lowbit_linear(change(q), weight, x_scale=change(x_scale), out_dtype=torch.float32)
    assert torch.equal(got, want)


@pytest.mark.parametrize("rows", (1, 5, 37, 300))
def test_integers_are_read_from_any_rows(isa, rows):
    """Whole blocks of input features are read in place."""
    weight, x_scale = weight_of(70, 128, 8), torch.rand(rows, 1)
    codes = codes_of(rows, 128)
    options = {"x_scale": x_scale, "out_dtype": torch.float32}
    want = reference.lowbit_linear(*operands(weight, codes, x_scale), out_dtype=torch.float32)
    for extra in (0, 5, 64, 4096 - 128):
        moved = strided_rows(codes, extra)
        before = moved.clone()
        assert torch.equal(taut.lowbit_linear(moved, weight, **options), want)
        assert torch.equal(moved, before)
    assert torch.equal(taut.lowbit_linear(misaligned(codes), weight, **options), want)
    same = codes[:1].expand(rows, 128)
    got = taut.lowbit_linear(same, weight, **options)
    assert torch.equal(got, taut.lowbit_linear(same.contiguous(), weight, **options))


def test_zero_points_that_are_no_numbers_show(isa):
    weight = weight_of(70, 100, 4, 32, "whole")
    weight.zero_point[3, 1] = float("nan")
    out = taut.lowbit_linear(torch.randn(9, 100), weight)
    assert out[:, 3].isnan().all() and out.isfinite().sum() == 9 * 69


@pytest.mark.parametrize("activation", ("int8", "none"))
def test_nothing_leaks_between_rows(isa, activation):
    weight = weight_of(70, 100, 4, 32)
    x, residual = torch.randn(45, 100), torch.randn(45, 70)
    poisoned = x.clone()
    poisoned[::3, 7] = float("nan")
    clean = torch.ones(45, dtype=torch.bool)
    clean[::3] = False
    want = every_op(x, weight, None, residual, activation=activation)
    got = every_op(poisoned, weight, None, residual, activation=activation)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g[clean], w[clean])
        if g.dtype.is_floating_point:
            assert g[~clean].isnan().all()
        else:
            assert (g[~clean] == 0).all()


@pytest.mark.parametrize("activation", ("int8", "none"))
def test_every_element_is_written(isa, activation):
    """The output takes memory that held NaN a moment ago."""
    weight = weight_of(70, 100, 4, 32)
    x, residual = torch.randn(33, 100), torch.randn(33, 70)
    for _ in range(3):
        poison = [torch.full((33, 70), float("nan")) for _ in range(6)]
        del poison
        for t in every_op(x, weight, None, residual, activation=activation):
            assert t.isfinite().all()


@pytest.mark.parametrize("in_features, group_size", ((77, 32), (77, 0), (128, 64), (128, 0)))
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("activation", ("int8", "none", "given"))
def test_batch_invariance(isa, activation, bits, in_features, group_size, threads):
    """A row's result does not depend on its place, the other rows, or the number of threads."""
    rows = 500 if isa.startswith("avx512") else 130
    weight = weight_of(130, in_features, bits, group_size)
    x, bias, residual = torch.randn(rows, in_features), torch.randn(130), torch.randn(rows, 130)
    q, x_scale = codes_of(rows, in_features), torch.rand(rows, 1)

    def run(begin, end):
        part = slice(begin, end)
        if activation == "given":
            options = {"x_scale": x_scale[part], "out_dtype": torch.float32}
            normed = taut.lowbit_linear_layer_norm(
                q[part], weight, bias, residual[part], x_scale=x_scale[part], quantize=True
            )
            return (taut.lowbit_linear(q[part], weight, bias, **options), *normed)
        return every_op(x[part], weight, bias, residual[part], activation=activation)

    threads(1)
    whole = run(0, rows)
    for count in (1, 2, 3):
        threads(count)
        for begin, end in ((0, rows), (0, 1), (5, 6), (1, 8), (3, 34), (17, 130), (96, 128)):
            for got, want in zip(run(begin, end), whole, strict=True):
                assert torch.equal(got, want[begin:end]), (count, begin, end)


def test_instruction_sets_agree_on_integers():
    weight = weight_of(130, 300, 3, 64, "half", powers=True)
    x, x_scale = codes_of(40, 300), torch.ones(40, 1)
    before, results = libraries.module.active_isa(), []
    for isa in libraries.module.available_isas():
        libraries.module.set_active_isa(isa)
        results.append(taut.lowbit_linear(x, weight, x_scale=x_scale, out_dtype=torch.float32))
    libraries.module.set_active_isa(before)
    assert all(torch.equal(r, results[0]) for r in results)


# ---- as operators


def operators():
    weight = weight_of(70, 100, 4, 32, "half")
    nf4 = weight_of(70, 100, 4, 0, None, "shared")
    q, x_scale, x = codes_of(9, 100), torch.rand(9, 1), torch.randn(9, 100).bfloat16()
    bias, residual = torch.randn(70), torch.randn(9, 70)
    ops = torch.ops.taut
    return (
        (ops.pack_lowbit, (weight.codes, 4, 100)),
        (ops.unpack_lowbit, (weight.packed, 4, 70, 100)),
        (ops.lowbit_linear, (*operands(weight, q, x_scale, bias), "gelu", residual, -0.5,
                             torch.float32)),
        (ops.lowbit_linear, operands(weight, x)),
        (ops.lowbit_linear, operands(nf4, x, x_bits=0)),
        (ops.lowbit_linear_quantize, (*operands(weight, x), "gelu", 8, 32)),
        (ops.lowbit_linear_layer_norm,
         (*operands(weight, x), residual, bias, None, 1e-5, True)),
        (ops.lowbit_linear_layer_norm, (*operands(weight, x), residual, None, bias, 1e-5)),
    )  # fmt: skip


@pytest.mark.parametrize("index", range(8))
def test_opcheck(index):
    op, args = operators()[index]
    torch.library.opcheck(op.default, args)


def test_compile():
    weight = weight_of(70, 100, 4, 32)
    x, bias, residual = torch.randn(9, 100), torch.randn(70), torch.randn(9, 70)
    assert weight.packed is not None

    def layer(x, residual):
        return every_op(x, weight, bias, residual)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x, residual), layer(x, residual), strict=True):
        assert torch.equal(got, want)


def test_refuses_bad_arguments():
    weight = weight_of(70, 100, 4, 32)
    nf4 = weight_of(70, 100, 4, 0, None, "shared")
    x, q, x_scale = torch.randn(3, 100), codes_of(3, 100), torch.rand(3, 1)
    residual = torch.randn(3, 70)
    raw = torch.ops.taut.lowbit_linear
    good = operands(weight, x)

    def changed(**changes):
        names = ("x", "x_scale", "packed", "scale", "zero_point", "codebook", "bias",
                 "out_features", "bits", "group_size", "x_bits")  # fmt: skip
        return raw(*(changes.get(n, g) for n, g in zip(names, good, strict=True)))

    for error, message, bad in (
        (ValueError, r"pack_lowbit: bits must be .*2, 3, 4, 8.* got 5",
         lambda: taut.pack_lowbit(weight.codes, 5, 100)),
        (ValueError, r"pack_lowbit: codes must be \(out_features, 25\).* got \(70, 50\)",
         lambda: taut.pack_lowbit(weight.codes, 2, 100)),
        (ValueError, r"unpack_lowbit: packed must be \(1, 2, 8, 64, 4\).* got \(2, 2, 8, 64, 4\)",
         lambda: taut.unpack_lowbit(weight.packed, 4, 64, 100)),
        (TypeError, r"lowbit_linear: weight must be a LowbitWeight, got Tensor",
         lambda: taut.lowbit_linear(x, weight.packed)),
        (ValueError, r"lowbit_linear: packed must be \(2, 1, 8, 64, 4\).* got \(2, 2, 8, 64, 4\)",
         lambda: taut.lowbit_linear(x[:, :50], weight)),
        (ValueError, r"lowbit_linear: x_scale must be given with x of int8, got None",
         lambda: taut.lowbit_linear(q, weight, out_dtype=torch.float32)),
        (ValueError, r"lowbit_linear: x_scale must be None unless x is int8",
         lambda: taut.lowbit_linear(x, weight, x_scale=x_scale)),
        (ValueError, r"lowbit_linear: x_scale must have 1 or 4 columns, got 2",
         lambda: taut.lowbit_linear(q, weight, x_scale=torch.rand(3, 2),
                                    out_dtype=torch.float32)),
        (ValueError, r"lowbit_linear: out_dtype must be float32.* got None",
         lambda: taut.lowbit_linear(q, weight, x_scale=x_scale)),
        (ValueError, r"lowbit_linear: x_bits must be 0 with a codebook, got 8",
         lambda: taut.lowbit_linear(x, nf4)),
        (ValueError, r"lowbit_linear: epilogue must be one of none, .* got 'elu'",
         lambda: taut.lowbit_linear(x, weight, epilogue="elu")),
        (ValueError, r"lowbit_linear: bias must be \(70,\), got \(3,\)",
         lambda: taut.lowbit_linear(x, weight, torch.zeros(3))),
        (ValueError, r"lowbit_linear_quantize: out_bits must be .*4, 8.* got 3",
         lambda: taut.lowbit_linear_quantize(x, weight, out_bits=3)),
        (ValueError, r"lowbit_linear_layer_norm: residual must be \(3, 70\), got \(2, 70\)",
         lambda: taut.lowbit_linear_layer_norm(x, weight, None, residual[:2])),
        (RuntimeError, r"lowbit_linear: packed must be pack_lowbit of a \(70, 50\) weight of 4",
         lambda: changed(x=x[:, :50])),
        (RuntimeError, r"lowbit_linear: scale must have shape \(70, 4\), got \(70, 1\)",
         lambda: changed(scale=weight.scale[:, :1])),
        (RuntimeError, r"lowbit_linear: zero_point must have shape \(70, 4\), got \(70, 1\)",
         lambda: changed(zero_point=weight.scale[:, :1])),
        (RuntimeError, r"lowbit_linear: group_size must be one of 0, 32, 64, 128, 256, got 33",
         lambda: changed(group_size=33)),
        (RuntimeError, r"lowbit_linear: x_bits must be one of 0, 4, 8, got 5",
         lambda: changed(x_bits=5)),
        (RuntimeError, r"lowbit_linear: x must have contiguous rows",
         lambda: changed(x=x.T.contiguous().T)),
        (RuntimeError, r"lowbit_linear: x must be float32, bfloat16, float16, got float64",
         lambda: changed(x=x.double())),
        (RuntimeError, r"lowbit_linear: codebook must be \(16,\) or \(70, 16\)",
         lambda: changed(codebook=torch.zeros(8), x_bits=0)),
        (RuntimeError, r"lowbit_linear: in_features must be at most 65536 for integer products",
         lambda: raw(torch.zeros(1, 65537), None, torch.zeros((1, 1025, 4, 64, 4)).byte(),
                     torch.ones(1, 1), None, None, None, 1, 2, 0, 8)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            bad()


def test_long_rows_of_floating_point_have_no_limit(isa):
    weight = weight_of(1, 65540, 2)
    x = torch.zeros(1, 65540)
    x[0, -1] = 1
    out = taut.lowbit_linear(x, weight, activation="none")
    assert out.item() == weight.dequantize()[0, -1].item()


def test_a_second_affine_for_what_is_quantized(isa):
    codes = pack_codes(torch.randint(256, (70, 96), dtype=torch.uint8), 8)
    weight = LowbitWeight(codes, torch.rand(70, 1), None, None, 8, 96)
    x, residual = torch.randn(19, 96), torch.randn(19, 70)
    vectors = torch.randn(5, 70).unbind()
    bias, norm_weight, norm_bias, quant_weight, quant_bias = vectors

    def run(*norm, **options):
        return taut.lowbit_linear_layer_norm(x, weight, bias, residual, *norm, **options)

    out, q, scale = run(
        norm_weight, norm_bias, quantize=True, quant_weight=quant_weight, quant_bias=quant_bias
    )
    assert torch.equal(out, run(norm_weight, norm_bias)[0])
    want, want_q, want_scale = run(quant_weight, quant_bias, quantize=True)
    assert torch.equal(q, want_q) and torch.equal(scale, want_scale)
    torch.testing.assert_close(q * scale, want, rtol=0, atol=0.51 * scale.max().item())
