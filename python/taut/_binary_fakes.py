"""Shapes and dtypes of what the binary ops give: the fakes of registry.py's last rows."""

import torch

WORD = 64  # bits per word


def words_of(columns):
    return (columns + WORD - 1) // WORD


def _bits(x, rows, columns, rails):
    shape = (rows, words_of(columns)) if rails == 1 else (rows, rails, words_of(columns))
    return x.new_empty(shape, dtype=torch.int64)


def pack_bits(x, threshold=None, rails=1, tie="strict"):
    return _bits(x, x.shape[0], x.shape[1], rails)


def unpack_bits(bits, columns):
    return bits.new_empty((bits.shape[0], columns), dtype=torch.int8)


def binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, epilogue="none", residual=None,
    out_dtype=None,
):  # fmt: skip
    return x.new_empty((x.shape[0], out_features), dtype=out_dtype or torch.float32)


def binary_linear_bits(x, packed, thresholds, out_features, in_features):
    return _bits(x, x.shape[0], out_features, 1 if thresholds.dim() == 1 else 2)


def binary_linear_layer_norm(
    x, x_scale, packed, scale, bias, in_features, residual, weight, norm_bias, eps,
    bit_threshold=None,
):  # fmt: skip
    rows, columns = residual.shape
    return residual.new_empty((rows, columns)), _bits(x, rows, columns, 1)


def binary_attention(
    q, k, v, cu_seqlens, mode="bool", tie="strict", softmax_scale=0.125, alpha=0.0,
    thresholds=None, rails=2,
):  # fmt: skip
    tokens, heads = q.shape
    if rails == 0:
        return q.new_empty((tokens, heads, WORD), dtype=torch.int32)
    return _bits(q, tokens, heads * WORD, rails)


def binary_qk_attention(
    q, k, v, cu_seqlens, softmax_scale=0.125, alibi_slopes=None, v_scale=None, out_dtype=None
):
    return v.new_empty(v.shape, dtype=out_dtype or v.dtype)
