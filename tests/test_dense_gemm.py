"""Packed linear layers against their reference, on every instruction set."""

import pytest
import torch
from torch.nn import functional

import taut
from helpers import assert_close_by_comparison, assert_same_in_any_split, misaligned, strided_rows
from taut._native import last_variant, libraries
from taut.reference import dense_gemm as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (rows, out_features, in_features): on and around the edges of tiles of 6 and 16 rows, panels of
# 64 channels, pairs of k, tiles of 32 k, and runs of 256 k.
SHAPES = (
    (0, 65, 33),
    (1, 1, 1),
    (1, 384, 384),
    (2, 63, 2),
    (5, 64, 31),
    (6, 65, 32),
    (130, 2, 33),
    (31, 384, 64),
    (33, 96, 100),
    (7, 65, 384),
    (130, 200, 65),
    (9, 70, 600),
)


def linear_inputs(rows, out_features, in_features, dtype):
    x = torch.randn(rows, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    return x, weight, torch.randn(out_features).to(dtype)


def norm_inputs(rows, out_features, dtype):
    residual = (2 * torch.randn(rows, out_features)).to(dtype)
    weight, norm_bias = torch.randn(2, out_features).to(dtype)
    return residual, weight, norm_bias


def exact_linear(x, weight, bias, activation):
    packed = reference.pack_weight(weight.double())
    return reference.packed_linear(x.double(), packed, bias.double(), len(weight), activation)


def exact_layer_norm(x, weight, bias, *norm, eps):
    packed = reference.pack_weight(weight.double())
    wide = [t.double() for t in (bias, *norm)]
    return reference.packed_linear_layer_norm(x.double(), packed, *wide, eps)


def plain_linear(x, weight, bias, activation="none"):
    return reference.ACTIVATIONS[activation](functional.linear(x, weight, bias))


def plain_layer_norm(x, weight, bias, residual, scale, shift, eps):
    total = functional.linear(x, weight, bias) + residual
    return functional.layer_norm(total, total.shape[1:], scale, shift, eps)


def variant_of(isa, dtype):
    tiles = dtype == torch.bfloat16 and isa == "amx"
    return f"{isa}/tiles" if tiles else isa


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features, in_features", ((1, 1), (63, 2), (64, 33), (200, 100)))
def test_pack_and_unpack(isa, dtype, out_features, in_features):
    weight = torch.randn(out_features, in_features).to(dtype)
    packed = taut.pack_weight(weight)
    assert packed.data_ptr() % 64 == 0
    assert torch.equal(packed, reference.pack_weight(weight))
    assert torch.equal(taut.unpack_weight(packed, out_features, in_features), weight)
    transposed = weight.T.contiguous().T
    for moved in (strided_rows(weight), strided_rows(weight, 6), misaligned(weight), transposed):
        assert torch.equal(taut.pack_weight(moved), packed)


@pytest.mark.parametrize(
    "dtype, integers", ((torch.float32, torch.int32), (torch.bfloat16, torch.int16))
)
def test_packing_keeps_every_bit(isa, dtype, integers):
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max, (70, 34), dtype=integers)
    packed, wanted = (pack(bits.view(dtype)) for pack in (taut.pack_weight, reference.pack_weight))
    assert torch.equal(packed.view(integers), wanted.view(integers))
    assert torch.equal(taut.unpack_weight(packed, 70, 34).view(integers), bits)


def test_packed_layout():
    """The documented place of one element, and zeros around it."""
    weight = torch.zeros(70, 5)
    weight[65, 3] = 1
    packed = taut.pack_weight(weight)
    assert packed.shape == (2, 5, 64) and packed[1, 3, 1] == 1 and packed.sum() == 1
    assert torch.equal(taut.pack_weight(weight.half()), packed.half())
    packed = taut.pack_weight(weight.bfloat16())
    assert packed.shape == (2, 3, 64, 2) and packed[1, 1, 1, 1] == 1 and packed.sum() == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_linear(isa, dtype, shape):
    x, weight, bias = linear_inputs(*shape, dtype)
    out = taut.packed_linear(x, taut.pack_weight(weight), bias, out_features=shape[1])
    assert last_variant("packed_linear") == variant_of(isa, dtype)
    assert_close_by_comparison(
        out, plain_linear(x, weight, bias), exact_linear(x, weight, bias, "none")
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(isa, dtype, activation):
    x, weight, bias = linear_inputs(19, 70, 40, dtype)
    x = 4 * x
    out = taut.packed_linear(
        x, taut.pack_weight(weight), bias, out_features=70, activation=activation
    )
    plain = plain_linear(x, weight, bias, activation)
    assert_close_by_comparison(out, plain, exact_linear(x, weight, bias, activation))


def test_gelu_of_bf16_is_right_to_its_last_place(isa):
    """Over all of its range: within half a unit before rounding, far below 0 as well."""
    inf = float("inf")
    x = torch.cat([torch.linspace(-9, 9, 3001), torch.tensor([-inf, -80.0, 1e-30, 80.0, inf])])
    x = x.bfloat16()[:, None]
    packed = taut.pack_weight(torch.ones(1, 1).bfloat16())
    out = taut.packed_linear(x, packed, out_features=1, activation="gelu").double()
    wide = x.double().nan_to_num(neginf=-100.0)
    exact = 0.5 * wide * torch.special.erfc(-wide / 2**0.5)
    wrong = (out - exact).abs() > exact.abs() * 2**-8 + 1e-10
    assert torch.equal(out.isinf(), x.isinf() & (x > 0)) and not wrong[out.isfinite()].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_linear_layer_norm(isa, dtype, shape):
    rows, out_features, _ = shape
    x, weight, bias = linear_inputs(*shape, dtype)
    norm = norm_inputs(rows, out_features, dtype)
    # The two channels of a row may be nearly equal: without eps, only rounding would be left.
    eps = 1e-5 if out_features > 2 else 0.1
    out = taut.packed_linear_layer_norm(x, taut.pack_weight(weight), bias, *norm, eps)
    assert last_variant("packed_linear_layer_norm") == variant_of(isa, dtype)
    plain = plain_layer_norm(x, weight, bias, *norm, eps)
    assert_close_by_comparison(out, plain, exact_layer_norm(x, weight, bias, *norm, eps=eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_optional_arguments(isa, dtype):
    x, weight, bias = linear_inputs(9, 70, 33, dtype)
    residual = norm_inputs(9, 70, dtype)[0]
    packed, zeros, ones = taut.pack_weight(weight), torch.zeros_like(bias), torch.ones_like(bias)
    got = taut.packed_linear(x, packed, out_features=70)
    assert torch.equal(got, taut.packed_linear(x, packed, zeros, out_features=70))
    got = taut.packed_linear_layer_norm(x, packed, None, residual)
    want = taut.packed_linear_layer_norm(x, packed, zeros, residual, ones, zeros)
    assert torch.equal(got, want)
    got = taut.packed_linear(x, packed, bias.float(), out_features=70)
    assert torch.equal(got, taut.packed_linear(x, packed, bias, out_features=70))
    got = taut.packed_linear_layer_norm(x, packed, bias.float(), residual)
    assert torch.equal(got, taut.packed_linear_layer_norm(x, packed, bias, residual))


def test_every_fp16_weight_is_read_right(isa):
    weight = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    packed = taut.pack_weight(weight[:, None])
    out = taut.packed_linear(torch.ones(1, 1).half(), packed, out_features=2**16)
    torch.testing.assert_close(out[0], weight, rtol=0, atol=0, equal_nan=True)


def test_sums_before_the_norm_are_not_rounded(isa):
    """A residual of 256 + d swallows d when the sum is rounded to bf16."""
    x = torch.eye(64).bfloat16()
    weight = torch.randn(64, 64).bfloat16() / 8
    residual = torch.full((64, 64), 256.0).bfloat16()
    out = taut.packed_linear_layer_norm(x, taut.pack_weight(weight), None, residual)
    want = functional.layer_norm(weight.T.double(), (64,))
    assert (out.double() - want).abs().max() < 0.03


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", (misaligned, strided_rows))
def test_layouts(isa, dtype, change):
    x, weight, bias = linear_inputs(37, 70, 35, dtype)
    residual, *affine = norm_inputs(37, 70, dtype)
    packed = taut.pack_weight(weight)
    moved = [misaligned(t) for t in (packed, bias)]
    want = taut.packed_linear(x, packed, bias, out_features=70)
    assert torch.equal(taut.packed_linear(change(x), *moved, out_features=70), want)
    want = taut.packed_linear_layer_norm(x, packed, bias, residual, *affine)
    got = taut.packed_linear_layer_norm(change(x), *moved, change(residual), *affine)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_leaks_between_rows(isa, dtype):
    x, weight, bias = linear_inputs(45, 70, 35, dtype)
    residual, *affine = norm_inputs(45, 70, dtype)
    packed = taut.pack_weight(weight)
    poisoned = x.clone()
    poisoned[::3] = float("nan")
    clean = torch.ones(45, dtype=torch.bool)
    clean[::3] = False
    want = taut.packed_linear(x, packed, bias, out_features=70)
    got = taut.packed_linear(poisoned, packed, bias, out_features=70)
    assert torch.equal(got[clean], want[clean]) and got[~clean].isnan().all()
    want = taut.packed_linear_layer_norm(x, packed, bias, residual, *affine)
    got = taut.packed_linear_layer_norm(poisoned, packed, bias, residual, *affine)
    assert torch.equal(got[clean], want[clean]) and got[~clean].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_written(isa, dtype):
    """The output takes memory that held NaN a moment ago."""
    x, weight, bias = linear_inputs(33, 70, 40, dtype)
    residual = norm_inputs(33, 70, dtype)[0]
    packed = taut.pack_weight(weight)
    for _ in range(4):
        poison = [torch.full((33, 70), float("nan"), dtype=dtype) for _ in range(4)]
        del poison
        assert taut.packed_linear(x, packed, bias, out_features=70).isfinite().all()
        assert taut.packed_linear_layer_norm(x, packed, bias, residual).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_invariance(isa, dtype, threads):
    """A row's result does not depend on its place, the other rows, or the number of threads."""
    rows = 300
    x, weight, bias = linear_inputs(rows, 130, 77, dtype)
    norm = norm_inputs(rows, 130, dtype)
    packed = taut.pack_weight(weight)

    def run(begin, end):
        part = x[begin:end]
        linear = taut.packed_linear(part, packed, bias, out_features=130, activation="gelu")
        residual = norm[0][begin:end]
        return linear, taut.packed_linear_layer_norm(part, packed, bias, residual, *norm[1:])

    assert_same_in_any_split(run, rows, threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [256, 601])
def test_few_and_many_rows_give_the_same_bits(isa, dtype, in_features):
    """Few rows read the packed weight as it lies, many a part of it laid out for all of them; sums
    over more than 256 of in_features have several such parts."""
    rows = 101
    x, weight, bias = linear_inputs(rows, 70, in_features, dtype)
    packed = taut.pack_weight(weight)

    def run(begin, end):
        return taut.packed_linear(x[begin:end], packed, bias, out_features=70)

    whole = run(0, rows)
    for begin, end in ((0, 1), (3, 5), (2, 5), (1, 5), (4, 9), (0, 96), (5, 102), (97, 101)):
        assert torch.equal(run(begin, end), whole[begin:end]), (begin, end)


def test_instruction_sets_of_equal_arithmetic_agree():
    """fp32 on AMX machines is the AVX-512 kernel, and gives its bits."""
    x, weight, bias = linear_inputs(20, 70, 50, torch.float32)
    packed, before, results = taut.pack_weight(weight), libraries.module.active_isa(), []
    for isa in libraries.module.available_isas():
        if isa.startswith(("avx512", "amx")):
            libraries.module.set_active_isa(isa)
            results.append(taut.packed_linear(x, packed, bias, out_features=70))
    libraries.module.set_active_isa(before)
    assert all(torch.equal(r, results[0]) for r in results)


def operators(dtype):
    x, weight, bias = linear_inputs(9, 70, 33, dtype)
    packed = taut.pack_weight(weight)
    ops = torch.ops.taut
    return (
        (ops.pack_weight, (weight,)),
        (ops.unpack_weight, (packed, 70, 33)),
        (ops.packed_linear, (x, packed, bias, 70, "gelu")),
        (ops.packed_linear_layer_norm, (x, packed, bias, *norm_inputs(9, 70, dtype), 1e-5)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(4))
def test_opcheck(dtype, index):
    op, args = operators(dtype)[index]
    torch.library.opcheck(op.default, args)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compile(dtype):
    x, weight, bias = linear_inputs(9, 70, 33, dtype)
    residual, *affine = norm_inputs(9, 70, dtype)

    def layer(x, residual):
        packed = taut.pack_weight(weight)
        hidden = taut.packed_linear(x, packed, bias, out_features=70, activation="gelu")
        normed = taut.packed_linear_layer_norm(x, packed, bias, residual, *affine)
        return hidden, normed, taut.unpack_weight(packed, 70, 33)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x, residual), layer(x, residual), strict=True):
        assert torch.equal(got, want)


def test_refuses_bad_arguments():
    x, weight, bias = linear_inputs(3, 70, 33, torch.bfloat16)
    residual = norm_inputs(3, 70, torch.bfloat16)[0]
    packed = taut.pack_weight(weight)
    for error, message, bad in (
        (ValueError, r"pack_weight: weight must be float32, bfloat16, float16, got float64",
         lambda: taut.pack_weight(weight.double())),
        (ValueError, r"pack_weight: weight must have at least one row and column, got \(0, 3\)",
         lambda: taut.pack_weight(torch.zeros(0, 3))),
        (ValueError, r"pack_weight: weight must be \(out_features, in_features\), got \(3,\)",
         lambda: taut.pack_weight(torch.zeros(3))),
        (ValueError, r"unpack_weight: packed must be \(1, 17, 64, 2\), .*got \(2, 17, 64, 2\)",
         lambda: taut.unpack_weight(packed, 64, 33)),
        (ValueError, r"unpack_weight: in_features must be at least 1, got 0",
         lambda: taut.unpack_weight(packed, 70, 0)),
        (ValueError, r"packed_linear: x must be float32, bfloat16, float16, got float64",
         lambda: taut.packed_linear(x.double(), packed, out_features=70)),
        (ValueError, r"packed_linear: packed must be bfloat16, got float32",
         lambda: taut.packed_linear(x, packed.float(), out_features=70)),
        (ValueError, r"packed_linear: packed must be \(2, 20, 64, 2\).*got \(2, 17, 64, 2\)",
         lambda: taut.packed_linear(torch.zeros(3, 40).bfloat16(), packed, out_features=70)),
        (ValueError, r"packed_linear: bias must be \(70,\), got \(3,\)",
         lambda: taut.packed_linear(x, packed, bias[:3], out_features=70)),
        (ValueError, r"packed_linear: activation must be one of none, .*got 'elu'",
         lambda: taut.packed_linear(x, packed, out_features=70, activation="elu")),
        (ValueError, r"packed_linear: x must have contiguous rows",
         lambda: taut.packed_linear(x.T.contiguous().T, packed, out_features=70)),
        (TypeError, r"packed_linear: packed must be a torch.Tensor, got NoneType",
         lambda: taut.packed_linear(x, None, out_features=70)),
        (ValueError, r"packed_linear_layer_norm: residual must be \(3, out_features\), got \(2, 70\)",
         lambda: taut.packed_linear_layer_norm(x, packed, bias, residual[:2])),
        (ValueError, r"packed_linear_layer_norm: weight must be bfloat16, got float32",
         lambda: taut.packed_linear_layer_norm(x, packed, bias, residual, bias.float())),
        (ValueError, r"packed_linear: x must be a tensor without gradient.*functional.linear",
         lambda: taut.packed_linear(x.clone().requires_grad_(), packed, out_features=70)),
        (RuntimeError, r"packed_linear: packed must be pack_weight of a \(70, 40\) weight",
         lambda: torch.ops.taut.packed_linear(
             torch.zeros(3, 40).bfloat16(), packed, None, 70, "none")),
        (RuntimeError, r"packed_linear: x must be float32, bfloat16, float16",
         lambda: torch.ops.taut.packed_linear(x.double(), packed, None, 70, "none")),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            bad()


def test_parameters_are_welcome_without_gradients():
    linear = torch.nn.Linear(33, 70)
    x = torch.randn(5, 33)
    with torch.no_grad():
        packed = taut.pack_weight(linear.weight)
        out = taut.packed_linear(x, packed, linear.bias, out_features=70)
    torch.testing.assert_close(out, linear(x).detach())
