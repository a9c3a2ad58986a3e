"""What the attention ops mean. Computed in fp32 (fp64 for fp64 input), rounded once at the end.

For query i and key j of one sequence with len_q queries and len_k keys, ends aligned:

    distance = i + len_k - len_q - j
    score    = softmax_scale * q_i . k_j, then softcap * tanh(score / softcap) if softcap > 0
    score   += -alibi_slope * |distance| + relative_bias[clamp(-distance, -R, R) + R]
    visible  = -window_right <= distance <= window_left (-1: no limit), distance >= 0 if causal
    p        = softmax of the visible scores; 0 for every key of a row that sees none
    p        = clamp((zeta - gamma) * p + gamma, 0, 1) on visible keys, if clip = (zeta, gamma)
    p        = p / (1 - dropout_p) where `dropout_keep` says so, else 0
    out_i    = sum over j of p_ij v_j

Sources: softmax attention, Vaswani et al. 2017; ALiBi, Press et al. 2022, in its symmetric form;
clipped softmax, Bondarenko et al., "Quantizable Transformers", 2023, section 4.1.
"""

import math

import torch

from taut.reference._check import (
    FLOATS,
    REFERENCE_FLOATS,
    check_cu_seqlens,
    check_optional_tensor,
    check_tensor,
)
from taut.reference.attention_plan import attention_plan as attention_plan
from taut.reference.attention_plan import check_attention_plan as check_attention_plan
from taut.reference.attention_plan import plan_rows


def _wide(t):
    return t.to(torch.promote_types(t.dtype, torch.float32))


# ---- argument checks


def _check_head_dim(op, name, head_dim):
    if not 16 <= head_dim <= 256 or head_dim % 8:
        raise ValueError(
            f"{op}: {name} must have a head_dim from 16 to 256 that is a multiple of 8, "
            f"got {head_dim}"
        )


def _check_real(op, name, value, accepted, meaning):
    if not (_fits(value) and accepted(value)):
        raise ValueError(f"{op}: {name} must be {meaning}, got {value}")


def _fits(value):
    """Whether fp32 has it."""
    return abs(value) <= torch.finfo(torch.float32).max


def _check_options(
    op, heads, batch, softmax_scale, alibi_slopes, relative_bias, window_left, window_right,
    softcap, clip, dropout_p,
):  # fmt: skip
    if softmax_scale is not None:
        _check_real(op, "softmax_scale", softmax_scale, lambda x: x > 0, "positive in fp32")
    if alibi_slopes is not None:
        shape = (batch, heads) if alibi_slopes.dim() == 2 else (heads,)
        meaning = f"({heads},) or ({batch}, {heads}), one per head"
        check_tensor(op, "alibi_slopes", alibi_slopes, shape, meaning, REFERENCE_FLOATS[::3])
    check_optional_tensor(
        op, "relative_bias", relative_bias, (heads, None), f"({heads}, 2R + 1)",
        REFERENCE_FLOATS[::3],
    )  # fmt: skip
    if relative_bias is not None and relative_bias.shape[1] % 2 == 0:
        raise ValueError(
            f"{op}: relative_bias must be ({heads}, 2R + 1), got {tuple(relative_bias.shape)}"
        )
    window_size = window_left, window_right
    if min(window_size) < -1:
        raise ValueError(
            f"{op}: window_size must be (left, right), each at least -1, got {window_size}"
        )
    _check_real(op, "softcap", softcap, lambda x: x >= 0, "at least 0 in fp32")
    if clip is not None and not (
        len(clip) == 2 and clip[0] >= 1 and clip[1] <= 0 and _fits(clip[0] - clip[1])
    ):
        raise ValueError(
            f"{op}: clip must be (zeta, gamma) in fp32 with zeta >= 1 and gamma <= 0, "
            f"got {tuple(clip)}"
        )
    _check_real(op, "dropout_p", dropout_p, lambda x: 0 <= x < 1, "in [0, 1)")


def _check_plan(op, plan, batch, total_q):
    """The rest of a plan is not looked at: kernels stay inside their memory whatever it says."""
    shape = (plan_rows(batch, total_q), 2)
    check_optional_tensor(op, "plan", plan, shape, f"{shape}", (torch.int32,))


def check_varlen_attention(
    q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, alibi_slopes, relative_bias, causal,
    window_left, window_right, softcap, clip, dropout_p, dropout_seed, plan=None,
    op="varlen_attention",
):  # fmt: skip
    check_tensor(op, "q", q, (None,) * 3, "(total_q, heads, head_dim)", REFERENCE_FLOATS)
    _, heads, head_dim = q.shape
    _check_head_dim(op, "q", head_dim)
    shape = (None, None, head_dim)
    check_tensor(op, "k", k, shape, f"(total_k, heads_kv, {head_dim})", (q.dtype,))
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(
            f"{op}: k must have a number of heads that divides those of q, {heads}, "
            f"got {k.shape[1]}"
        )
    shape = tuple(k.shape)
    check_tensor(op, "v", v, shape, f"{shape} like k", (q.dtype,))
    check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0])
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k.shape[0])
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"{op}: cu_seqlens_k must be {tuple(cu_seqlens_q.shape)} like cu_seqlens_q, "
            f"got {tuple(cu_seqlens_k.shape)}"
        )
    _check_options(
        op, heads, cu_seqlens_q.shape[0] - 1, softmax_scale, alibi_slopes, relative_bias,
        window_left, window_right, softcap, clip, dropout_p,
    )  # fmt: skip
    _check_plan(op, plan, cu_seqlens_q.shape[0] - 1, q.shape[0])


def check_varlen_attention_qkvpacked(
    qkv, bias, cu_seqlens, softmax_scale, alibi_slopes, relative_bias, causal, window_left,
    window_right, softcap, clip, dropout_p, dropout_seed, plan=None,
    op="varlen_attention_qkvpacked",
):  # fmt: skip
    check_tensor(
        op, "qkv", qkv, (None, 3, None, None), "(total, 3, heads, head_dim)", REFERENCE_FLOATS
    )
    heads, head_dim = qkv.shape[2:]
    _check_head_dim(op, "qkv", head_dim)
    shape = (3, heads, head_dim)
    check_optional_tensor(op, "bias", bias, shape, f"{shape} like a token of qkv", (qkv.dtype,))
    check_cu_seqlens(op, "cu_seqlens", cu_seqlens, qkv.shape[0])
    _check_options(
        op, heads, cu_seqlens.shape[0] - 1, softmax_scale, alibi_slopes, relative_bias,
        window_left, window_right, softcap, clip, dropout_p,
    )  # fmt: skip
    _check_plan(op, plan, cu_seqlens.shape[0] - 1, qkv.shape[0])


def _check_saved(op, q_shape, dtype, grad_out, out, logsumexp):
    for name, value in (("grad_out", grad_out), ("out", out)):
        check_tensor(op, name, value, q_shape, f"{q_shape} like q", (dtype,))
    shape = (q_shape[1], q_shape[0])
    check_tensor(op, "logsumexp", logsumexp, shape, f"{shape}", (*FLOATS[:1], torch.float64))


def check_varlen_attention_backward(grad_out, q, k, v, out, logsumexp, *rest):
    op = "varlen_attention_backward"
    check_varlen_attention(q, k, v, *rest, op=op)
    _check_saved(op, tuple(q.shape), q.dtype, grad_out, out, logsumexp)


def check_varlen_attention_qkvpacked_backward(grad_out, qkv, bias, out, logsumexp, *rest):
    op = "varlen_attention_qkvpacked_backward"
    check_varlen_attention_qkvpacked(qkv, bias, *rest, op=op)
    shape = (qkv.shape[0], *qkv.shape[2:])
    _check_saved(op, shape, qkv.dtype, grad_out, out, logsumexp)


# ---- dropout

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox4x32(counter: tuple, key: tuple) -> list:
    """Philox4x32-10 (Salmon et al., 2011): four counter words and two key words, int64 tensors or
    ints in [0, 2^32), give four random words of the same kind."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # An int64 product wraps modulo 2^64; the masks make its halves unsigned.
        p0, p1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _PHILOX_WEYL[0]) & _LOW, (k1 + _PHILOX_WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


def dropout_keep(dropout_p: float, seed: int, heads: int, rows, keys: int):
    """Which probabilities stay: bool (heads, len(rows), keys).

    `rows` are int64 rows of q in the packed tensor; keys count from the sequence's first. The key
    at index j is kept where word j % 4 of Philox4x32-10 with counter (j // 4, row, head, 0) and key
    (seed's low 32 bits, its high 32 bits) is at least floor(dropout_p * 2^32).
    """
    device = rows.device
    head = torch.arange(heads, device=device)[:, None, None]
    block = torch.arange((keys + 3) // 4, device=device)
    shape = (heads, rows.shape[0], block.shape[0])
    counter = [t.expand(shape) for t in (block, rows[:, None], head)]
    words = philox4x32((*counter, torch.zeros_like(counter[0])), (seed & _LOW, seed >> 32 & _LOW))
    return torch.stack(words, -1).flatten(2)[..., :keys] >= int(dropout_p * 2**32)


# ---- forward


def _scale_of(softmax_scale, q):
    return 1 / math.sqrt(q.shape[2]) if softmax_scale is None else softmax_scale


def _segments(cu_seqlens_q, cu_seqlens_k):
    """(sequence, rows of q, rows of k) of every sequence that has queries."""
    begin_q = cu_seqlens_q.tolist()
    begin_k = begin_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
    for b in range(len(begin_q) - 1):
        if begin_q[b + 1] > begin_q[b]:
            yield b, slice(begin_q[b], begin_q[b + 1]), slice(begin_k[b], begin_k[b + 1])


def _distances(len_q, len_k, device):
    i = torch.arange(len_q, device=device)[:, None] + (len_k - len_q)
    return i - torch.arange(len_k, device=device)


def _bias_column(distance, relative_bias):
    limit = relative_bias.shape[1] // 2
    return (-distance).clamp(-limit, limit) + limit


def _slopes_of(alibi_slopes, sequence):
    return alibi_slopes[sequence] if alibi_slopes.dim() == 2 else alibi_slopes


def _scores(q, k, sequence, scale, alibi_slopes, relative_bias, causal, left, right, softcap):
    """Scores (heads, len_q, len_k) with -inf for hidden keys, and before the biases were added."""
    capped = scale * torch.einsum("qhd,khd->hqk", q, k)
    if softcap > 0:
        capped = softcap * torch.tanh(capped / softcap)
    distance = _distances(q.shape[0], k.shape[0], q.device)
    scores = capped
    if alibi_slopes is not None:
        slopes = _slopes_of(alibi_slopes, sequence).to(q.dtype)
        scores = scores - slopes[:, None, None] * distance.abs()
    if relative_bias is not None:
        scores = scores + relative_bias.to(q.dtype)[:, _bias_column(distance, relative_bias)]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal or right >= 0:
        hidden |= distance < -max(0 if causal else right, 0)
    if left >= 0:
        hidden |= distance > left
    return scores.masked_fill(hidden, float("-inf")), capped


def _softmax(scores, logsumexp):
    """Rows that see no key give zeros."""
    return torch.exp(scores - logsumexp.masked_fill(logsumexp.isneginf(), 0.0)[..., None])


def _stretch(p, scores, clip):
    zeta, gamma = clip
    return ((zeta - gamma) * p + gamma).masked_fill(scores.isneginf(), 0.0)


def _repeat_heads(t, heads):
    return t.repeat_interleave(heads // t.shape[1], 1)


def _keep_factor(p, dropout_p, dropout_seed, rows):
    """0 or 1 / (1 - dropout_p), like p."""
    first_last = torch.arange(rows.start, rows.stop, device=p.device)
    keep = dropout_keep(dropout_p, dropout_seed, p.shape[0], first_last, p.shape[2])
    return keep.to(p.dtype) / (1 - dropout_p)


def varlen_attention(
    q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, alibi_slopes, relative_bias, causal,
    window_left, window_right, softcap, clip, dropout_p, dropout_seed, plan=None,
):  # fmt: skip
    heads, softmax_scale = q.shape[1], _scale_of(softmax_scale, q)
    out, logsumexp = [], []
    for b, rows_q, rows_k in _segments(cu_seqlens_q, cu_seqlens_k):
        query = _wide(q[rows_q])
        key, value = (_repeat_heads(_wide(t[rows_k]), heads) for t in (k, v))
        scores, _ = _scores(
            query, key, b, softmax_scale, alibi_slopes, relative_bias, causal,
            window_left, window_right, softcap,
        )  # fmt: skip
        logsumexp.append(torch.logsumexp(scores, 2))
        p = _softmax(scores, logsumexp[-1])
        if clip is not None:
            p = _stretch(p, scores, clip).clamp(0.0, 1.0)
        if dropout_p > 0:
            p = p * _keep_factor(p, dropout_p, dropout_seed, rows_q)
        out.append(torch.einsum("hqk,khd->qhd", p, value))
    rest = q.shape[0] - sum(t.shape[0] for t in out)
    wide = torch.promote_types(q.dtype, torch.float32)
    out.append(q.new_zeros((rest, *q.shape[1:]), dtype=wide))
    logsumexp.append(q.new_full((heads, rest), float("-inf"), dtype=wide))
    return torch.cat(out).to(q.dtype), torch.cat(logsumexp, 1)


def varlen_attention_qkvpacked(qkv, bias, cu_seqlens, *options):
    q, k, v = _with_bias(qkv, bias).unbind(1)
    out, logsumexp = varlen_attention(q, k, v, cu_seqlens, cu_seqlens, *options)
    return out.to(qkv.dtype), logsumexp


def _with_bias(qkv, bias):
    return _wide(qkv) if bias is None else _wide(qkv) + _wide(bias)


# ---- backward


def varlen_attention_backward(
    grad_out, q, k, v, out, logsumexp, cu_seqlens_q, cu_seqlens_k, softmax_scale, alibi_slopes,
    relative_bias, causal, window_left, window_right, softcap, clip, dropout_p, dropout_seed,
    plan=None,
):  # fmt: skip
    heads, softmax_scale = q.shape[1], _scale_of(softmax_scale, q)
    grads = [torch.zeros_like(_wide(t), memory_format=torch.contiguous_format) for t in (q, k, v)]
    dslopes, dbias = (
        q.new_zeros((0,) if t is None else t.shape, dtype=grads[0].dtype)
        for t in (alibi_slopes, relative_bias)
    )
    for b, rows_q, rows_k in _segments(cu_seqlens_q, cu_seqlens_k):
        query, grad = _wide(q[rows_q]), _wide(grad_out[rows_q])
        key, value = (_repeat_heads(_wide(t[rows_k]), heads) for t in (k, v))
        scores, capped = _scores(
            query, key, b, softmax_scale, alibi_slopes, relative_bias, causal,
            window_left, window_right, softcap,
        )  # fmt: skip
        p = _softmax(scores, logsumexp[:, rows_q].to(scores.dtype))
        used = p
        dp = torch.einsum("qhd,khd->hqk", grad, value)
        if dropout_p > 0:
            factor = _keep_factor(p, dropout_p, dropout_seed, rows_q)
            dp = dp * factor
        if clip is not None:
            stretched = _stretch(p, scores, clip)
            used = stretched.clamp(0.0, 1.0)
            dp = dp * (clip[0] - clip[1]) * (stretched == used)
        if dropout_p > 0:
            used = used * factor
        dscores = p * (dp - (p * dp).sum(2, keepdim=True))
        dv = torch.einsum("hqk,qhd->khd", used, grad)

        distance = _distances(query.shape[0], key.shape[0], q.device)
        if alibi_slopes is not None:
            _slopes_of(dslopes, b).sub_((dscores * distance.abs()).sum((1, 2)))
        if relative_bias is not None:
            column = _bias_column(distance, relative_bias).flatten()
            dbias.index_add_(1, column, dscores.flatten(1))
        if softcap > 0:
            dscores = dscores * (1 - (capped / softcap).square())
        dscores = softmax_scale * dscores
        grads[0][rows_q] = torch.einsum("hqk,khd->qhd", dscores, key)
        for grad_kv, per_head in (
            (grads[1], torch.einsum("hqk,qhd->khd", dscores, query)),
            (grads[2], dv),
        ):
            grad_kv[rows_k] = per_head.unflatten(1, (k.shape[1], -1)).sum(2)
    return (*(g.to(q.dtype) for g in grads), dslopes, dbias)


def varlen_attention_qkvpacked_backward(grad_out, qkv, bias, out, logsumexp, cu_seqlens, *options):
    q, k, v = _with_bias(qkv, bias).unbind(1)
    dq, dk, dv, dslopes, drelative_bias = varlen_attention_backward(
        grad_out, q, k, v, out, logsumexp, cu_seqlens, cu_seqlens, *options
    )
    dqkv = torch.stack((dq, dk, dv), 1)
    dbias = qkv.new_zeros((0,)) if bias is None else dqkv.sum(0).to(qkv.dtype)
    return dqkv.to(qkv.dtype), dbias, dslopes, drelative_bias
