"""Packed signs, and linear layers over 1-bit weights: bits in memory, int8 products.

GPUs have no fast count of bits (16 lanes per clock on NVIDIA's), but int8 tensor cores: a word of a
row and a word of each of a panel's 64 channels become a tile of signs of 64 input features.
"""

import torch
import triton
import triton.language as tl

from taut.formats import PANEL, WORD, words_of
from taut.triton_kernels._launch import launcher, row_strided, vector
from taut.triton_kernels.activation import activate
from taut.triton_kernels.norm import load_row_vector, normalize

# One panel by 64 rows, 64 input features at a time: what a word holds. Sums are whole numbers, so
# nothing of this touches a result.
_TILE = {"BLOCK_M": 64, "num_warps": 4, "num_stages": 3}
_ROWS = 32  # rows of a program that packs or unpacks one word of each


@triton.jit
def pack_lanes(flags, WORD: tl.constexpr):
    """Flags (rows, WORD) -> int64 (rows,), the first lane lowest."""
    return tl.sum(flags.to(tl.int64) << tl.arange(0, WORD)[None, :], 1)


@triton.jit
def bits_of(words, WORD: tl.constexpr):
    """int64 (rows,) -> 0 or 1, int8 (rows, WORD)."""
    return ((words[:, None] >> tl.arange(0, WORD)[None, :]) & 1).to(tl.int8)


@triton.jit
def signs_of(words, WORD: tl.constexpr):
    """int64 (rows,) -> -1 or 1, int8 (rows, WORD)."""
    return bits_of(words, WORD) * 2 - 1


@triton.jit
def bits_of_columns(words, WORD: tl.constexpr):
    """int64 (columns,) -> 0 or 1, int8 (WORD, columns)."""
    return ((words[None, :] >> tl.arange(0, WORD)[:, None]) & 1).to(tl.int8)


@triton.jit(do_not_specialize=["rows"])
def _pack_bits_kernel(
    x, threshold, out, rows, columns, words, x_row,
    AT_LEAST: tl.constexpr, RAILS: tl.constexpr, ROWS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // words).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(0) % words
    column = word * WORD + tl.arange(0, WORD)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * x_row + column[None, :]
    values = tl.load(x + offset, inside, 0).to(tl.float32)
    limit = load_row_vector(threshold, column, columns, 0)
    above = values >= limit if AT_LEAST else values > limit
    at = out + row * (RAILS * words) + word
    tl.store(at, pack_lanes(above & inside, WORD), row < rows)
    if RAILS == 2:
        tl.store(at + words, pack_lanes((values < limit) & inside, WORD), row < rows)


@triton.jit(do_not_specialize=["rows"])
def _unpack_bits_kernel(
    bits, out, rows, columns, words, bits_row, bits_rail,
    RAILS: tl.constexpr, ROWS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // words).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(0) % words
    at = bits + row * bits_row + word
    signs = bits_of(tl.load(at, row < rows, 0), WORD)
    if RAILS == 2:
        signs -= bits_of(tl.load(at + bits_rail, row < rows, 0), WORD)
    else:
        signs = signs * 2 - 1
    column = word * WORD + tl.arange(0, WORD)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], signs, mask)


@triton.jit(do_not_specialize=["rows"])
def _binary_linear_kernel(
    x, x_scale, packed, scale, bias, residual, thresholds, out,
    rows, in_features, out_features, words, x_row, x_rail, residual_row,
    INPUT: tl.constexpr, RAILS: tl.constexpr, ACTIVATION: tl.constexpr,
    WORD: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    panels = (out_features + WORD - 1) // WORD
    panel = tl.program_id(0) % panels
    row = (tl.program_id(0) // panels).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, WORD)
    weights = packed + panel.to(tl.int64) * words * WORD + lane
    sums = tl.zeros((BLOCK_M, WORD), tl.int32)
    for word in range(0, words):
        feature = word * WORD + lane
        if INPUT == "codes":
            mask = (row < rows)[:, None] & (feature < in_features)[None, :]
            left = tl.load(x + row[:, None] * x_row + feature[None, :], mask, 0)
        else:
            at = x + row * x_row + word
            positive = tl.load(at, row < rows, 0)
            if INPUT == "two rails":
                left = bits_of(positive, WORD) - bits_of(tl.load(at + x_rail, row < rows, 0), WORD)
            else:
                left = signs_of(positive, WORD)
            left = tl.where((feature < in_features)[None, :], left, 0).to(tl.int8)
        right = bits_of_columns(tl.load(weights + word * WORD), WORD) * 2 - 1
        sums += tl.dot(left, right, out_dtype=tl.int32)
    channel = panel * WORD + lane
    exists = channel < out_features
    if RAILS > 0:
        highest: tl.constexpr = 2147483647  # above it is no sum
        above = tl.load(thresholds + channel, exists, highest)
        at = out + row * (RAILS * panels) + panel
        tl.store(at, pack_lanes(sums > above[None, :], WORD), row < rows)
        if RAILS == 2:
            low = tl.load(thresholds + out_features + channel, exists, highest)
            high = tl.load(thresholds + 2 * out_features + channel, exists, 0)
            negative = (sums > low[None, :]) & (sums < high[None, :])
            tl.store(at + panels, pack_lanes(negative, WORD), row < rows)
    else:
        factor = load_row_vector(scale, channel, out_features, 1)
        if x_scale is not None:
            factor = tl.load(x_scale + row, row < rows, 0)[:, None] * factor
        total = sums.to(tl.float32) * factor + load_row_vector(bias, channel, out_features, 0)
        total = activate(total, ACTIVATION)
        mask = (row < rows)[:, None] & exists[None, :]
        if residual is not None:
            offset = row[:, None] * residual_row + channel[None, :]
            total += tl.load(residual + offset, mask, 0).to(tl.float32)
        offset = row[:, None] * out_features + channel[None, :]
        tl.store(out + offset, total.to(out.dtype.element_ty), mask)


def _multiply(
    x, x_scale, packed, in_features, out_features, out, *, scale=None, bias=None, residual=None,
    thresholds=None, activation="none", rails=0,
):  # fmt: skip
    x, residual = row_strided(x), row_strided(residual)
    rows, panels = x.shape[0], packed.shape[0]
    if rows:
        codes = x.dtype == torch.int8
        _binary_linear_kernel[(triton.cdiv(rows, _TILE["BLOCK_M"]) * panels,)](
            x, vector(x_scale), packed.contiguous(), vector(scale), vector(bias), residual,
            vector(thresholds), out, rows, in_features, out_features, packed.shape[1],
            x.stride(0), x.stride(1) if x.dim() == 3 else 0,
            0 if residual is None else residual.stride(0),
            INPUT="codes" if codes else "one rail" if x.dim() == 2 else "two rails",
            RAILS=rails, ACTIVATION=activation, WORD=PANEL, **_TILE,
        )  # fmt: skip
    return out


@launcher
def pack_bits(x, threshold, rails, tie):
    x = row_strided(x)
    rows, columns = x.shape
    words = words_of(columns)
    shape = (rows, words) if rails == 1 else (rows, rails, words)
    out = x.new_empty(shape, dtype=torch.int64)
    if out.numel():
        _pack_bits_kernel[(triton.cdiv(rows, _ROWS) * words,)](
            x, vector(threshold), out, rows, columns, words, x.stride(0),
            AT_LEAST=tie == "geq", RAILS=rails, ROWS=_ROWS, WORD=WORD,
        )  # fmt: skip
    return out


@launcher
def unpack_bits(bits, columns):
    bits = row_strided(bits)
    rows, words = bits.shape[0], words_of(columns)
    out = bits.new_empty((rows, columns), dtype=torch.int8)
    if out.numel():
        _unpack_bits_kernel[(triton.cdiv(rows, _ROWS) * words,)](
            bits, out, rows, columns, words, bits.stride(0), bits.stride(1),
            RAILS=bits.dim() - 1, ROWS=_ROWS, WORD=WORD,
        )  # fmt: skip
    return out


@launcher
def binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, epilogue, residual, out_dtype
):
    out = x.new_empty((x.shape[0], out_features), dtype=out_dtype or torch.float32)
    return _multiply(
        x, x_scale, packed, in_features, out_features, out,
        scale=scale, bias=bias, residual=residual, activation=epilogue,
    )  # fmt: skip


@launcher
def binary_linear_bits(x, packed, thresholds, out_features, in_features):
    rails, panels = thresholds.dim(), packed.shape[0]
    shape = (x.shape[0], panels) if rails == 1 else (x.shape[0], rails, panels)
    out = x.new_empty(shape, dtype=torch.int64)
    return _multiply(
        x, None, packed, in_features, out_features, out, thresholds=thresholds, rails=rails
    )


@launcher
def binary_linear_layer_norm(
    x,
    x_scale,
    packed,
    scale,
    bias,
    in_features,
    residual,
    norm_weight,
    norm_bias,
    eps,
    bit_threshold,
):
    total = x.new_empty(residual.shape, dtype=torch.float32)
    _multiply(x, x_scale, packed, in_features, residual.shape[1], total, scale=scale, bias=bias)
    out = normalize(total, residual, None, norm_weight, norm_bias, eps, False, True, torch.float32)[
        0
    ]
    return out.to(residual.dtype), pack_bits(out, bit_threshold, 1, "strict")
