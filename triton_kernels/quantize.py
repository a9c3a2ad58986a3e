"""Rows to int8, LayerNorm to int8, and Kronecker products of rows.

The integers and their scales are defined to the bit (reference/quantize.py): divisions are IEEE's and
nothing is fused (`_EXACT`).
"""

import torch
import triton
import triton.language as tl

from taut.reference.quantize import HADAMARD, MIDRISE_CLIP
from taut.triton_kernels._launch import launcher, row_stride, row_strided, row_tile, vector
from taut.triton_kernels.norm import load_row_vector, load_sum, normalize_rows

_EXACT = {"enable_fp_fusion": False}


@triton.jit
def _clamped_to_int8(x, LOWEST: tl.constexpr, HIGHEST: tl.constexpr):
    """To the nearest whole number, halves to even: behind 1.5 * 2^23 no fraction has room."""
    x = tl.minimum(tl.maximum(x, LOWEST), HIGHEST)
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def quantize_rows(x, TOP: tl.constexpr, HIGHEST: tl.constexpr):
    """(codes, scale) of every row of fp32 x: absmax / TOP is the scale, codes end at HIGHEST."""
    # Magnitudes sort as their bits do, infinity and NaN on top.
    most = tl.max(tl.abs(x).to(tl.int32, bitcast=True), 1)
    finite = most < 0x7F800000
    absmax = tl.where(finite, most, 0).to(tl.float32, bitcast=True)
    top = tl.full(absmax.shape, TOP, tl.float32)
    scale = tl.where(finite, tl.div_rn(absmax, top), float("nan"))
    inverse = tl.div_rn(top, tl.maximum(absmax, 1e-36))  # SMALLEST of the reference
    product = tl.where(finite[:, None], x, 0) * inverse[:, None]
    return _clamped_to_int8(product, -TOP, HIGHEST), scale


@triton.jit
def _quantize_midrise(x, columns, step, HALF: tl.constexpr):
    """The same on the grid of x ~ (code + 1/2) scale; x has `columns` columns, others are 0."""
    most = tl.max(tl.abs(x).to(tl.int32, bitcast=True), 1)
    finite = most < 0x7F800000
    x = tl.where(finite[:, None], x, 0)
    scale = tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 1), columns.to(tl.float32))) * step + 1e-8
    level = tl.floor(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))
    codes = tl.where(finite[:, None], _clamped_to_int8(level, -HALF, HALF - 1), 0)
    return codes.to(tl.int8), tl.where(finite, scale, float("nan"))


@triton.jit
def _hadamard(x):
    """x times the Hadamard matrix of each block of 128 columns over sqrt(128), strides ascending."""
    for i in tl.static_range(7):
        pairs = tl.reshape(x, (x.shape[0] * x.shape[1] // (2 << i), 2, 1 << i))
        even, odd = tl.split(tl.permute(pairs, (0, 2, 1)))
        pairs = tl.permute(tl.join(even + odd, even - odd), (0, 2, 1))
        x = tl.reshape(pairs, x.shape)
    return x * 0.08838834764831845


@triton.jit
def _load_groups(
    x, channel_scale, channel_shift, segment, rows, columns, group_size, groups, stride,
    HADAMARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(fp32 values, where they lie in a contiguous matrix like x, mask) of groups of columns:
    segment s is group s % groups of row s // groups."""
    row = (segment // groups)[:, None]
    within = tl.arange(0, BLOCK)[None, :]
    column = (segment % groups * group_size)[:, None] + within
    mask = (row < rows) & (within < group_size) & (column < columns)
    values = tl.load(x + row * stride + column, mask, 0).to(tl.float32)
    if channel_shift is not None:
        values -= tl.load(channel_shift + column, mask, 0)
    if channel_scale is not None:
        values *= tl.load(channel_scale + column, mask, 0)
    if HADAMARD:
        values = _hadamard(values)
    return values, row * columns + column, mask


@triton.jit(do_not_specialize=["rows"])
def _rotate_kernel(
    x, channel_scale, channel_shift, out, rows, columns, stride,
    HADAMARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    values, offset, mask = _load_groups(
        x, channel_scale, channel_shift, row, rows, columns, columns, 1, stride, HADAMARD, BLOCK
    )
    tl.store(out + offset, values, mask)


@triton.jit(do_not_specialize=["rows"])
def _quantize_kernel(
    x, channel_scale, channel_shift, q, scale, rows, columns, group_size, groups, stride, step,
    GRID: tl.constexpr, BITS: tl.constexpr, HADAMARD: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = 2 ** (BITS - 1)
    segment = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    values, offset, mask = _load_groups(
        x, channel_scale, channel_shift, segment, rows, columns, group_size, groups, stride,
        HADAMARD, BLOCK,
    )  # fmt: skip
    if GRID == "midrise":
        first = segment % groups * group_size
        width = tl.minimum(columns - first, group_size)
        codes, step_of = _quantize_midrise(values, width, step, half)
    elif GRID == "full_range":
        codes, step_of = quantize_rows(values, half, half - 1)
    else:
        codes, step_of = quantize_rows(values, half - 1, half - 1)
    tl.store(q + offset, codes, mask)
    tl.store(scale + segment, step_of, segment < rows * groups)


@triton.jit(do_not_specialize=["rows"])
def _norm_quantize_kernel(
    x, residual, bias, weight, norm_bias, quant_weight, quant_bias, out, q, scale,
    rows, columns, x_stride, residual_stride, eps,
    TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    total = load_sum(x, residual, bias, row, column, mask, columns, x_stride, residual_stride)
    normalized, _, _ = normalize_rows(total, mask, columns, eps, True)
    values = normalized * load_row_vector(weight, column, columns, 1)
    values += load_row_vector(norm_bias, column, columns, 0)
    offset = row[:, None] * columns + column[None, :]
    tl.store(out + offset, values.to(out.dtype.element_ty), mask)
    if quant_weight is not None or quant_bias is not None:
        values = normalized * load_row_vector(quant_weight, column, columns, 1)
        values += load_row_vector(quant_bias, column, columns, 0)
    codes, step = quantize_rows(tl.where(mask, values, 0), TOP, TOP)
    tl.store(q + offset, codes, mask)
    tl.store(scale + row, step, row < rows)


@triton.jit
def _load_tile(matrix, row, column, stride, rows, columns):
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row[:, None] * stride + column[None, :], mask, 0).to(tl.float32)


@triton.jit
def _kronecker_kernel(
    x, left, right, out, a, b, stride,
    TILE_A: tl.constexpr, TILE_B: tl.constexpr, STEP_A: tl.constexpr, STEP_B: tl.constexpr,
):  # fmt: skip
    """A tile of left^T X right, X the (a, b) matrix of one row of x."""
    row = tl.program_id(0).to(tl.int64)
    out_row = tl.program_id(1) * TILE_A + tl.arange(0, TILE_A)
    column = tl.program_id(2) * TILE_B + tl.arange(0, TILE_B)
    total = tl.zeros((TILE_A, TILE_B), tl.float32)
    for i in range(0, a, STEP_A):
        inner = i + tl.arange(0, STEP_A)
        times_right = tl.zeros((STEP_A, TILE_B), tl.float32)
        for j in range(0, b, STEP_B):
            depth = j + tl.arange(0, STEP_B)
            values = _load_tile(x + row * stride, inner, depth, b, a, b)
            factor = _load_tile(right, depth, column, b, b, b)
            times_right += tl.dot(values, factor, input_precision="ieee")
        factor = tl.trans(_load_tile(left, inner, out_row, a, a, a))
        total += tl.dot(factor, times_right, input_precision="ieee")
    offset = row * a * b + out_row[:, None] * b + column[None, :]
    mask = (out_row < a)[:, None] & (column < b)[None, :]
    tl.store(out + offset, total.to(out.dtype.element_ty), mask)


def to_int8(x, channel_scale, channel_shift, bits, grid, hadamard, group_size):
    """(q, scale) of x, of any float type."""
    x, vectors = row_strided(x), (vector(channel_scale), vector(channel_shift))
    rows, columns = x.shape
    group_size = min(group_size or columns, columns)
    groups = triton.cdiv(columns, group_size)
    q = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty((rows, groups), dtype=torch.float32)
    if rows == 0:
        return q, scale
    if hadamard and group_size % HADAMARD:  # groups that cut blocks
        tile = row_tile(columns)
        rotated = x.new_empty(x.shape, dtype=torch.float32)
        _rotate_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, *vectors, rotated, rows, columns, x.stride(0), HADAMARD=True, **tile, **_EXACT
        )
        x, vectors, hadamard = rotated, (None, None), False
    tile = row_tile(group_size)
    _quantize_kernel[(triton.cdiv(rows * groups, tile["ROWS"]),)](
        x, *vectors, q, scale, rows, columns, group_size, groups, x.stride(0),
        2 * MIDRISE_CLIP[bits] / (2**bits - 1),
        GRID=grid, BITS=bits, HADAMARD=hadamard, **tile, **_EXACT,
    )  # fmt: skip
    return q, scale


def norm_quantize(x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits, dtype):
    """(out of `dtype`, q, scale); the operands may be of any float type."""
    x, residual = row_strided(x), row_strided(residual)
    rows, columns = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    q = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty((rows, 1), dtype=torch.float32)
    if rows:
        tile = row_tile(columns)
        vectors = map(vector, (bias, weight, norm_bias, quant_weight, quant_bias))
        _norm_quantize_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, residual, *vectors, out, q, scale,
            rows, columns, x.stride(0), row_stride(residual), eps,
            TOP=2 ** (bits - 1) - 1, **tile, **_EXACT,
        )  # fmt: skip
    return out, q, scale


@launcher
def quantize_per_token(x, channel_scale, channel_shift, bits, grid, hadamard, group_size):
    return to_int8(x, channel_scale, channel_shift, bits, grid, hadamard, group_size)


@launcher
def layer_norm_quantize(x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits):
    return norm_quantize(
        x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits, x.dtype
    )


@launcher
def kronecker(x, left, right):
    x, left, right = row_strided(x), left.contiguous(), right.contiguous()
    a, b = left.shape[0], right.shape[0]
    out = x.new_empty(x.shape)
    # FlatQuant's factors are 16 to 64: one tile, of which at most a quarter in each direction idles.
    tile_a, tile_b = (min(64, max(16, triton.next_power_of_2(n))) for n in (a, b))
    if x.shape[0]:
        _kronecker_kernel[(x.shape[0], triton.cdiv(a, tile_a), triton.cdiv(b, tile_b))](
            x, left, right, out, a, b, x.stride(0),
            TILE_A=tile_a, TILE_B=tile_b, STEP_A=16, STEP_B=min(tile_b, 32), num_warps=4,
        )  # fmt: skip
    return out
