"""quantize_per_token, layer_norm_quantize and kronecker against their reference, on every
instruction set. The definitions are those of the papers that the public docstrings name."""

import math

import pytest
import torch

import taut
from helpers import (
    adversarial_rows,
    assert_close_by_comparison,
    assert_same,
    far_rows,
    misaligned,
    on_one_thread,
    strided_rows,
)
from taut._native import last_variant
from taut.reference import quantize as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS = (1, 7, 8, 16, 31, 384, 387)
EXACT_GRIDS = ("absmax", "full_range")
EPS = 1e-5


def rows_of(columns, dtype):
    return torch.cat((3 * torch.randn(20, columns), adversarial_rows(columns))).to(dtype)


# ---- quantize_per_token


@pytest.mark.parametrize("grid", EXACT_GRIDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_bits_are_those_of_the_reference(isa, grid, dtype, columns):
    x = rows_of(columns, dtype)
    for bits, group_size in ((8, 0), (4, 32), (2, 5), (3, 128), (8, 1000)):
        got = taut.quantize_per_token(x, bits, grid=grid, group_size=group_size)
        assert last_variant("quantize_per_token") == isa
        want = reference.quantize_per_token(x, None, None, bits, grid, False, group_size)
        assert_same(got, want)


@pytest.mark.parametrize("grid", EXACT_GRIDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_behind_shift_scale_and_hadamard(isa, grid, dtype):
    x = rows_of(384, dtype)
    scale, shift = torch.rand(384) + 0.5, torch.randn(384)
    for args in (
        (scale, None, 8, grid, False, 0),
        (None, shift, 8, grid, False, 96),
        (scale, shift, 4, grid, True, 0),
        (None, None, 8, grid, True, 128),
    ):
        got = torch.ops.taut.quantize_per_token(x, *args)
        assert_same(got, reference.quantize_per_token(x, *args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_midrise(isa, bits, dtype):
    """The mean of the squares has an order of its own; given the scale, q is exact."""
    x = rows_of(387, dtype)
    q, scale = taut.quantize_per_token(x, bits, grid="midrise")
    want_q, want_scale = reference.quantize_per_token(x, bits=bits, grid="midrise")
    torch.testing.assert_close(scale, want_scale, rtol=2e-6, atol=0, equal_nan=True)
    assert q[~scale[:, 0].isfinite()].eq(0).all()
    half = 2 ** (bits - 1)
    given_scale = (x.float() / scale).floor().nan_to_num(0).clamp(-half, half - 1)
    assert torch.equal(q[scale[:, 0].isfinite()].float(), given_scale[scale[:, 0].isfinite()])
    assert (q - want_q).abs().max() <= 1
    grouped = taut.quantize_per_token(x, bits, grid="midrise", group_size=64)
    part = taut.quantize_per_token(x[:, 64:128], bits, grid="midrise")
    assert_same((grouped[0][:, 64:128], grouped[1][:, 1:2]), part)


def test_values_stay_within_half_a_step(isa):
    x = 5 * torch.randn(50, 100)
    for bits in (2, 3, 4, 8):
        q, scale = taut.quantize_per_token(x, bits)
        assert ((q * scale - x).abs() <= 0.50001 * scale).all()
        assert q.abs().max() == 2 ** (bits - 1) - 1
    q, scale = taut.quantize_per_token(x, grid="full_range")
    assert q.min() == -128 and q.max() <= 127
    assert ((q * scale - x).abs() <= scale * torch.where(q == 127, 1.00001, 0.50001)).all()


# ---- what papers define


def test_a8_per_token(isa):
    x = torch.randn(9, 64)
    q, scale = taut.quantize_per_token(x)
    absmax = x.abs().amax(1, keepdim=True)
    assert torch.equal(scale, absmax / 127)
    assert torch.equal(q, (x * (127 / absmax)).round().to(torch.int8))


def test_bitnet_b158_and_reloaded(isa):
    """b1.58: s = 127 / absmax, round(x s) in [-128, 127]; Reloaded: 128 / absmax."""
    x = torch.randn(9, 64)
    for grid, top in (("absmax", 127), ("full_range", 128)):
        s = top / x.abs().amax(1, keepdim=True)
        q, scale = taut.quantize_per_token(x, grid=grid)
        assert torch.equal(q, (x * s).round().clamp(-128, 127).to(torch.int8))
        torch.testing.assert_close(scale, 1 / s)


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_quest(isa, bits):
    """h = x H128; step = 2 c std(h) / (2^b - 1) + 1e-8; q = floor(h / step); (q + 1/2) step."""
    x = torch.randn(7, 256)
    order = torch.arange(128)
    parity = torch.zeros(128, 128, dtype=torch.long)
    for bit in range(7):
        parity ^= (order[:, None] >> bit) & (order[None, :] >> bit) & 1
    matrix = (1 - 2 * parity).double() / math.sqrt(128)
    h = (x.double().view(7, 2, 128) @ matrix).view(7, 256)
    clip = {2: 1.49353, 3: 2.05107, 4: 2.51393, 8: 3.88494}[bits]
    step = 2 * clip * h.square().mean(1, keepdim=True).sqrt() / (2**bits - 1) + 1e-8
    q, scale = taut.quantize_per_token(x, bits, grid="midrise", hadamard=True)
    torch.testing.assert_close(scale.double(), step, rtol=1e-6, atol=0)
    exact = h / step
    half = 2 ** (bits - 1)
    want = exact.floor().clamp(-half, half - 1)
    clear = (exact - exact.round()).abs() > 1e-4  # not on the edge of two steps
    assert torch.equal(q[clear].double(), want[clear])
    inside = exact.abs() < half
    assert ((q + 0.5) * scale - h)[inside].abs().max() <= 0.5001 * scale.max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier_suppression_plus(isa, dtype):
    """Two outputs of one LayerNorm: the residual as it is, the integers shifted by z, over s."""
    x, residual = (3 * torch.randn(2, 11, 96)).to(dtype)
    gamma, beta, z = torch.randn(3, 96)
    s = torch.rand(96) + 0.5
    migrated = ((gamma / s).to(dtype), ((beta - z) / s).to(dtype))
    out, q, scale = taut.layer_norm_quantize(
        x, gamma.to(dtype), beta.to(dtype), residual=residual,
        quant_weight=migrated[0], quant_bias=migrated[1],
    )  # fmt: skip
    total = x.double() + residual.double()
    normalized = torch.nn.functional.layer_norm(total, (96,), None, None, EPS)
    affine = normalized * gamma.to(dtype).double() + beta.to(dtype).double()
    assert_close_by_comparison(out, affine.to(dtype), affine)
    exact = normalized * migrated[0].double() + migrated[1].double()
    torch.testing.assert_close(
        scale.double(), exact.abs().amax(1, keepdim=True) / 127, rtol=1e-5, atol=0
    )
    assert ((q * scale.double() - exact).abs() <= 0.501 * scale).all()
    # As two vectors of a separate quantization: (out - z) / s.
    apart = taut.quantize_per_token(affine.float(), channel_shift=z, channel_scale=1 / s)
    if dtype == torch.float32:
        assert (apart[0] - q).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((16, 24), (24, 32), (32, 32), (48, 64), (1, 1), (5, 3), (7, 17)))
def test_flatquant(isa, dtype, shape):
    """x (P1 kron P2)"""
    a, b = shape
    x, left, right = torch.randn(9, a * b), torch.randn(a, a), torch.randn(b, b)
    x, left, right = x.to(dtype), (left / a**0.5).to(dtype), (right / b**0.5).to(dtype)
    got = taut.kronecker(x, left, right)
    assert last_variant("kronecker") == isa
    exact = x.double() @ torch.kron(left.double(), right.double())
    plain = (left.T @ x.view(-1, a, b) @ right).reshape(x.shape)
    assert_close_by_comparison(got, plain, exact)


# ---- layer_norm_quantize


def norm_inputs(rows, columns, dtype):
    """x, residual, bias, weight, norm_bias"""
    x, residual = 3 * torch.randn(rows, columns) + 1, torch.randn(rows, columns)
    return [t.to(dtype) for t in (x, residual, *torch.randn(3, columns))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_layer_norm_quantize(isa, dtype, columns):
    x, residual, bias, weight, norm_bias = norm_inputs(37, columns, dtype)
    for bits in (8, 4):
        out, q, scale = taut.layer_norm_quantize(
            x, weight, norm_bias, residual=residual, bias=bias, bits=bits
        )
        assert last_variant("layer_norm_quantize") == isa
        by_layer_norm = taut.layer_norm(x, weight, norm_bias, residual=residual, bias=bias)
        assert_close_by_comparison(
            out,
            torch.nn.functional.layer_norm(x + bias + residual, (columns,), weight, norm_bias, EPS),
            reference.norm.layer_norm(
                *(t.double() for t in (x, residual, bias, weight, norm_bias)), EPS, False
            )[0],
        )
        assert_close_by_comparison(out, by_layer_norm, out.double(), slack=8)
        if dtype == torch.float32:  # out is what was quantized
            assert_same((q, scale), reference.quantize_per_token(out, bits=bits))
        else:
            rounding = torch.finfo(dtype).eps * out.float().abs()
            assert ((q * scale - out).abs() <= 0.501 * scale + rounding).all()


def test_layer_norm_quantize_of_one_quantizing_vector(isa):
    """quant_weight or quant_bias alone also replaces both of out's."""
    x, _, _, weight, norm_bias = norm_inputs(5, 40, torch.float32)
    for name in ("quant_weight", "quant_bias"):
        got = taut.layer_norm_quantize(x, weight, norm_bias, **{name: weight})
        replaced = {"quant_weight": (weight, None), "quant_bias": (None, weight)}[name]
        assert_same(got[1:], taut.layer_norm_quantize(x, *replaced)[1:])
        assert_same(got[:1], taut.layer_norm_quantize(x, weight, norm_bias)[:1])


# ---- laws

CALLS = {
    "quantize_per_token": lambda x: taut.quantize_per_token(x),
    "hadamard_midrise": lambda x: taut.quantize_per_token(x, 4, grid="midrise", hadamard=True),
    "layer_norm_quantize": lambda x: taut.layer_norm_quantize(x, residual=x),
    "kronecker": lambda x: (
        taut.kronecker(x, torch.eye(16, dtype=x.dtype), torch.ones(24, 24, dtype=x.dtype)),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_depends_on_other_rows_or_threads(isa, name):
    run, x = CALLS[name], torch.randn(200, 384).bfloat16()
    got = run(x)
    assert_same([t[70:71] for t in got], run(x[70:71]))
    assert_same(got, on_one_thread(run, x))
    poisoned = x.clone()
    poisoned[69, 5], poisoned[80, 6] = float("nan"), float("inf")
    others = [i for i in range(200) if i not in (69, 80)]
    clean = run(poisoned)
    assert_same([t[others] for t in clean], [t[others] for t in got])
    assert clean[-1][69].isnan().any() and not clean[-1][80].isfinite().all()


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
@pytest.mark.parametrize("name", CALLS)
def test_layouts(isa, name, change):
    x = torch.randn(9, 384).bfloat16()
    assert_same(CALLS[name](change(x)), CALLS[name](x))


@pytest.mark.parametrize("name", CALLS)
def test_no_rows(isa, name):
    for t in CALLS[name](torch.randn(0, 384)):
        assert t.shape in ((0, 384), (0, 1))
    assert taut.quantize_per_token(torch.randn(0, 10), group_size=4)[1].shape == (0, 3)


@pytest.mark.parametrize("name", CALLS)
def test_compile(isa, name):
    x = torch.randn(6, 384)
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), CALLS[name](x))


def test_torch_library(isa):
    x, vector = torch.randn(6, 384), torch.rand(384)
    ops = torch.ops.taut
    check = torch.library.opcheck
    check(ops.quantize_per_token.default, (x,))
    check(ops.quantize_per_token.default, (x, vector, vector, 4, "midrise", True, 100))
    check(ops.layer_norm_quantize.default, (x, x, None, vector, None, vector, None, EPS, 4))
    check(ops.kronecker.default, (x, torch.eye(12), torch.eye(32)))


def test_refuses_bad_arguments():
    x = torch.randn(3, 40)
    for error, message, call in (
        (TypeError, "x must be a torch.Tensor, got list", lambda: taut.quantize_per_token([1.0])),
        (
            ValueError,
            r"x must be \(total_tokens, columns\), got \(40,\)",
            lambda: taut.quantize_per_token(x[0]),
        ),
        (ValueError, "x must be float32.*got float64", lambda: taut.quantize_per_token(x.double())),
        (
            ValueError,
            r"x must have at least one column, got \(3, 0\)",
            lambda: taut.quantize_per_token(x[:, :0]),
        ),
        (ValueError, "x must have contiguous rows", lambda: taut.quantize_per_token(x.t())),
        (
            ValueError,
            "bits must be one of 2, 3, 4, 8, got 5",
            lambda: taut.quantize_per_token(x, 5),
        ),
        (
            ValueError,
            "grid must be one of absmax, full_range, midrise, got 'x'",
            lambda: taut.quantize_per_token(x, grid="x"),
        ),
        (
            ValueError,
            "group_size must be 0 or more, got -1",
            lambda: taut.quantize_per_token(x, group_size=-1),
        ),
        (
            ValueError,
            "x must have a multiple of 128 columns, got 40",
            lambda: taut.quantize_per_token(x, hadamard=True),
        ),
        (
            ValueError,
            r"channel_scale must be \(40,\).*got \(3,\)",
            lambda: taut.quantize_per_token(x, channel_scale=torch.ones(3)),
        ),
        (
            ValueError,
            "channel_shift must be float32, got bfloat16",
            lambda: taut.quantize_per_token(x, channel_shift=x[0].bfloat16()),
        ),
    ):
        with pytest.raises(error, match="quantize_per_token: " + message):
            call()
    for message, options in (
        (r"weight must be \(40,\).*got \(3,\)", {"weight": torch.ones(3)}),
        (r"quant_bias must be float32, got bfloat16", {"quant_bias": x[0].bfloat16()}),
        (r"residual must be \(3, 40\).*got \(2, 40\)", {"residual": x[:2]}),
        ("bits must be one of 2, 3, 4, 8, got 16", {"bits": 16}),
    ):
        with pytest.raises(ValueError, match="layer_norm_quantize: " + message):
            taut.layer_norm_quantize(x, **options)
    for message, factors in (
        (r"left must be \(n, n\), got \(4, 5\)", (torch.ones(4, 5), torch.eye(8))),
        ("right must be float32, got float16", (torch.eye(5), torch.eye(8).half())),
        ("x must have 32 columns, rows of left times rows of right, got 40",
         (torch.eye(4), torch.eye(8))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="kronecker: " + message):
            taut.kronecker(x, *factors)
    with pytest.raises(RuntimeError, match="quantize_per_token: bits must be one of"):
        torch.ops.taut.quantize_per_token(x, None, None, 7)
