"""Inputs and oracles that the attention tests share."""

import functools
import math
from unittest import mock

import torch

from helpers import RAGGED_LENGTHS, assert_close_by_comparison, cu_seqlens_of
from taut.reference import attention as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (*RAGGED_LENGTHS, 257)  # 257 keys: one more than a block of the CPU kernels
HEADS = 2
DEFAULTS = {
    "softmax_scale": None, "alibi_slopes": None, "relative_bias": None, "causal": False,
    "window_size": (-1, -1), "softcap": 0.0, "clip": None, "dropout_p": 0.0, "dropout_seed": 0,
}  # fmt: skip
OPTION_NAMES = (
    "softmax_scale", "alibi_slopes", "relative_bias", "causal", "window_left", "window_right",
    "softcap", "clip", "dropout_p", "dropout_seed",
)  # fmt: skip
OPTIONS = {
    "none": {},
    "scale": {"softmax_scale": 0.05},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.02])},
    "alibi_per_sequence": {"alibi_slopes": torch.rand(len(LENGTHS), HEADS)},
    "relative_bias": {"relative_bias": torch.randn(HEADS, 2 * 20 + 1)},
    "causal": {"causal": True},
    "window": {"window_size": (70, 5)},
    "window_left": {"window_size": (3, -1)},
    "softcap": {"softcap": 1.5},
    "clip": {"clip": (1.03, -0.01)},
    "dropout": {"dropout_p": 0.3, "dropout_seed": (5 << 40) + 7},
    "all": {
        "alibi_slopes": torch.tensor([0.1, 0.01]), "relative_bias": torch.randn(HEADS, 7),
        "causal": True, "window_size": (90, 4), "softcap": 3.0, "clip": (1.1, -0.02),
        "dropout_p": 0.1, "dropout_seed": 3,
    },
}  # fmt: skip


def arguments(options, head_dim):
    """The op's positional options, from keywords of the public function."""
    found = {**DEFAULTS, **options}
    if found["softmax_scale"] is None:
        found["softmax_scale"] = 1 / math.sqrt(head_dim)
    found["window_left"], found["window_right"] = found.pop("window_size")
    return tuple(found[name] for name in OPTION_NAMES)


def random_qkv(lengths_q, lengths_k, heads, heads_kv, head_dim, dtype):
    q = torch.randn(sum(lengths_q), heads, head_dim)
    k, v = torch.randn(2, sum(lengths_k), heads_kv, head_dim)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def plain_attention(q, k, v, cu_q, cu_k, scale, slopes, relative, causal, left, right, softcap,
                    clip, dropout_p, seed):  # fmt: skip
    """The same maths with every step rounded to the dtype of q, as eager torch would."""
    dtype, heads = q.dtype, q.shape[1]
    out = torch.zeros_like(q)
    bounds = list(zip(cu_q.tolist(), cu_q[1:].tolist(), cu_k.tolist(), cu_k[1:].tolist(),
                      strict=False))  # fmt: skip
    for b, (q0, q1, k0, k1) in enumerate(bounds):
        if q0 == q1 or k0 == k1:
            continue
        query = q[q0:q1].transpose(0, 1)
        key, value = (t[k0:k1].repeat_interleave(heads // k.shape[1], 1).transpose(0, 1)
                      for t in (k, v))  # fmt: skip
        scores = (query @ key.transpose(1, 2)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        i = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        distance = i - torch.arange(k1 - k0)
        bias = torch.zeros(heads, *distance.shape)
        if slopes is not None:
            bias -= (slopes[b] if slopes.dim() == 2 else slopes)[:, None, None] * distance.abs()
        if relative is not None:
            limit = relative.shape[1] // 2
            bias += relative[:, (-distance).clamp(-limit, limit) + limit]
        right = 0 if causal else right
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if right >= 0:
            hidden |= distance < -right
        if left >= 0:
            hidden |= distance > left
        scores = (scores + bias.to(dtype)).masked_fill(hidden, float("-inf"))
        p = scores.softmax(-1).masked_fill(hidden.all(1)[:, None], 0)
        if clip is not None:
            p = ((clip[0] - clip[1]) * p + clip[1]).clamp(0, 1).masked_fill(hidden, 0)
        if dropout_p:
            keep = reference.dropout_keep(dropout_p, seed, heads, torch.arange(q0, q1), k1 - k0)
            p = p * keep / (1 - dropout_p)
        out[q0:q1] = (p.to(dtype) @ value).transpose(0, 1)
    return out


@functools.cache
def qkvpacked_case(dtype, with_bias):
    """qkv, bias, cu_seqlens, then what plain torch and the reference in fp64 give; causal."""
    qkv = torch.randn(sum(LENGTHS), 3, HEADS, 40).to(dtype)
    bias = torch.randn(3, HEADS, 40).to(dtype) if with_bias else None
    cu, options = cu_seqlens_of(LENGTHS), arguments({"causal": True}, 40)
    q, k, v = (qkv + bias if with_bias else qkv).unbind(1)
    plain = plain_attention(q, k, v, cu, cu, *options)
    wide = bias.double() if with_bias else None
    return (
        qkv,
        bias,
        cu,
        plain,
        reference.varlen_attention_qkvpacked(qkv.double(), wide, cu, *options),
    )


@functools.cache
def forward_case(option, dtype, head_dim=32, heads_kv=HEADS, cross=False, lengths=LENGTHS):
    lengths_k = (*lengths[3:], 40, 0, 3) if cross else lengths
    return _case(option, dtype, lengths, lengths_k, heads_kv, head_dim)


@functools.cache
def long_case(option):
    lengths = (255, 1000, 256)
    return _case(option, torch.bfloat16, lengths, lengths, HEADS, 32)


def _case(option, dtype, lengths_q, lengths_k, heads_kv, head_dim):
    """q, k, v, cu_seqlens_q, cu_seqlens_k, then what plain torch and the reference in fp64 give."""
    q, k, v = random_qkv(lengths_q, lengths_k, HEADS, heads_kv, head_dim, dtype)
    cu_q, cu_k = cu_seqlens_of(lengths_q), cu_seqlens_of(lengths_k)
    options = arguments(OPTIONS[option], head_dim)
    plain = plain_attention(q, k, v, cu_q, cu_k, *options)
    exact = reference.varlen_attention(q.double(), k.double(), v.double(), cu_q, cu_k, *options)
    return q, k, v, cu_q, cu_k, plain, exact


def assert_gives(out, lse, case, slopes=None):
    """What a kernel on the side of a GPU made of a case, brought to the CPU."""
    *_, plain, (exact, exact_lse) = case
    assert_close_by_comparison(out, plain, exact)
    assert torch.equal(lse.isneginf(), exact_lse.isneginf())
    finite = exact_lse.isfinite()
    assert_logsumexp(lse[finite], exact_lse[finite], slopes)


def assert_logsumexp(lse, exact, slopes=None):
    """With ALiBi a key in the tile before a row's has the slope times a tile's 64 keys added and taken
    away, in units of log2(e): its rounding, half a unit each way, grows with the slope. Steep slopes
    leave only keys beside the diagonal, whose bias is small."""
    steepest = 0.0 if slopes is None else slopes.abs().max().clamp(max=5.0).item()
    rounding = 4e-6 * exact.abs().clamp(min=1) + steepest * 64 * 1.45 * 2.0**-24
    assert ((lse - exact).abs() <= rounding).all()


def clear_of_kinks(grad, q, k, v, cu_q, cu_k, *chosen):
    """`grad` with zeros in rows where rounding decides whether `clip` clamps a probability.

    The gradient jumps there, so fp32 and fp64 may rightly differ; without a gradient of the row's
    output both sides are zero.
    """
    clear, stretch = grad.clone(), reference._stretch
    lengths = cu_q.diff()
    queries = iter(clear[: cu_q[-1]].split(lengths[lengths > 0].tolist()))

    def observed(p, scores, clip):
        stretched = stretch(p, scores, clip)
        gap = torch.minimum(stretched.abs(), (stretched - 1).abs())
        near = (gap < 1e-6) & ~scores.isneginf()
        next(queries)[near.any(2).T] = 0
        return stretched

    with mock.patch.object(reference, "_stretch", observed):
        reference.varlen_attention(*(t.double() for t in (q, k, v)), cu_q, cu_k, *chosen)
    return clear


def plain_backward(*args):
    """The gradients of the reference at the dtype of q, as eager torch would."""
    with mock.patch.object(reference, "_wide", lambda t: t):
        return reference.varlen_attention_backward(*args)


def assert_backward_gives(got, grad, q, k, v, cu_q, cu_k, *chosen):
    """dq, dk, dv, dslopes and drelative_bias of a kernel on the side of a GPU, brought to the CPU."""
    wide = [t.double() for t in (q, k, v)]
    found = reference.varlen_attention(*wide, cu_q, cu_k, *chosen)
    exact = reference.varlen_attention_backward(grad.double(), *wide, *found, cu_q, cu_k, *chosen)
    found = reference.varlen_attention(q, k, v, cu_q, cu_k, *chosen)
    plain = plain_backward(grad, q, k, v, *found, cu_q, cu_k, *chosen)
    for actual, at_dtype, want in zip(got, plain, exact, strict=True):
        assert_close_by_comparison(actual, at_dtype.to(actual.dtype), want)
