"""Inputs and oracles that the tests of binary attention share."""

import torch

from helpers import RAGGED_LENGTHS, assert_close_by_comparison, cu_seqlens_of
from taut.ops.binary_gemm import pack_binary_weight
from taut.reference import binary_attention as reference
from taut.reference.binary_gemm import pack_bits

# On either side of every limit of a kernel: rows of a warp and of a tile, keys of a step.
LENGTHS = (*RAGGED_LENGTHS, 257, 16, 17, 32)
BEHIND = 3  # rows after the last sequence
HEADS = 3
MODES = {
    "bool": {},
    "bool geq": {"tie": "geq"},
    "elastic": {"mode": "elastic", "alpha": 0.02},
    "elastic, sharp": {"mode": "elastic", "alpha": 0.3, "softmax_scale": 1.0},
    "elastic, flat": {"mode": "elastic", "alpha": 0.01, "softmax_scale": 0.001},
    "elastic, nothing": {"mode": "elastic", "alpha": 3.0},
    "elastic, everything": {"mode": "elastic", "alpha": 1e-7},
}


def random_words(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape)


def inputs(lengths=LENGTHS, heads=HEADS):
    """Words of q, k, v; some keys equal or opposite to queries, so that all 65 products occur."""
    tokens = sum(lengths) + BEHIND
    q, k, v = random_words(3, tokens, heads)
    for token in range(0, tokens, 5):
        flipped = int(torch.randint(0, 65, ()))
        word = (1 << flipped) - 1
        k[token] = q[tokens // 2] ^ (word - (1 << 64) if word >= 1 << 63 else word)
    return q, k, v, cu_seqlens_of(lengths)


def qk_inputs(lengths, dtype, heads=HEADS):
    """The same with values of `dtype`."""
    q, k, _, cu = inputs(lengths, heads)
    return q, k, torch.randn(q.shape[0], heads, 64).to(dtype), cu


def int8_inputs(lengths, heads=HEADS):
    """(q, k, v, cu_seqlens, v_scale) with values of int8."""
    q, k, _, cu = inputs(lengths, heads)
    v = torch.randint(-128, 128, (q.shape[0], heads, 64)).to(torch.int8)
    return q, k, v, cu, torch.rand(q.shape[0], 1)


def scales_of_every_size(lengths, smallest, largest):
    """(total_tokens, 1), powers of ten: sequences of zeros, of the smallest, of the largest and of
    all sizes with zeros among them, in turn."""
    parts = []
    for i, length in enumerate((*lengths, BEHIND)):
        sizes = smallest + (largest - smallest) * torch.rand(length, 1)
        spread = (torch.full((length, 1), smallest), torch.full((length, 1), largest), sizes)
        scales = 10.0 ** spread[(i - 1) % 4 % 3] * torch.rand(length, 1)
        parts.append(scales * (torch.rand(length, 1) < (0, 1, 1, 0.9)[i % 4]))
    return torch.cat(parts)


def random_thresholds(rails):
    """None, and numbers around 0, for attention over HEADS heads."""
    shape = (HEADS, 64) if rails == 1 else (3, HEADS, 64)
    return None, torch.randint(-5, 6, shape, dtype=torch.int32)


def some_zeros(*shape):
    x = torch.randn(shape)
    return x.masked_fill(torch.rand(shape) < 0.1, 0.0)


def random_bits(rows, columns, rails=1):
    return pack_bits(some_zeros(rows, columns), None, rails)


def random_weight(out_features, in_features):
    return pack_binary_weight(random_bits(out_features, in_features))


def plain_qk_only(q, k, v, cu_seqlens, scale, slopes):
    """The reference's maths with every step rounded to the dtype of v."""
    out = torch.zeros_like(v)
    signs = [reference._signs(t).to(v.dtype) for t in (q, k)]
    offsets = cu_seqlens.tolist()
    for begin, end in zip(offsets, offsets[1:], strict=False):
        query, key = (t[:, begin:end] for t in signs)
        scores = query @ key.transpose(1, 2) * scale
        if slopes is not None:
            place = torch.arange(end - begin)
            scores = scores - (slopes[:, None, None] * (place[:, None] - place).abs()).to(v.dtype)
        out[begin:end] = (scores.softmax(2) @ v[begin:end].transpose(0, 1)).transpose(0, 1)
    return out


def assert_int8_attention(out, q, k, v, cu_seqlens, v_scale, scale=0.125, slopes=None):
    """`out` agrees with the reference, every sequence by its own largest value: scales may differ
    from one to the next."""
    wide = v.double() * v_scale[:, :, None]
    exact = reference.binary_qk_attention(q, k, wide, cu_seqlens, scale, slopes)
    plain = plain_qk_only(q, k, wide.to(out.dtype), cu_seqlens, scale, slopes)
    offsets = cu_seqlens.tolist()
    for rows in map(slice, offsets, offsets[1:]):
        assert_close_by_comparison(out[rows], plain[rows], exact[rows])
    assert (out[offsets[-1] :] == 0).all()
