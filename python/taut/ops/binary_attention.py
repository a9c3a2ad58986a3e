"""Attention over packed signs within each sequence of a packed batch, for inference."""

import torch

from taut import registry
from taut.ops._call import call
from taut.reference._check import check_choice

_ATTENTION = registry.OPS["binary_attention"]
_QK_ATTENTION = registry.OPS["binary_qk_attention"]


def binary_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    mode: str = "bool",
    tie: str = "strict",
    softmax_scale: float = 0.125,
    alpha: float = 0.0,
    thresholds: torch.Tensor | None = None,
    rails: int = 2,
    alibi_slopes: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Attention whose queries and keys are signs, over heads of 64 channels; for inference.

    With dot the product of the signs of query i and key j of a sequence:

        "bool"     A = [dot > 0], or [dot >= 0] for tie "geq"; ctx = A sign(v)
        "elastic"  A = [softmax(softmax_scale * dot) > alpha / 2]; ctx = A sign(v)
        "qk_only"  ctx = softmax(softmax_scale * dot - slope * |i - j|) v

    In the first two v is signs, ctx whole numbers, and what comes out is, for `rails` = 0, ctx
    itself; 1: the bits [ctx > t]; 2: two rails (see `pack_bits`), +1 where ctx > t[0] and -1 where
    t[1] < ctx < t[2]. A word of the result is a head: as (total, heads) or (total, 2, heads) it is
    what `binary_linear` takes. "elastic" takes its softmax in whole numbers from a table of 65
    exponentials relative to the row's largest, 24 bits each, so that the result is the same to the
    bit on every backend.

    Args:
        q, k: int64 (total_tokens, heads); a word is the 64 signs of a head, lowest bit first, as
            `pack_bits` and `binary_linear_bits` give them. Tokens and heads may be strided.
        v: the same; for "qk_only" (total_tokens, heads, 64), fp32, bf16 or fp16, or int8 as
            `quantize_per_token` of a token's heads side by side gives it.
        cu_seqlens: (batch + 1,) int32; sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
            Rows behind the last give zeros.
        mode: "bool" (BiBERT), "elastic" (BiT) or "qk_only" (HAD, BinaryAttention).
        tie: "strict" or "geq", of mode "bool".
        softmax_scale: what a unit of dot stands for: 1 / sqrt(64), times the scales of q and k.
        alpha: the scale of the probabilities, of mode "elastic".
        thresholds: int32 (heads, 64) for `rails` = 1, (3, heads, 64) for 2; None: the sign of ctx.
        rails: 0, 1 or 2; not for mode "qk_only".
        alibi_slopes: (heads,), fp32, of mode "qk_only".
        v_scale: (total_tokens, 1), fp32, of mode "qk_only" with v of int8.
        out_dtype: float32, bfloat16 or float16, of mode "qk_only" with v of int8; otherwise the
            result has the dtype of v.

    Returns:
        int64 (total_tokens, heads) or (total_tokens, 2, heads), int32 (total_tokens, heads, 64) for
        `rails` = 0; for "qk_only" (total_tokens, heads, 64).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Qin et al., "BiBERT", 2022, section 3.3; Liu et al., "BiT", 2022, section 3; Horton et
    al., "Hamming Attention Distillation", 2025; BinaryAttention, 2026.
    """
    op = "binary_attention"
    check_choice(op, "mode", mode, ("bool", "elastic", "qk_only"))
    if mode == "qk_only":
        if thresholds is not None:
            raise ValueError(f"{op}: thresholds must be None in mode qk_only, got a tensor")
        return call(
            _QK_ATTENTION, q, k, v, cu_seqlens, softmax_scale, alibi_slopes, v_scale, out_dtype
        )
    for name, value in (("alibi_slopes", alibi_slopes), ("v_scale", v_scale)):
        if value is not None:
            raise ValueError(f"{op}: {name} must be None in mode {mode}, got a tensor")
    if out_dtype is not None:
        raise ValueError(f"{op}: out_dtype must be None in mode {mode}, got {out_dtype}")
    return call(_ATTENTION, q, k, v, cu_seqlens, mode, tie, softmax_scale, alpha, thresholds, rails)
