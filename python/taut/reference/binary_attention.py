"""What attention over packed signs means. A head has 64 channels: one word per token and head.

For query i and key j of one sequence, with dot = sum over channels of sign(q_i) sign(k_j)

    bool      A_ij = [dot > 0], or [dot >= 0] for tie "geq"
    elastic   A_ij = [P_ij > alpha / 2], P = softmax of softmax_scale * dot
    both      ctx_i = sum over j of A_ij sign(v_j), whole numbers
    qk_only   out_i = softmax(softmax_scale * dot - alibi_slope * |i - j|) v, v times v_scale

A sequence's products take 65 values, so with distance = (64 - dot) / 2 and least the row's smallest,
elastic needs a table only, of whole numbers, which makes it the same on every backend:

    E[x]  = round(exp(-2 softmax_scale x) * (2^24 - 1)) for x = 0 ... 64
    A_ij  = [E[distance - least] > floor(alpha / 2 * sum over keys of E[distance - least])]

Sources: Qin et al., "BiBERT", 2022 (bool); Liu et al., "BiT", 2022 (elastic); HAD, 2025, and
BinaryAttention, 2026 (qk_only).
"""

import math

import torch

from taut.formats import WORD
from taut.reference._check import (
    FLOATS,
    REFERENCE_FLOATS,
    check_choice,
    check_cu_seqlens,
    check_optional_tensor,
    check_tensor,
)
from taut.reference.binary_gemm import (
    FP32,
    INT64,
    TIES,
    _check_rails,
    check_thresholds,
    compare,
    unpack_flags,
)

MODES = ("bool", "elastic")
LARGEST_EXPONENTIAL = 2**24 - 1


def _check_operands(op, q, k, cu_seqlens, softmax_scale):
    check_tensor(op, "q", q, (None, None), "(total_tokens, heads) words of 64 signs", INT64)
    shape = tuple(q.shape)
    check_tensor(op, "k", k, shape, f"{shape} like q", INT64)
    check_cu_seqlens(op, "cu_seqlens", cu_seqlens, shape[0])
    if not (softmax_scale > 0 and math.isfinite(softmax_scale)):
        raise ValueError(f"{op}: softmax_scale must be positive, got {softmax_scale}")


def check_binary_attention(
    q, k, v, cu_seqlens, mode="bool", tie="strict", softmax_scale=0.125, alpha=0.0,
    thresholds=None, rails=2,
):  # fmt: skip
    op = "binary_attention"
    _check_operands(op, q, k, cu_seqlens, softmax_scale)
    shape = tuple(q.shape)
    check_tensor(op, "v", v, shape, f"{shape} like q", INT64)
    check_choice(op, "mode", mode, MODES)
    check_choice(op, "tie", tie, TIES)
    if mode == "elastic" and not 0 < alpha < math.inf:
        raise ValueError(f"{op}: alpha must be positive in mode elastic, got {alpha}")
    _check_rails(op, "rails", rails, (0, 1, 2))
    if thresholds is not None:
        wanted = 3 if rails == 2 else 2
        if rails == 0 or isinstance(thresholds, torch.Tensor) and thresholds.dim() != wanted:
            accepted = ("None", (shape[1], WORD), (3, shape[1], WORD))[rails]
            came = tuple(thresholds.shape)
            raise ValueError(
                f"{op}: thresholds must be {accepted} with rails = {rails}, got {came}"
            )
        check_thresholds(op, thresholds, (shape[1], WORD))


def check_binary_qk_attention(
    q, k, v, cu_seqlens, softmax_scale=0.125, alibi_slopes=None, v_scale=None, out_dtype=None
):
    op = "binary_qk_attention"
    _check_operands(op, q, k, cu_seqlens, softmax_scale)
    shape = (*q.shape, WORD)
    check_tensor(op, "v", v, shape, f"{shape}", (*REFERENCE_FLOATS, torch.int8))
    if v.dtype == torch.int8:
        if v_scale is None:
            raise ValueError(f"{op}: v_scale must be given with v of int8, got None")
        if out_dtype not in FLOATS:
            raise ValueError(
                f"{op}: out_dtype must be float32, bfloat16 or float16 with v of int8, "
                f"got {out_dtype}"
            )
        scales = (shape[0], 1)
        check_tensor(op, "v_scale", v_scale, scales, f"{scales}, one per token", FP32)
    else:
        if v_scale is not None:
            raise ValueError(f"{op}: v_scale must be None unless v is int8, got a tensor")
        if out_dtype not in (None, v.dtype):
            raise ValueError(f"{op}: out_dtype must be that of v, {v.dtype}, got {out_dtype}")
    heads = q.shape[1]
    meaning = f"({heads},), one per head"
    check_optional_tensor(op, "alibi_slopes", alibi_slopes, (heads,), meaning, FP32)


def exponentials(softmax_scale: float) -> list[int]:
    """E of the module's docstring."""
    return [round(math.exp(-2 * softmax_scale * x) * LARGEST_EXPONENTIAL) for x in range(WORD + 1)]


def _signs(words):
    """(tokens, heads) words -> -1 or +1, fp32 (heads, tokens, 64)."""
    return (2.0 * unpack_flags(words.T[..., None], WORD) - 1).float()


def _sequences(cu_seqlens):
    offsets = cu_seqlens.tolist()
    return [slice(*pair) for pair in zip(offsets, offsets[1:], strict=False)]


def _attended(dot, mode, tie, softmax_scale, alpha):
    """A as 0 or 1, fp32 (heads, queries, keys)."""
    if mode == "bool":
        return (dot > 0 if tie == "strict" else dot >= 0).float()
    distance = ((WORD - dot) / 2).long()
    above_least = distance - distance.amin(2, keepdim=True)
    table = torch.tensor(exponentials(softmax_scale), device=dot.device)
    e = table[above_least]
    limit = (e.sum(2, keepdim=True).double() * (alpha / 2)).floor()
    return (e > limit).float()


def binary_attention(
    q, k, v, cu_seqlens, mode="bool", tie="strict", softmax_scale=0.125, alpha=0.0,
    thresholds=None, rails=2,
):  # fmt: skip
    tokens, heads = q.shape
    sums = torch.zeros((tokens, heads, WORD), device=q.device)
    for rows in _sequences(cu_seqlens):
        if rows.start < rows.stop:
            dot = _signs(q[rows]) @ _signs(k[rows]).transpose(1, 2)
            a = _attended(dot, mode, tie, softmax_scale, alpha)
            sums[rows] = (a @ _signs(v[rows])).transpose(0, 1)
    if rails == 0:
        return sums.to(torch.int32)
    if thresholds is None:
        thresholds = torch.zeros((1, heads, WORD), dtype=torch.int32, device=q.device)
        if rails == 2:
            lowest = torch.full_like(thresholds, torch.iinfo(torch.int32).min)
            thresholds = torch.cat((thresholds, lowest, thresholds))
        else:
            thresholds = thresholds[0]
    bits = compare(sums.double(), thresholds)
    bits[int(cu_seqlens[-1]) :] = 0
    return bits


def binary_qk_attention(
    q, k, v, cu_seqlens, softmax_scale=0.125, alibi_slopes=None, v_scale=None, out_dtype=None
):
    out_dtype = out_dtype or v.dtype
    if v_scale is not None:
        v = v * v_scale[:, :, None]
    wide = torch.promote_types(v.dtype, torch.float32)
    out = torch.zeros(v.shape, dtype=wide, device=v.device)
    for rows in _sequences(cu_seqlens):
        scores = (_signs(q[rows]) @ _signs(k[rows]).transpose(1, 2)).to(wide) * softmax_scale
        if alibi_slopes is not None:
            place = torch.arange(rows.stop - rows.start, device=v.device)
            distance = (place[:, None] - place).abs()
            scores = scores - alibi_slopes[:, None, None] * distance
        values = v[rows].to(wide).transpose(0, 1)
        out[rows] = (scores.softmax(2) @ values).transpose(0, 1)
    return out.to(out_dtype)
