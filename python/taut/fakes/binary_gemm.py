"""Shapes and dtypes of what the ops over packed bits give."""

import torch

from taut.formats import words_of


def packed_bits(x, rows, columns, rails):
    """Words of `columns` signs for each of `rows` rows, on the device of x."""
    shape = (rows, words_of(columns)) if rails == 1 else (rows, rails, words_of(columns))
    return x.new_empty(shape, dtype=torch.int64)


def pack_bits(x, threshold=None, rails=1, tie="strict"):
    return packed_bits(x, x.shape[0], x.shape[1], rails)


def unpack_bits(bits, columns):
    return bits.new_empty((bits.shape[0], columns), dtype=torch.int8)


def binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, epilogue="none", residual=None,
    out_dtype=None,
):  # fmt: skip
    return x.new_empty((x.shape[0], out_features), dtype=out_dtype or torch.float32)


def binary_linear_bits(x, packed, thresholds, out_features, in_features):
    return packed_bits(x, x.shape[0], out_features, 1 if thresholds.dim() == 1 else 2)


def binary_linear_layer_norm(
    x, x_scale, packed, scale, bias, in_features, residual, norm_weight, norm_bias, eps,
    bit_threshold=None,
):  # fmt: skip
    rows, columns = residual.shape
    return residual.new_empty((rows, columns)), packed_bits(x, rows, columns, 1)
