"""Cases of quantized rows and low-bit products that hold for every backend with kernels of its own.
`run(op, *args)` gives the outputs of an op, by the schema's arguments, on the CPU as a tuple."""

import torch

from helpers import adversarial_rows, assert_close_by_comparison, assert_same
from taut.formats import BITS, pack_codes
from taut.reference import lowbit_gemm, quantize
from taut.reference.dense_gemm import ACTIVATIONS

GROUPED = ((2, 256), (3, 128), (4, 64), (8, 32))
EXACT_GRIDS = ("absmax", "full_range")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ZERO_POINTS = (None, "whole", "half")
EPS = 1e-5


def weight_of(channels, features, bits, group_size=0, zero_point=None, codebook=None):
    """packed, scale, zero_point, codebook of a random weight: zero_point "whole" or "half"."""
    codes = torch.randint(0, 2**bits, (channels, features), dtype=torch.uint8)
    groups = -(-features // group_size) if group_size else 1
    packed = lowbit_gemm.pack_lowbit(pack_codes(codes, bits), bits, features)
    zeros = None
    if zero_point is not None:
        zeros = torch.randint(0, 2**bits, (channels, groups)) + (0.5 if zero_point == "half" else 0)
        zeros = zeros.float()
    table = None
    if codebook is not None:
        table = torch.randn((channels, 2**bits) if codebook == "channel" else (2**bits,))
    return packed.contiguous(), torch.rand(channels, groups) + 0.5, zeros, table


def integers(rows, features, groups=1):
    """x of int8 and its scale"""
    x = torch.randint(-128, 128, (rows, features)).to(torch.int8)
    return x, torch.rand(rows, groups) + 0.5


def want(op, *args):
    module = lowbit_gemm if op.startswith("lowbit") else quantize
    result = getattr(module, op)(*args)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def assert_bits(run, op, *args):
    assert_same(run(op, *args), want(op, *args))


# ---- rows to int8


def check_grid(run, grid, dtype, columns):
    x = torch.cat((3 * torch.randn(5, columns), adversarial_rows(columns))).to(dtype)
    scale, shift = torch.rand(columns) + 0.5, torch.randn(columns)
    for bits, group_size in ((8, 0), (4, 32), (2, 5), (3, 100)):
        assert_bits(run, "quantize_per_token", x, None, None, bits, grid, False, group_size)
    assert_bits(run, "quantize_per_token", x, scale, None, 8, grid, False, 0)
    assert_bits(run, "quantize_per_token", x, None, shift, 8, grid, False, 32)
    if columns % 128 == 0:
        for group_size in (0, 64, 200):
            assert_bits(run, "quantize_per_token", x, scale, shift, 4, grid, True, group_size)


def assert_codes_near(q, scale, want_q, want_scale, rtol):
    """Sums over a row have an order of their own: codes beside a half may round to the other side."""
    torch.testing.assert_close(scale, want_scale, rtol=rtol, atol=0, equal_nan=True)
    difference = (q.int() - want_q.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def check_midrise(run, bits, hadamard):
    x = torch.cat((3 * torch.randn(5, 256), adversarial_rows(256)))
    for group_size in (0, 100):
        args = x, None, None, bits, "midrise", hadamard, group_size
        got = run("quantize_per_token", *args)
        assert_codes_near(*got, *want("quantize_per_token", *args), 2e-6)


def check_layer_norm_quantize(run, dtype, own_affine):
    x, residual = (2 * torch.randn(2, 40, 65) + 1).to(dtype)
    bias, weight, norm_bias, quant_weight = torch.randn(4, 65).to(dtype)
    norm = x, residual, bias, weight, norm_bias
    args = (*norm, quant_weight if own_affine else None, None, EPS, 8)
    out, q, scale = run("layer_norm_quantize", *args)
    exact = want("layer_norm_quantize", *args)
    wide = (None if t is None else t.double() for t in norm)
    total = sum(next(wide) for _ in range(3))
    norm64 = torch.nn.functional.layer_norm(total, (65,), *wide, EPS)
    plain = torch.nn.functional.layer_norm(x + bias + residual, (65,), weight, norm_bias, EPS)
    assert_close_by_comparison(out, plain, norm64)
    assert_codes_near(q, scale, *exact[1:], 1e-5)
    if dtype == torch.float32 and not own_affine:  # out is what was quantized
        assert_same((q, scale), quantize.quantize_per_token(out))


def check_no_rows_and_layouts(run):
    x = torch.randn(9, 128)
    for op, rest in (
        ("quantize_per_token", (None, None, 8, "absmax", True, 64)),
        ("layer_norm_quantize", (None,) * 6 + (EPS, 8)),
    ):
        wide = torch.full((9, 133), float("nan"))
        wide[:, :128] = x
        assert_same(run(op, wide[:, :128], *rest), run(op, x, *rest))
        assert_same(run(op, x[:0], *rest), want(op, x[:0], *rest))


def check_places_of_rows(run, dtype):
    """A row's bits do not depend on where it lies: at multiples of 16 bytes, or elsewhere."""
    x, residual = torch.randn(2, 5, 300).to(dtype)
    scale, shift = torch.rand(300) + 0.5, torch.randn(300)
    bias, weight, norm_bias = torch.randn(3, 300).to(dtype)

    def outputs(x, residual):
        return (
            *run("quantize_per_token", x, scale, shift, 8, "absmax", False, 100),
            *run("quantize_per_token", x, None, None, 8, "midrise", False, 0),
            *run("layer_norm_quantize", x, residual, bias, weight, norm_bias, None, None, EPS, 8),
        )

    want = outputs(x, residual)
    for first, columns in ((0, 304), (0, 303), (1, 304)):
        places = []
        for t in (x, residual):
            wide = torch.full((5, columns), float("nan"), dtype=dtype)
            wide[:, first : first + 300] = t
            places.append(wide[:, first : first + 300])
        assert_same(outputs(*places), want)
        assert_same(outputs(x, places[1]), want)


# ---- integer products


def check_products(run, bits, shapes):
    """One group: nothing is rounded before the scale."""
    for rows, channels, features in shapes:
        for zero_point in ZERO_POINTS:
            weight = weight_of(channels, features, bits, 0, zero_point)
            x_zero_point = -0.5 if zero_point else 0.0
            assert_bits(
                run, "lowbit_linear", *integers(rows, features), *weight, None, channels, bits, 0,
                8, "none", None, x_zero_point, torch.float32,
            )  # fmt: skip


def check_groups(run, bits, group_size, shape=(5, 70, 300)):
    """Every fp32 operation behind the sums is in the reference's order, so these are its bits too."""
    rows, channels, features = shape
    groups = -(-features // group_size)
    for x_groups, zero_point, x_zero_point in ((1, None, 0.0), (groups, "half", -0.5)):
        weight = weight_of(channels, features, bits, group_size, zero_point)
        assert_bits(
            run, "lowbit_linear", *integers(rows, features, x_groups), *weight,
            torch.randn(channels), channels, bits, group_size, 8, "relu",
            torch.randn(rows, channels), x_zero_point, torch.float32,
        )  # fmt: skip


def check_fuzz(run, seed):
    """Any shape and options; relu and none round nothing of their own."""
    g = torch.Generator().manual_seed(seed)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (), generator=g))]

    def size(most):
        return int(torch.randint(1, most, (), generator=g))

    rows, channels, features = size(140), size(260), size(330)
    bits, group_size = draw(*BITS), draw(0, 32, 64, 128, 256)
    weight = weight_of(channels, features, bits, group_size, draw(*ZERO_POINTS))
    groups = weight[1].shape[1]
    x = integers(rows, features, draw(1, groups))
    if draw(False, True):
        x = torch.randn(rows, features).to(draw(*DTYPES)), None
    bias = draw(None, torch.randn(channels).to(draw(*DTYPES)))
    operands = (*x, *weight, bias, channels, bits, group_size, draw(4, 8), draw("none", "relu"))
    if draw(False, True):
        rest = draw(4, 8), draw(0, 32, 64, 128, 256)
        return assert_bits(run, "lowbit_linear_quantize", *operands, *rest)
    dtype = draw(*DTYPES) if x[1] is not None else x[0].dtype
    residual = draw(None, torch.randn(rows, channels).to(dtype))
    x_zero_point = draw(0.0, -0.5) if x[1] is not None else 0.0
    assert_bits(run, "lowbit_linear", *operands, residual, x_zero_point, dtype)


def check_extremes(run, bits):
    """The largest sums: 128 * 128 * 65536 = 2^30."""
    features = 65536
    x = torch.full((2, features), -128, dtype=torch.int8)
    x[1] = 127
    for code in (0, 2**bits - 1):
        codes = torch.full((1, features), code, dtype=torch.uint8)
        packed = lowbit_gemm.pack_lowbit(pack_codes(codes, bits), bits, features).contiguous()
        for zeros in (None, torch.full((1, 1), float(2**bits - 1))):
            assert_bits(
                run, "lowbit_linear", x, torch.ones(2, 1), packed, torch.ones(1, 1), zeros, None,
                None, 1, bits, 0, 8, "none", None, 0.0, torch.float32,
            )  # fmt: skip


# ---- behind the sums


def check_epilogue(run, dtype, epilogue):
    packed, scale, *rest = weight_of(70, 96, 4)
    x, x_scale = integers(5, 96)
    operands = (x, x_scale / 50, packed, scale / 300, *rest)
    residual, bias = torch.randn(5, 70).to(dtype), torch.randn(70).to(dtype)
    rest = (bias, 70, 4, 0, 8, epilogue, residual, 0.0, dtype)
    (got,) = run("lowbit_linear", *operands, *rest)
    (total,) = want("lowbit_linear", *operands, bias, 70, 4, 0, 8, "none", None, 0.0, torch.float32)
    exact = ACTIVATIONS[epilogue](total.double()) + residual.double()
    plain = ACTIVATIONS[epilogue](total.to(dtype)) + residual
    assert_close_by_comparison(got, plain, exact)


def check_requantizing(run, out_bits, out_group_size, rows=20):
    weight = weight_of(200, 70, 4, 0, "whole")
    operands = (*integers(rows, 70), *weight, torch.randn(200), 200, 4, 0, 8, "relu")
    assert_bits(run, "lowbit_linear_quantize", *operands, out_bits, out_group_size)


def check_linear_layer_norm(run, dtype, own_affine):
    packed, scale, *rest = weight_of(70, 96, 4, 0, "whole")
    x, x_scale = integers(5, 96)
    residual = torch.randn(5, 70).to(dtype)
    weight, norm_bias, bias, quant_weight = torch.randn(4, 70).to(dtype)
    operands = (x, x_scale, packed, scale / 300, *rest, bias, 70, 4, 0, 8)
    args = (*operands, residual, weight, norm_bias, EPS)
    second = (quant_weight if own_affine else None, None)
    out, q, q_scale = run("lowbit_linear_layer_norm", *args, True, *second)
    (total,) = want("lowbit_linear", *operands, "none", None, 0.0, torch.float32)
    affine = weight, norm_bias
    exact = torch.nn.functional.layer_norm(
        total.double() + residual.double(), (70,), *(t.double() for t in affine), EPS
    )
    plain = torch.nn.functional.layer_norm(total.to(dtype) + residual, (70,), *affine, EPS)
    assert_close_by_comparison(out, plain, exact)
    assert_codes_near(q, q_scale, *want("lowbit_linear_layer_norm", *args, True, *second)[1:], 1e-5)
    alone = run("lowbit_linear_layer_norm", *args, False, None, None)[0]
    assert torch.equal(alone, out)


# ---- rows


def check_batch_invariance(run, rows, picked):
    """A row's bits do not depend on the number of rows, whatever tiles that leads to."""
    weight = weight_of(130, 100, 4, 32, "half")
    x, bias, residual = torch.randn(rows, 100), torch.randn(130), torch.randn(rows, 130)
    operands = (*weight, bias, 130, 4, 32, 8)

    def every_op(part):
        return (
            *run("lowbit_linear", x[part], None, *operands, "gelu", residual[part], 0.0, None),
            *run("lowbit_linear_quantize", x[part], None, *operands, "silu", 8, 64),
            *run("lowbit_linear_quantize", x[part], None, *operands, "tanh", 8, 0),
            *run(
                "lowbit_linear_layer_norm", x[part], None, *operands, residual[part], None, None,
                EPS, True, None, None,
            ),
        )  # fmt: skip

    together = every_op(slice(None))
    for part in picked:
        assert_same(every_op(part), tuple(t[part] for t in together))


def check_nothing_leaks(run):
    weight = weight_of(70, 100, 4, 32)
    x, residual = torch.randn(45, 100), torch.randn(45, 70)
    poisoned = x.clone()
    poisoned[::3, 7] = float("nan")
    clean = torch.ones(45, dtype=torch.bool)
    clean[::3] = False
    rest = (*weight, None, 70, 4, 32, 8)
    for op, more in (
        ("lowbit_linear", ("gelu", residual, 0.0, None)),
        ("lowbit_linear_quantize", ("none", 8, 32)),
        ("lowbit_linear_layer_norm", (residual, None, None, EPS, True, None, None)),
    ):
        good, bad = run(op, x, None, *rest, *more), run(op, poisoned, None, *rest, *more)
        for g, b in zip(good, bad, strict=True):
            assert torch.equal(g[clean], b[clean])
            nothing = b[~clean].isnan() if b.is_floating_point() else b[~clean] == 0
            assert nothing.all()


# ---- activations that stay floating point


def values_of(packed, scale, zero_point, codebook, bits, group_size, features):
    """What a weight stands for, fp32 (channels, features)."""
    weight = packed, scale, zero_point, codebook, None, scale.shape[0], bits, group_size, 0
    return want("lowbit_linear", torch.eye(features), None, *weight)[0].T


def check_floats(run, dtype, bits, group_size, shape=(5, 70, 200)):
    rows, channels, features = shape
    x = torch.randn(rows, features).to(dtype)
    for zero_point, codebook in ((None, None), ("half", None), (None, "one"), (None, "channel")):
        size = 0 if codebook == "channel" else group_size
        weight = weight_of(channels, features, bits, size, zero_point, codebook)
        values = values_of(*weight, bits, size, features)
        (got,) = run(
            "lowbit_linear", x, None, *weight, None, channels, bits, size, 0, "none", None, 0.0,
            None,
        )  # fmt: skip
        assert_close_by_comparison(got, x @ values.to(dtype).T, x.double() @ values.double().T)


def check_float_batch_invariance(run, rows, picked):
    operands = (None, *weight_of(130, 300, 4, 32, "half"), torch.randn(130), 130, 4, 32, 0, "gelu")
    x = torch.randn(rows, 300).bfloat16()
    x[rows // 2] = float("nan")
    (together,) = run("lowbit_linear", x, *operands, None, 0.0, None)
    others = torch.arange(rows) != rows // 2
    assert together[~others].isnan().all() and together[others].isfinite().all()
    for part in picked:
        (alone,) = run("lowbit_linear", x[part], *operands, None, 0.0, None)
        assert torch.equal(alone[others[part]], together[part][others[part]])
