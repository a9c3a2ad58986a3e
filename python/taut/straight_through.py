"""Binarization for training: values in the forward pass are those of the packed kernels, gradients
are the straight-through estimates of the papers. Plain torch, on floats, on any device.

Sources: Qin et al., "BiBERT: Accurate Fully Binarized BERT", 2022; Liu et al., "BiT: Robustly
Binarized Multi-distilled Transformer", 2022; Esser et al., "Learned Step Size Quantization", 2020
(the gradient of a scale).
"""

import math

import torch

from taut.reference._check import FLOATS, check_choice, check_cu_seqlens, check_tensor

MODES = ("bool", "elastic", "qk_only")


SMALLEST_SCALE = 1e-5  # of elastic binarization, as its authors keep it positive
ZEROS = {"ternary": 0.0, "strict": -1.0, "geq": 1.0}  # what sign(0) is


def _signs(x: torch.Tensor, zero: float) -> torch.Tensor:
    return torch.where(x > 0, 1.0, torch.where(x < 0, -1.0, zero)).to(x.dtype)


class _Sign(torch.autograd.Function):
    """sign(x); the gradient passes where |x| < 1."""

    @staticmethod
    def forward(ctx, x, zero):
        ctx.save_for_backward(x)
        return _signs(x, zero)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1), None


class _Bool(torch.autograd.Function):
    """[x > 0] or, with `geq`, [x >= 0]; the gradient passes where |x| < 1."""

    @staticmethod
    def forward(ctx, x, geq):
        ctx.save_for_backward(x)
        return (x >= 0 if geq else x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1), None


class _ElasticSign(torch.autograd.Function):
    """alpha sign(x); x gets the gradient where |x| <= alpha."""

    @staticmethod
    def forward(ctx, x, alpha, zero):
        alpha, signs = alpha.clamp(min=SMALLEST_SCALE), _signs(x, zero)
        ctx.save_for_backward((x / alpha).abs() <= 1, signs, alpha)
        return alpha * signs

    @staticmethod
    def backward(ctx, grad):
        inside, signs, alpha = ctx.saved_tensors
        dalpha = (grad * signs).sum() / math.sqrt(max(1, signs.numel()))
        return grad * inside, dalpha.to(alpha.dtype).view(alpha.shape), None


class _ElasticStep(torch.autograd.Function):
    """alpha [x > alpha / 2]; x gets the gradient where 0 <= x <= alpha."""

    @staticmethod
    def forward(ctx, x, alpha):
        alpha = alpha.clamp(min=SMALLEST_SCALE)
        ratio = x / alpha
        ctx.save_for_backward(ratio, alpha)
        return alpha * ratio.round().clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):
        ratio, alpha = ctx.saved_tensors
        inside = (ratio >= 0) & (ratio <= 1)
        slope = (ratio > 1) + inside * (ratio.round() - ratio)
        dalpha = (grad * slope).sum() / math.sqrt(max(1, ratio.numel()))
        return grad * inside, dalpha.to(alpha.dtype).view(alpha.shape)


def sign(x: torch.Tensor, *, tie: str = "ternary") -> torch.Tensor:
    """sign(x), whose gradient passes where |x| < 1.

    Args:
        x: any shape, floating point.
        tie: what 0 becomes: "ternary": 0, "strict": -1, "geq": 1.

    Returns:
        Like x.

    Source: BiBERT, section 3.1.
    """
    check_choice("sign", "tie", tie, tuple(ZEROS))
    return _Sign.apply(x, ZEROS[tie])


def elastic_sign(x: torch.Tensor, alpha: torch.Tensor, *, tie: str = "ternary") -> torch.Tensor:
    """alpha sign(x), whose gradient passes where |x| <= alpha.

    Args:
        x: any shape, floating point.
        alpha: one element, taken for 1e-5 if it is less; its gradient is sum(grad sign(x)) /
            sqrt(elements of x).
        tie: what 0 becomes, as in `sign`.

    Returns:
        Like x.

    Source: BiT, section 3.1.
    """
    check_choice("elastic_sign", "tie", tie, tuple(ZEROS))
    return _ElasticSign.apply(x, alpha, ZEROS[tie])


def unit_signs(x: torch.Tensor, alpha: torch.Tensor, *, tie: str = "strict") -> torch.Tensor:
    """`elastic_sign` over alpha: -1 and 1 to the bit, with the gradients of alpha sign(x) if the
    result is multiplied by alpha later on.

    Args:
        x: any shape, floating point.
        alpha, tie: as in `elastic_sign`.

    Returns:
        Like x.
    """
    return elastic_sign(x, alpha, tie=tie) / alpha.detach().clamp(min=SMALLEST_SCALE)


def elastic_step(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """alpha where x > alpha / 2, 0 elsewhere; the gradient passes where 0 <= x <= alpha.

    Args:
        x: any shape, floating point, not negative as a rule.
        alpha: one element, taken for 1e-5 if it is less; its gradient is that of a learned step
            size.

    Returns:
        Like x.

    Source: BiT, section 3.1.
    """
    return _ElasticStep.apply(x, alpha)


def _with_gradient(values: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """`values`, to the bit, with the gradient of `through`."""
    return values + (through - through.detach())


def bibert_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The signs of w - mean of the row, and each row's mean|w|: what BiBERT makes of a weight.

    The gradient of scale * signs passes to w - mean where that lies in [-1, 1], without the scale.
    A weight equal to the mean is -1, as in packed bits.

    Args:
        weight: (out_features, in_features), floating point.

    Returns:
        signs like weight; scale (out_features,), without a gradient.

    Source: BiBERT, section 3.1.
    """
    centred = weight - weight.mean(1, keepdim=True)
    scale = weight.detach().abs().mean(1)
    smallest = torch.finfo(scale.dtype).tiny
    through = centred.clamp(-1, 1) / scale.clamp(min=smallest)[:, None]
    return _with_gradient(_signs(centred.detach(), -1.0), through), scale


def bit_weight(weight: torch.Tensor, *, by_row: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The signs of w - mean of w, and mean|w|: what BiT makes of a weight.

    The gradient of scale * signs passes unchanged. A weight equal to the mean is -1, as in packed
    bits.

    Args:
        weight: (out_features, in_features), floating point.
        by_row: take mean|w| per row, as for an embedding; the mean stays that of the whole.

    Returns:
        signs like weight; scale (out_features,), without a gradient.

    Source: BiT, section 3.1.
    """
    w = weight.detach()
    scale = w.abs().mean(1) if by_row else w.abs().mean().expand(w.shape[0])
    through = weight / scale.clamp(min=torch.finfo(scale.dtype).tiny)[:, None]
    return _with_gradient(_signs(w - w.mean(), -1.0), through), scale


def train_binary_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    mode: str = "bool",
    tie: str = "strict",
    alpha: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    softmax_scale: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """`taut.binary_attention` on real-valued q, k and v, with its straight-through gradients.

    Args:
        q, k, v: (total_tokens, heads, head_dim), floating point, one dtype.
        cu_seqlens: (batch + 1,) int32.
        mode: "bool": signs of q, k and v, A = [score > 0], where the gradient passes for
            |score| < 1; "elastic": `elastic_sign` of q, k and v, `elastic_step` of the softmax;
            "qk_only": signs of q and k, softmax, v as it is.
        tie: of the scores in mode "bool": "strict" or "geq". Zeros in q, k and v are -1, as in
            packed bits (0 in the authors' code).
        alpha: scales of q, k, v and the probabilities, one positive element each; mode "elastic".
            The result is the product of two of them with a whole number, rounded once.
        softmax_scale: of the scores; None: 1 / sqrt(head_dim).
        alibi_slopes: (heads,); mode "qk_only".

    Returns:
        (total_tokens, heads, head_dim), dtype of q; rows behind the last sequence are 0.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: BiBERT, section 3.3; BiT, section 3; HAD, 2025 (qk_only).
    """
    op = "train_binary_attention"
    floats = (*FLOATS, torch.float64)
    check_choice(op, "mode", mode, MODES)
    check_choice(op, "tie", tie, ("strict", "geq"))
    check_tensor(op, "q", q, (None, None, None), "(total_tokens, heads, head_dim)", floats)
    for name, value in (("k", k), ("v", v)):
        check_tensor(op, name, value, tuple(q.shape), f"{tuple(q.shape)} like q", (q.dtype,))
    check_cu_seqlens(op, "cu_seqlens", cu_seqlens, q.shape[0])
    if (alpha is None) == (mode == "elastic"):
        wanted = "four tensors" if mode == "elastic" else "None"
        raise ValueError(f"{op}: alpha must be {wanted} in mode {mode}, got {alpha}")
    scale, step = softmax_scale or 1 / math.sqrt(q.shape[2]), 1.0
    if mode == "elastic":
        q, k, v = (unit_signs(t, a) for t, a in zip((q, k, v), alpha, strict=False))
        aq, ak, av, ap = (a.detach().clamp(min=SMALLEST_SCALE) for a in alpha)
        scale, step = aq * ak * scale, av * ap
    else:
        q, k = sign(q, tie="strict"), sign(k, tie="strict")
        v = sign(v, tie="strict") if mode == "bool" else v
    parts = []
    offsets = cu_seqlens.tolist()
    for begin, end in zip(offsets, offsets[1:], strict=False):
        query, key, value = (t[begin:end].transpose(0, 1) for t in (q, k, v))
        scores = query @ key.transpose(1, 2) * scale
        if mode == "bool":
            attended = _Bool.apply(scores, tie == "geq")
        elif mode == "elastic":
            attended = elastic_step(scores.softmax(2), alpha[3]) / ap
        else:
            if alibi_slopes is not None:
                place = torch.arange(end - begin, device=q.device)
                distance = (place[:, None] - place).abs()
                scores = scores - alibi_slopes[:, None, None] * distance
            attended = scores.softmax(2)
        parts.append((attended @ value).transpose(0, 1) * step)
    parts.append(q.new_zeros((q.shape[0] - offsets[-1], *q.shape[1:])))
    return torch.cat(parts)
