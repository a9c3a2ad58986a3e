"""Linear layers over low-bit weights: rows that do not depend on each other, in any layout, and what
is refused."""

import pytest
import torch

import taut
from helpers import assert_same_in_any_split, misaligned, strided_rows
from lowbit_weights import FLOATS, codes_of, operands, weight_of
from taut._native import libraries
from taut.formats import LowbitWeight, pack_codes
from taut.reference import lowbit_gemm as reference

# Most shapes here are too small to share.
pytestmark = pytest.mark.usefixtures("one_thread")


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
    for extra in (0, 5, 64, 1024 - 128, 4096 - 128):
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

    assert_same_in_any_split(run, rows, threads)


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
