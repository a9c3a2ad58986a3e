"""Linear layers over low-bit weights in the packed layout of ops/lowbit_gemm.py.

A packed weight is read as 32-bit words (panel, block, row, channel): a word holds the four members of
one or more quads of input features. Integer products take codes less 2^(bits - 1), which are int8, so
a zero point of 2^(bits - 1) costs nothing; what is left of others is a correction by row sums.
"""

import torch
import triton
import triton.language as tl

from taut.formats import PANEL
from taut.triton_kernels._launch import (
    dot_type,
    launcher,
    row_stride,
    row_strided,
    vector,
)
from taut.triton_kernels.activation import activate
from taut.triton_kernels.norm import load_row_vector, normalize
from taut.triton_kernels.quantize import norm_quantize, quantize_rows, to_int8

# Rows and stages do not look at the number of rows, so that a row's sums do not depend on the batch.
# fp32 has no tensor cores at full precision: fewer rows keep its operands in registers.
_TILES = {
    torch.int8: {"BLOCK_M": 64, "num_warps": 4, "num_stages": 3},
    torch.bfloat16: {"BLOCK_M": 64, "num_warps": 4, "num_stages": 3},
    torch.float16: {"BLOCK_M": 64, "num_warps": 4, "num_stages": 3},
    torch.float32: {"BLOCK_M": 32, "num_warps": 4, "num_stages": 2},
}


@triton.jit
def _load_codes(
    packed, channel, padded_channels, first, panel_words,
    BITS: tl.constexpr, BLOCK_K: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Codes less 2^(BITS - 1) of features first to first + BLOCK_K, int8 (BLOCK_K, channels)."""
    quad = first % 64 // 4 + tl.arange(0, BLOCK_K // 4)
    block = packed + (channel // PANEL).to(tl.int64) * panel_words + channel % PANEL
    block = (block + first // 64 * (2 * BITS * PANEL))[None, :]
    inside = (channel < padded_channels)[None, :]
    member = 8 * tl.arange(0, 4)[None, None, :]
    if BITS == 8:
        row, shift = quad, quad * 0
    elif BITS == 4:
        row, shift = quad // 2, quad % 2 * 4
    else:
        row, shift = quad // 4, quad % 4 * 2
    words = tl.load(block + row[:, None] * PANEL, inside, 0)
    mask: tl.constexpr = 3 if BITS == 3 else 2**BITS - 1
    codes = words[:, :, None] >> (shift[:, None, None] + member) & mask
    if BITS == 3:
        words = tl.load(block + (4 + quad // 8)[:, None] * PANEL, inside, 0)
        codes |= (words[:, :, None] >> ((quad % 8)[:, None, None] + member) & 1) << 2
    codes = (codes - 2 ** (BITS - 1)).to(tl.int8)
    return tl.reshape(tl.permute(codes, (0, 2, 1)), (BLOCK_K, channel.shape[0]))


@triton.jit
def _weight_values(codes, zero_point, codebook, channel, mask, codebook_stride, BITS: tl.constexpr):
    """What `_load_codes` gave stands for, before scaling: fp32 (BLOCK_K, channels)."""
    codes = codes.to(tl.int32) + 2 ** (BITS - 1)
    if codebook is not None:
        entry = channel[None, :] * codebook_stride + codes
        values = tl.load(codebook + entry, mask[None, :], 0)
    else:
        values = codes.to(tl.float32) - zero_point[None, :]
    return values


@triton.jit(do_not_specialize=["rows"])
def _lowbit_kernel(
    x, x_scale, packed, scale, zero_point, codebook, bias, residual, out, out_scale,
    rows, in_features, out_features, group_size, groups,
    x_stride, x_groups, panel_words, codebook_stride, residual_stride, x_zero_point,
    BITS: tl.constexpr, ACTIVATION: tl.constexpr, DOT: tl.constexpr, OUT_TOP: tl.constexpr,
    OUT_GROUP: tl.constexpr, SHIFTED: tl.constexpr, PANEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Integer products for x of int8, floating-point ones otherwise. With OUT_GROUP, which divides
    BLOCK_N, the result is quantized in groups of so many columns."""
    half: tl.constexpr = 2 ** (BITS - 1)
    integers: tl.constexpr = x.dtype.element_ty == tl.int8
    tiles = tl.cdiv(out_features, BLOCK_N)
    # Neighbouring programs share rows of x; the weights stay in the cache that all share.
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row, in_channel = row < rows, channel < out_features
    padded_channels = tl.cdiv(out_features, PANEL) * PANEL

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for group in range(0, groups):
        begin, end = group * group_size, tl.minimum((group + 1) * group_size, in_features)
        zero = tl.full((BLOCK_N,), half, tl.float32)
        if zero_point is not None:
            zero = tl.load(zero_point + channel * groups + group, in_channel, half)
        part = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if integers else tl.float32)
        x_sum = tl.zeros((BLOCK_M,), tl.int32)
        code_sum = tl.zeros((BLOCK_N,), tl.int32)
        for first in range(begin, end, BLOCK_K):
            feature = first + tl.arange(0, BLOCK_K)
            mask = in_row[:, None] & (feature < in_features)[None, :]
            left = tl.load(x + row[:, None] * x_stride + feature[None, :], mask, 0)
            codes = _load_codes(
                packed, channel, padded_channels, first, panel_words, BITS, BLOCK_K, PANEL
            )
            if integers:
                part = tl.dot(left, codes, part, out_dtype=tl.int32)
                if zero_point is not None:
                    x_sum += tl.sum(left.to(tl.int32), 1)
                if SHIFTED:  # codes behind the last feature are 0 here
                    code_sum += tl.sum(codes.to(tl.int32), 0)
            else:
                values = _weight_values(
                    codes, zero, codebook, channel, in_channel, codebook_stride, BITS
                )
                part += tl.dot(left.to(DOT), values.to(DOT), input_precision="ieee")

        step = tl.load(scale + channel * groups + group, in_channel, 0)[None, :]
        if integers:
            if zero_point is not None:
                whole = tl.floor(zero)
                part -= (whole.to(tl.int32) - half)[None, :] * x_sum[:, None]
            value = part.to(tl.float32)
            if zero_point is not None:
                value -= (zero - whole)[None, :] * x_sum.to(tl.float32)[:, None]
            if SHIFTED:
                width = (end - begin).to(tl.float64)
                shift = code_sum.to(tl.float64) - width * (zero.to(tl.float64) - half)
                value -= x_zero_point * shift.to(tl.float32)[None, :]
            x_group = tl.minimum(group, x_groups - 1)
            step = tl.load(x_scale + row * x_groups + x_group, in_row, 0)[:, None] * step
        else:
            value = part
        total += value * step

    total = activate(total + load_row_vector(bias, channel, out_features, 0), ACTIVATION)
    mask = in_row[:, None] & in_channel[None, :]
    if residual is not None:
        offset = row[:, None] * residual_stride + channel[None, :]
        total += tl.load(residual + offset, mask, 0).to(tl.float32)
    offset = row[:, None] * out_features + channel[None, :]
    if OUT_GROUP == 0:
        tl.store(out + offset, total.to(out.dtype.element_ty), mask)
    else:
        parts: tl.constexpr = BLOCK_N // OUT_GROUP
        runs = tl.reshape(tl.where(mask, total, 0), (BLOCK_M * parts, OUT_GROUP))
        codes, steps = quantize_rows(runs, OUT_TOP, OUT_TOP)
        tl.store(out + offset, tl.reshape(codes, (BLOCK_M, BLOCK_N)), mask)
        out_groups = tl.cdiv(out_features, OUT_GROUP)
        run = tl.program_id(0) % tiles * parts + tl.arange(0, parts)
        offset = row[:, None] * out_groups + run[None, :]
        mask = in_row[:, None] & (run < out_groups)[None, :]
        tl.store(out_scale + offset, tl.reshape(steps, (BLOCK_M, parts)), mask)


def _words(packed):
    """A packed weight as (panels, words of a panel)."""
    packed = packed.contiguous()
    if packed.storage_offset() % 4:
        packed = packed.clone()
    return packed.view(torch.int32).flatten(1)


def _linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, dtype=None, out_bits=8, out_group_size=0,
):  # fmt: skip
    """The result as `dtype`, and its scale, which is None unless out_group_size is given."""
    if x.dtype != torch.int8 and x_bits:
        x, x_scale = to_int8(x, None, None, x_bits, "absmax", False, 0)
    x, words, residual = row_strided(x), _words(packed), row_strided(residual)
    rows, in_features = x.shape
    block_k = 32 if group_size == 32 else 64  # groups are whole blocks
    out = x.new_empty((rows, out_features), dtype=torch.int8 if out_group_size else dtype)
    out_scale = None
    if out_group_size:
        out_groups = triton.cdiv(out_features, out_group_size)
        out_scale = x.new_empty((rows, out_groups), dtype=torch.float32)
    if rows == 0:
        return out, out_scale
    block_n = max(PANEL, out_group_size)
    tile = dict(_TILES[x.dtype])
    if block_n > 2 * PANEL:
        tile["BLOCK_M"] = 32  # as many sums as fit a program's registers
    programs = triton.cdiv(rows, tile["BLOCK_M"]) * triton.cdiv(out_features, block_n)
    _lowbit_kernel[(programs,)](
        x, vector(x_scale), words, vector(scale), vector(zero_point), vector(codebook),
        vector(bias), residual, out, out_scale,
        rows, in_features, out_features, group_size or in_features, scale.shape[1],
        x.stride(0), 1 if x_scale is None else x_scale.shape[1], words.stride(0),
        codebook.shape[1] if codebook is not None and codebook.dim() == 2 else 0,
        row_stride(residual), x_zero_point,
        BITS=bits, ACTIVATION=epilogue, DOT=None if x.dtype == torch.int8 else dot_type(x.dtype),
        OUT_TOP=2 ** (out_bits - 1) - 1, OUT_GROUP=out_group_size, SHIFTED=x_zero_point != 0,
        PANEL=PANEL, BLOCK_N=block_n, BLOCK_K=block_k, **tile,
    )  # fmt: skip
    return out, out_scale


@launcher
def lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue, residual, x_zero_point, out_dtype,
):  # fmt: skip
    return _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, epilogue, residual, x_zero_point, out_dtype or x.dtype,
    )[0]  # fmt: skip


@launcher
def lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue, out_bits, out_group_size,
):  # fmt: skip
    """Groups are quantized where they are summed; whole rows, which no program holds, afterwards."""
    out, out_scale = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, epilogue, None, 0.0, torch.float32, out_bits, out_group_size,
    )  # fmt: skip
    if out_scale is None:
        return to_int8(out, None, None, out_bits, "absmax", False, 0)
    return out, out_scale


@launcher
def lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, norm_weight, norm_bias, eps, quantize, quant_weight, quant_bias,
):  # fmt: skip
    total, _ = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, dtype=torch.float32,
    )  # fmt: skip
    operands = total, residual, None, norm_weight, norm_bias
    if quantize:
        return norm_quantize(*operands, quant_weight, quant_bias, eps, 8, residual.dtype)
    out = normalize(*operands, eps, False, True, residual.dtype)[0]
    return out, x.new_empty((0, 0), dtype=torch.int8), scale.new_empty((0, 0))
