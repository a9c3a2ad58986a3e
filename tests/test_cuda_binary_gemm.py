"""The CUDA kernels of packed signs and 1-bit linears, run in the host executor."""

import pytest
import torch

from binary_cases import random_bits, random_weight, some_zeros
from helpers import assert_close_by_comparison, strided_rows
from simt import binary_gemm as cuda
from simt import build
from taut.reference import binary_gemm as reference

NAN = float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# in_features, out_features: words, steps of four words and panels that are full, partial and single.
SHAPES = ((1, 1), (64, 64), (70, 130), (256, 65), (1100, 3), (1280, 129))
RAGGED = ((63, 1), (65, 130), (255, 63), (257, 65), (449, 129))
ONE_RAIL, TWO_RAILS, CODES = 1, 2, 0
by_all_kernels = pytest.mark.parametrize("kernel", cuda.KERNELS)


def stray_bits(bits, columns):
    """The same signs with ones behind the last column, and rows of another stride."""
    stray = bits.clone()
    if columns % 64:
        stray[..., -1] |= -1 << columns % 64
    return strided_rows(stray)


def random_rows(rows, in_features, kind):
    """x, and the scales of codes, which are ones."""
    if kind != CODES:
        return random_bits(rows, in_features, kind), None
    largest = 2 ** int(torch.randint(8, ()))
    x = torch.randint(-largest, largest, (rows, in_features)).to(torch.int8)
    return x, torch.ones(rows, 1)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("columns", (1, 63, 64, 65, 257, 300))
def test_pack_and_unpack(columns, schedule):
    for dtype in DTYPES:
        x = some_zeros(9, columns).to(dtype)
        x[0, 0], x[1, 0], x[2, 0] = NAN, float("inf"), -0.0
        threshold = torch.randn(columns)
        threshold[::3] = x.float()[3, ::3]
        for rails in (1, 2):
            for tie in ("strict", "geq"):
                for limit in (None, threshold):
                    bits = cuda.pack_bits(strided_rows(x), limit, rails, tie, schedule)
                    assert torch.equal(bits, reference.pack_bits(x, limit, rails, tie))
            signs = cuda.unpack_bits(bits, columns, schedule)
            assert torch.equal(signs, reference.unpack_bits(bits, columns))


@by_all_kernels
@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(shape, rails, kernel):
    in_features, out_features = shape
    packed = random_weight(out_features, in_features)
    one = torch.ones(out_features)
    for rows in (1, 33, 65):
        x = random_bits(rows, in_features, rails)
        want = reference._sums(x, packed, out_features, in_features)
        x = stray_bits(x, in_features)
        args = (x, None, packed, one, None, out_features, in_features)
        assert torch.equal(cuda.binary_linear(*args, kernel=kernel).double(), want)
        for shape in ((out_features,), (3, out_features)):
            thresholds = torch.randint(-9, 10, shape, dtype=torch.int32)
            args = (x, packed, thresholds, out_features, in_features)
            bits = cuda.binary_linear_bits(*args, kernel=kernel)
            assert torch.equal(bits, reference.compare(want, thresholds))


@by_all_kernels
@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("shape", RAGGED)
def test_ragged_sums_are_exact(shape, schedule, kernel):
    in_features, out_features = shape
    packed, one = random_weight(out_features, in_features), torch.ones(out_features)
    stray_packed = packed.clone()  # ones behind the last column of weights, too
    stray_packed[:, -1] |= -1 << in_features % 64
    for rows in (0, 1, 31, 129):
        for kind in (ONE_RAIL, TWO_RAILS, CODES):
            x, row_scale = random_rows(rows, in_features, kind)
            want = reference._sums(x, packed, out_features, in_features)
            x = x if kind == CODES else stray_bits(x, in_features)
            args = (x, row_scale, stray_packed, one, None, out_features, in_features)
            got = cuda.binary_linear(*args, schedule=schedule, kernel=kernel)
            assert torch.equal(got.double(), want)


@by_all_kernels
@pytest.mark.parametrize("attempt", range(12))
def test_fuzz(attempt, kernel):
    """Any shape, in any schedule: floats of exact sums, and bits of them."""
    rows, in_features, out_features = (int(torch.randint(1, most, ())) for most in (200, 1500, 270))
    packed = random_weight(out_features, in_features)
    rails, schedule = attempt // 3 % 3, build.SCHEDULES[attempt % 3]
    x, row_scale = random_rows(rows, in_features, rails)
    want = reference._sums(x, packed, out_features, in_features)
    x = stray_bits(x, in_features) if rails and attempt % 2 else x
    args = (x, row_scale, packed, torch.ones(out_features), None, out_features, in_features)
    got = cuda.binary_linear(*args, schedule=schedule, kernel=kernel)
    assert torch.equal(got.double(), want)
    if rails:
        most = int(in_features**0.5) + 1
        thresholds = torch.randint(-most, most, (3, out_features), dtype=torch.int32)
        args = (x, packed, thresholds, out_features, in_features)
        bits = cuda.binary_linear_bits(*args, schedule=schedule, kernel=kernel)
        assert torch.equal(bits, reference.compare(want, thresholds))


@by_all_kernels
def test_rows_of_pairs_of_words(kernel):
    """Rows at multiples of 16 bytes, which may end in half a pair, and rows that begin elsewhere."""
    packed, one = random_weight(70, 300), torch.ones(70)
    bits = random_bits(40, 300, 2)
    want = reference._sums(bits, packed, 70, 300)
    wide = torch.full((40, 2, 8), -1)
    for first in (0, 1):
        x = wide[..., first : first + 5]
        x[:] = bits
        got = cuda.binary_linear(x, None, packed, one, None, 70, 300, kernel=kernel)
        assert torch.equal(got.double(), want)


def test_choice_of_tiles():
    """Large tiles where they fill a GPU of 132 multiprocessors."""
    assert [cuda.chosen_tiles(rows, 3072) for rows in (1, 640, 641, 100000)] == [0, 0, 1, 1]
    assert [cuda.chosen_tiles(rows, 768) for rows in (512, 2048, 4096)] == [0, 0, 1]


@pytest.mark.parametrize("kernel", cuda.KERNELS[:2])
@pytest.mark.parametrize("kind", (ONE_RAIL, TWO_RAILS, CODES))
def test_tiles_of_128_rows(kind, kernel):
    """As many blocks as fill a GPU."""
    rows, in_features, out_features = 700, 130, 64 * 46
    packed, one = random_weight(out_features, in_features), torch.ones(out_features)
    x, row_scale = random_rows(rows, in_features, kind)
    want = reference._sums(x, packed, out_features, in_features)
    args = (x, row_scale, packed, one, None, out_features, in_features)
    assert torch.equal(cuda.binary_linear(*args, kernel=kernel).double(), want)
    if kind != CODES:
        thresholds = torch.randint(-9, 10, (3, out_features), dtype=torch.int32)
        args = (x, packed, thresholds, out_features, in_features)
        bits = cuda.binary_linear_bits(*args, kernel=kernel)
        assert torch.equal(bits, reference.compare(want, thresholds))


@by_all_kernels
@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_schedules(schedule, kernel):
    packed, x = random_weight(130, 1100), random_bits(65, 1100)
    thresholds = torch.randint(-9, 10, (130,), dtype=torch.int32)
    bits = cuda.binary_linear_bits(x, packed, thresholds, 130, 1100, schedule, kernel)
    assert torch.equal(bits, reference.binary_linear_bits(x, packed, thresholds, 130, 1100))


@by_all_kernels
@pytest.mark.parametrize("largest", (1, 2, 8, 100, 128))
def test_sums_of_codes(largest, kernel):
    packed, one, row_scale = random_weight(70, 300), torch.ones(70), torch.ones(40, 1)
    q = torch.randint(-largest, min(largest, 127) + 1, (40, 300)).to(torch.int8)
    q[0], q[1, :5] = -largest, 0
    args = (strided_rows(q), row_scale, packed, one, None, 70, 300)
    got = cuda.binary_linear(*args, kernel=kernel)
    assert torch.equal(got.double(), reference._sums(q, packed, 70, 300))


@by_all_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", cuda.ACTIVATIONS)
def test_epilogue(activation, dtype, kernel):
    for out_features in (68, 67):  # by four, one by one
        packed, x = random_weight(out_features, 130), random_bits(40, 130)
        scale, bias = torch.randn(2, out_features) / 10
        residual = torch.randn(40, out_features).to(dtype)
        args = (x, None, packed, scale, bias, out_features, 130, activation, residual)
        got = cuda.binary_linear(*args, dtype, kernel=kernel)
        exact = reference.binary_linear(*args, torch.float32)
        assert_close_by_comparison(got, exact.to(dtype), exact)


@by_all_kernels
def test_row_scale_of_codes(kernel):
    packed, row_scale = random_weight(70, 130), torch.rand(33, 1)
    q = torch.randint(-9, 10, (33, 130)).to(torch.int8)
    args = (q, row_scale, packed, torch.randn(70), None, 70, 130)
    got = cuda.binary_linear(*args, kernel=kernel)
    torch.testing.assert_close(got, reference.binary_linear(*args))


@by_all_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (70, 128))
def test_layer_norm(columns, dtype, kernel):
    packed, x = random_weight(columns, 130), random_bits(40, 130)
    scale, bias, threshold = torch.randn(3, columns)
    residual, weight, norm_bias = (
        t.to(dtype) for t in (torch.randn(40, columns), *torch.randn(2, columns))
    )
    for rest in ((weight, norm_bias, 1e-5, threshold), (None, None, 1e-3)):
        args = (x, None, packed, scale, bias, 130, strided_rows(residual), *rest)
        out, bits = cuda.binary_linear_layer_norm(*args, kernel=kernel)
        wide = [t.double() if isinstance(t, torch.Tensor) and t.dtype == dtype else t for t in rest]
        exact, _ = reference.binary_linear_layer_norm(
            *args[:6], residual.double() if dtype != torch.float32 else residual, *wide
        )
        assert_close_by_comparison(out, exact.to(dtype), exact)
        signs = reference.unpack_bits(bits, columns)
        limit = rest[3] if len(rest) > 3 else torch.zeros(columns)
        clear = (exact.float() - limit).abs() > 1e-4
        assert torch.equal((signs > 0)[clear], (exact.float() > limit)[clear])
