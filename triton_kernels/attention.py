"""Attention over packed sequences: the forward kernel, and the launchers of every attention op."""

import math

import torch
import triton
import triton.language as tl

from taut.triton_kernels._attention_tile import (
    Problem,
    find_tile,
    finite_or_zero,
    keep_factors,
    key_range,
    load_k,
    load_q,
    load_v,
    scores,
    sequence_bounds,
    store_rows,
    stretch,
)
from taut.triton_kernels._launch import dot_type, launcher, row_strided
from taut.triton_kernels.attention_backward import attention_backward

# (bytes per element, head_dim up to) -> tile. Work items of 64 queries waste little on short texts.
# Key tiles shrink as heads widen so that K and V fit the 64 KB of shared memory of gfx942; fp32 has
# no tensor cores at full precision, and smaller tiles keep its operands in registers.
_TILES = {
    (2, 64): {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    (2, 128): {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    (2, 256): {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    (4, 64): {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    (4, 128): {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
    (4, 256): {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
}


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "seed"])
def _attention_kernel(
    p, sequences, total_q, total_k, seed, out, logsumexp, out_row, out_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    sequence, first_row = find_tile(tl.program_id(0), p.cu_seqlens_q, sequences, BLOCK_M)
    begin_q, len_q = sequence_bounds(p.cu_seqlens_q, sequence, sequences, total_q)
    if first_row >= len_q:
        return
    begin_k, len_k = sequence_bounds(p.cu_seqlens_k, sequence, sequences, total_k)
    len_k = tl.where(sequence < sequences, len_k, 0)
    row = first_row + tl.arange(0, BLOCK_M)
    q = load_q(p, begin_q, head, row, len_q)
    begin, end = key_range(first_row, len_k - len_q, len_k, p, BLOCK_M, BLOCK_N)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M, p.BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        k = load_k(p, begin_k, head // p.group, column, len_k)
        s, _ = scores(q, k, sequence, head, row, column, len_q, len_k, p)
        before = largest
        largest = tl.maximum(largest, tl.max(s, 1))
        base = finite_or_zero(largest)
        weights = tl.exp(s - base[:, None])
        shrink = tl.exp(before - base)
        total = total * shrink + tl.sum(weights, 1)
        if p.zeta is None:
            if p.threshold is not None:
                weights *= keep_factors(p, seed, head, begin_q + row, start, BLOCK_N)
            v = load_v(p, begin_k, head // p.group, column, len_k)
            weighted = weighted * shrink[:, None]
            weighted += tl.dot(weights.to(p.DOT), v, input_precision="ieee")
    total = tl.where(total == 0, 1, total)  # a row that sees no key: zeros, and lse -inf
    lse = largest + tl.log(total)
    if p.zeta is None:
        weighted = weighted / total[:, None]
    else:  # clipping follows the normalisation: a second pass, now that the sums are known
        for start in range(begin, end, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)
            k = load_k(p, begin_k, head // p.group, column, len_k)
            s, _ = scores(q, k, sequence, head, row, column, len_q, len_k, p)
            weights = stretch(tl.exp(s - finite_or_zero(lse)[:, None]), s, p)
            weights = tl.minimum(tl.maximum(weights, 0), 1)
            if p.threshold is not None:
                weights *= keep_factors(p, seed, head, begin_q + row, start, BLOCK_N)
            v = load_v(p, begin_k, head // p.group, column, len_k)
            weighted += tl.dot(weights.to(p.DOT), v, input_precision="ieee")
    store_rows(out + begin_q * out_row + head * out_head, row, len_q, out_row, weighted, p)
    tl.store(logsumexp + head * total_q + begin_q + row, lse, row < len_q)


def _problem(
    q, k, v, biases, cu_seqlens_q, cu_seqlens_k, softmax_scale, alibi_slopes, relative_bias,
    causal, left, right, softcap, clip, dropout_p,
):  # fmt: skip
    right = 0 if causal else right
    if softmax_scale is None:
        softmax_scale = 1 / math.sqrt(q.shape[2])
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    dropout = dropout_p > 0
    slopes = None if alibi_slopes is None else alibi_slopes.contiguous()
    return Problem(
        q, k, v, *biases,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), q.shape[1] // k.shape[1],
        softmax_scale, slopes, q.shape[1] if slopes is not None and slopes.dim() == 2 else 0,
        None if relative_bias is None else relative_bias.contiguous(),
        0 if relative_bias is None else relative_bias.shape[1] // 2,
        left if left >= 0 else None,
        right if right >= 0 else None,
        softcap if softcap > 0 else None,
        *((None, None) if clip is None else clip),
        int(dropout_p * 2**32) if dropout else None,
        1 / (1 - dropout_p) if dropout else None,
        tl.constexpr(q.shape[2]),
        tl.constexpr(triton.next_power_of_2(q.shape[2])),
        tl.constexpr(dot_type(q.dtype)),
    )  # fmt: skip


def _forward(problem, seed):
    q = problem.q
    total, heads, head_dim = q.shape
    out = q.new_empty(q.shape)
    logsumexp = q.new_empty((heads, total), dtype=torch.float32)
    if out.numel():
        tile = _TILES[q.element_size(), max(64, triton.next_power_of_2(head_dim))]
        sequences = problem.cu_seqlens_q.shape[0] - 1
        _attention_kernel[(total // tile["BLOCK_M"] + sequences + 1, heads)](
            problem, sequences, total, problem.k.shape[0], seed,
            out, logsumexp, out.stride(0), out.stride(1), **tile,
        )  # fmt: skip
    return out, logsumexp


@launcher
def varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, *options):
    *options, seed, _plan = options
    q, k, v = map(row_strided, (q, k, v))
    return _forward(_problem(q, k, v, (None,) * 3, cu_seqlens_q, cu_seqlens_k, *options), seed)


@launcher
def varlen_attention_backward(
    grad_out, q, k, v, out, logsumexp, cu_seqlens_q, cu_seqlens_k, *options
):
    *options, seed, _plan = options
    grad_out, q, k, v, out = map(row_strided, (grad_out, q, k, v, out))
    problem = _problem(q, k, v, (None,) * 3, cu_seqlens_q, cu_seqlens_k, *options)
    gradients = [t.new_empty(t.shape) for t in (q, k, v)]
    return *gradients, *attention_backward(problem, seed, grad_out, out, logsumexp, *gradients)


def _unpack(qkv, bias, cu_seqlens, options):
    biases = (None,) * 3 if bias is None else bias.contiguous().unbind(0)
    return _problem(*row_strided(qkv).unbind(1), biases, cu_seqlens, cu_seqlens, *options)


@launcher
def varlen_attention_qkvpacked(qkv, bias, cu_seqlens, *options):
    *options, seed, _plan = options
    return _forward(_unpack(qkv, bias, cu_seqlens, options), seed)


@launcher
def varlen_attention_qkvpacked_backward(grad_out, qkv, bias, out, logsumexp, cu_seqlens, *options):
    *options, seed, _plan = options
    grad_out, out = row_strided(grad_out), row_strided(out)
    problem = _unpack(qkv, bias, cu_seqlens, options)
    dqkv = qkv.new_empty(qkv.shape)
    options_gradients = attention_backward(problem, seed, grad_out, out, logsumexp, *dqkv.unbind(1))
    dbias = qkv.new_zeros((0,))
    if bias is not None:
        dbias = dqkv.sum(0, dtype=torch.float32).to(qkv.dtype)
    return dqkv, dbias, *options_gradients
