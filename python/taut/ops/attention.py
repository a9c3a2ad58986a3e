"""Attention over sequences of varying length, packed without padding."""

import torch

from taut import registry
from taut.ops._call import call

_PLAN = registry.OPS["attention_plan"]
_VARLEN_ATTENTION = registry.OPS["varlen_attention"]
_QKVPACKED = registry.OPS["varlen_attention_qkvpacked"]
_DEFAULTS = (False, (-1, -1), 0.0, None, 0.0, None, None)  # of the options behind the biases


def _chosen(op, options):
    """The op's options from the public ones, which begin at softmax_scale; those at their defaults
    are left out where that is seen at a glance: they cost nothing then (see registry)."""
    try:
        plain = options[3:] == _DEFAULTS
    except (RuntimeError, ValueError):  # of an array or tensor, which has no single truth value
        plain = False
    if plain:
        if options[1] is None and options[2] is None:
            return () if options[0] is None else options[:1]
        return options[:3]
    *tensors, causal, window_size, softcap, clip, dropout_p, seed, plan = options
    is_pair = isinstance(window_size, tuple | list)
    if not is_pair or not all(isinstance(side, int) for side in window_size):
        got = window_size if is_pair else type(window_size).__name__
        raise TypeError(f"{op.name}: window_size must be two ints, got {got}")
    if len(window_size) != 2:
        raise ValueError(f"{op.name}: window_size must be (left, right), got {window_size!r}")
    if seed is None:
        seed = int(torch.randint(1 << 62, (), device="cpu")) if dropout_p else 0
    return *tensors, causal, *window_size, softcap, clip, dropout_p, seed, plan


def attention_plan(
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    total_q: int,
    total_k: int | None = None,
) -> torch.Tensor:
    """The order in which CUDA kernels take the work of a packed batch, for all layers to share.

    Made on the device, without waiting for it. No result depends on it.

    Args:
        cu_seqlens_q: (batch + 1,) int32; sequence b is rows cu_seqlens_q[b] to cu_seqlens_q[b + 1].
        cu_seqlens_k: the same for keys; None: cu_seqlens_q.
        total_q: how many rows q will have.
        total_k: how many rows k will have; None: total_q.

    Returns:
        plan (4 + total_q // 64 + 2 * batch, 2) int32, laid out as reference/attention_plan.py says.
        plan[0, 0] is not 0 where a GPU finds cu_seqlens malformed; attention then gives NaN.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_PLAN, cu_seqlens_q, cu_seqlens_k, total_q, total_q if total_k is None else total_k)


def shared_plan(cu_seqlens: torch.Tensor, total_tokens: int) -> torch.Tensor | None:
    """The plan for all layers of a forward pass; None where no kernel would look at it."""
    if not (cu_seqlens.is_cuda and registry.GPU_KERNELS["attention_plan"] == "native"):
        return None
    return attention_plan(cu_seqlens, total_q=total_tokens)


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    relative_bias: torch.Tensor | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    clip: tuple[float, float] | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    plan: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention within each sequence of a packed batch.

    A score is `softmax_scale * q . k`, soft-capped, plus the biases. Biases, `causal` and
    `window_size` go by distance = i + len_k - len_q - j of query i and key j: ends are aligned, as
    in flash-attn. Rows of q that see no key, or lie past cu_seqlens_q[-1], give zeros.

    Args:
        q: (total_q, heads, head_dim); fp32, bf16 or fp16; head_dim from 16 to 256, a multiple of
            8. The last dimension is contiguous, the others may be strided.
        k, v: (total_k, heads_kv, head_dim), dtype of q; heads is a multiple of heads_kv.
        cu_seqlens_q: (batch + 1,) int32; sequence b is rows cu_seqlens_q[b] to cu_seqlens_q[b + 1].
        cu_seqlens_k: the same for k and v; None: cu_seqlens_q.
        softmax_scale: positive; None: 1 / sqrt(head_dim).
        alibi_slopes: (heads,) or (batch, heads) fp32; adds -slope * |distance|.
        relative_bias: (heads, 2R + 1) fp32; adds [head, clamp(-distance, -R, R) + R].
        causal: hide keys with distance < 0.
        window_size: (left, right): hide keys with distance > left or < -right; -1: no limit.
        softcap: scores become softcap * tanh(score / softcap); 0: off.
        clip: (zeta >= 1, gamma <= 0): probabilities become clamp((zeta - gamma) p + gamma, 0, 1).
        dropout_p: chance in [0, 1) that a probability is dropped; the rest grow by 1 / (1 - p).
        dropout_seed: with the seed, head, row of q and key index decide; None: drawn from torch's
            default generator.
        plan: what `attention_plan` made of the same cu_seqlens; only CUDA kernels look at it, and
            make one when it is None.
        return_lse: also return the logsumexp of the scores; it carries no gradient.

    Returns:
        out (total_q, heads, head_dim) in the dtype of q, or (out, logsumexp (heads, total_q) fp32,
        -inf for rows that see no key).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Vaswani et al., "Attention is all you need", 2017; Press et al., "Train short, test
    long" (ALiBi), 2022; Bondarenko et al., "Quantizable Transformers" (clip), 2023.
    """
    options = (
        softmax_scale, alibi_slopes, relative_bias, causal, window_size, softcap, clip, dropout_p,
        dropout_seed, plan,
    )  # fmt: skip
    if (chosen := _chosen(_VARLEN_ATTENTION, options)) or cu_seqlens_k is not None:
        result = call(_VARLEN_ATTENTION, q, k, v, cu_seqlens_q, cu_seqlens_k, *chosen)
    else:
        result = call(_VARLEN_ATTENTION, q, k, v, cu_seqlens_q)
    return result if return_lse else result[0]


def varlen_attention_qkvpacked(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    relative_bias: torch.Tensor | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    clip: tuple[float, float] | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    plan: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Self-attention within each sequence of a packed batch, from the output of one QKV projection.

    Args:
        qkv: (total, 3, heads, head_dim); q, k and v of every token; dtypes, strides and head_dim
            as in `varlen_attention`.
        cu_seqlens: (batch + 1,) int32; sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
        bias: (3, heads, head_dim), dtype of qkv; the projection's bias, added while loading.
        softmax_scale, alibi_slopes, relative_bias, causal, window_size, softcap, clip, dropout_p,
            dropout_seed, plan, return_lse: as in `varlen_attention`.

    Returns:
        out (total, heads, head_dim) in the dtype of qkv, or (out, logsumexp (heads, total) fp32).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    options = (
        softmax_scale, alibi_slopes, relative_bias, causal, window_size, softcap, clip, dropout_p,
        dropout_seed, plan,
    )  # fmt: skip
    result = call(_QKVPACKED, qkv, bias, cu_seqlens, *_chosen(_QKVPACKED, options))
    return result if return_lse else result[0]


def _save(ctx, tensors, output, options):
    """`options` begin at softmax_scale."""
    out, logsumexp = output
    ctx.scale, slopes, relative_bias, *ctx.rest, plan = options
    ctx.save_for_backward(*tensors, out, logsumexp, slopes, relative_bias, plan)
    ctx.mark_non_differentiable(logsumexp)


def _setup_varlen_attention(ctx, inputs, output):
    _save(ctx, inputs[:5], output, inputs[5:])


def _setup_qkvpacked(ctx, inputs, output):
    _save(ctx, inputs[:3], output, inputs[3:])


def _option_gradients(slopes, relative_bias, dslopes, drelative_bias):
    return (
        None,
        None if slopes is None else dslopes,
        None if relative_bias is None else drelative_bias,
        *(None,) * 8,
    )


def _varlen_attention_gradient(ctx, grad_out, _grad_logsumexp):
    q, k, v, cu_q, cu_k, out, logsumexp, slopes, relative_bias, plan = ctx.saved_tensors
    dq, dk, dv, dslopes, dbias = torch.ops.taut.varlen_attention_backward(
        grad_out.contiguous(), q, k, v, out, logsumexp, cu_q, cu_k, ctx.scale, slopes,
        relative_bias, *ctx.rest, plan,
    )  # fmt: skip
    return (dq, dk, dv, None, None, *_option_gradients(slopes, relative_bias, dslopes, dbias))


def _qkvpacked_gradient(ctx, grad_out, _grad_logsumexp):
    qkv, bias, cu_seqlens, out, logsumexp, slopes, relative_bias, plan = ctx.saved_tensors
    dqkv, dbias, dslopes, drelative_bias = torch.ops.taut.varlen_attention_qkvpacked_backward(
        grad_out.contiguous(), qkv, bias, out, logsumexp, cu_seqlens, ctx.scale, slopes,
        relative_bias, *ctx.rest, plan,
    )  # fmt: skip
    return (
        dqkv,
        None if bias is None else dbias,
        None,
        *_option_gradients(slopes, relative_bias, dslopes, drelative_bias),
    )


registry.register_autograd("varlen_attention", _varlen_attention_gradient, _setup_varlen_attention)
registry.register_autograd("varlen_attention_qkvpacked", _qkvpacked_gradient, _setup_qkvpacked)
