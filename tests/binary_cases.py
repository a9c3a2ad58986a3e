"""Inputs and oracles that the tests of binary attention share."""

import torch

from taut.reference import binary_attention as reference


def random_words(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape)


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
