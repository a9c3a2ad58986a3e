"""Shapes and dtypes of what binary attention gives."""

import torch

from taut.fakes.binary_gemm import packed_bits
from taut.formats import WORD


def binary_attention(
    q, k, v, cu_seqlens, mode="bool", tie="strict", softmax_scale=0.125, alpha=0.0,
    thresholds=None, rails=2,
):  # fmt: skip
    tokens, heads = q.shape
    if rails == 0:
        return q.new_empty((tokens, heads, WORD), dtype=torch.int32)
    return packed_bits(q, tokens, heads * WORD, rails)


def binary_qk_attention(
    q, k, v, cu_seqlens, softmax_scale=0.125, alibi_slopes=None, v_scale=None, out_dtype=None
):
    return v.new_empty(v.shape, dtype=out_dtype or v.dtype)
