"""Shapes and dtypes of what the attention ops give."""

import torch


def attention_plan(cu_seqlens_q, cu_seqlens_k, total_q, total_k):
    batch = cu_seqlens_q.shape[0] - 1
    return cu_seqlens_q.new_empty((4 + total_q // 64 + 2 * batch, 2))


def _option_gradients(alibi_slopes, relative_bias, like):
    def gradient(t):
        return like.new_empty((0,) if t is None else t.shape, dtype=torch.float32)

    return gradient(alibi_slopes), gradient(relative_bias)


def varlen_attention(q, k, v, *_):
    out = q.new_empty(q.shape)
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def varlen_attention_backward(
    grad_out, q, k, v, out, lse, cu_q, cu_k=None, scale=None, slopes=None, rel=None, *_
):
    gradients = tuple(t.new_empty(t.shape) for t in (q, k, v))
    return (*gradients, *_option_gradients(slopes, rel, q))


def varlen_attention_qkvpacked(qkv, *_):
    tokens, _three, heads, head_dim = qkv.shape
    out = qkv.new_empty((tokens, heads, head_dim))
    return out, qkv.new_empty((heads, tokens), dtype=torch.float32)


def varlen_attention_qkvpacked_backward(
    grad_out, qkv, bias, out, lse, cu_seqlens, scale=None, slopes=None, rel=None, *_
):
    dbias = qkv.new_empty((0,) if bias is None else bias.shape)
    return (qkv.new_empty(qkv.shape), dbias, *_option_gradients(slopes, rel, qkv))
