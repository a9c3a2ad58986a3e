"""Attention over packed signs: bits in memory, int8 products. A head is one word of 64 channels.

Tiles of queries are found as in attention.py. Products of signs, and sums of what is attended, are
whole numbers: the order they are taken in touches no result.
"""

import functools

import torch
import triton
import triton.language as tl

from taut.formats import WORD
from taut.reference.binary_attention import exponentials
from taut.triton_kernels._attention_tile import find_tile, sequence_bounds
from taut.triton_kernels._launch import dot_type, launcher, row_strided, vector
from taut.triton_kernels.binary_gemm import bits_of_columns, pack_lanes, signs_of

_TILE = {"BLOCK": 64, "num_warps": 4, "num_stages": 2}
# Entries of the table are loaded where a product says: Triton cannot pipeline that on Hopper.
_ELASTIC_TILE = {**_TILE, "num_stages": 1}


@triton.jit
def _find_rows(cu_seqlens, sequences, total, BLOCK: tl.constexpr):
    """(first token of the sequence, row within it, its length, its number of keys)."""
    sequence, first_row = find_tile(tl.program_id(0), cu_seqlens, sequences, BLOCK)
    begin, length = sequence_bounds(cu_seqlens, sequence, sequences, total)
    keys = tl.where(sequence < sequences, length, 0)
    return begin, first_row + tl.arange(0, BLOCK), length, keys


@triton.jit
def _dot(q, k, k_row, start, keys, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """(products of queries and keys, int32 (BLOCK, BLOCK); which keys there are, (1, BLOCK))."""
    key = start + tl.arange(0, BLOCK)
    words = tl.load(k + key.to(tl.int64) * k_row, key < keys, 0)
    product = tl.dot(q, bits_of_columns(words, WORD) * 2 - 1, out_dtype=tl.int32)
    return product, (key < keys)[None, :]


@triton.jit(do_not_specialize=["sequences", "total"])
def _binary_attention_kernel(
    q, k, v, cu_seqlens, table, half_alpha, thresholds, out, sequences, total, heads,
    q_row, q_head, k_row, k_head, v_row, v_head, lowest,
    RAILS: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    begin, row, length, keys = _find_rows(cu_seqlens, sequences, total, BLOCK)
    token = begin + row
    signs = signs_of(tl.load(q + token * q_row + head * q_head, row < length, 0), WORD)
    k += begin * k_row + head * k_head
    v += begin * v_row + head * v_head
    largest = tl.full((BLOCK,), -WORD, tl.int32)
    bound = tl.zeros((BLOCK,), tl.int32)
    if table is not None:
        for start in range(0, keys, BLOCK):
            dot, real = _dot(signs, k, k_row, start, keys, WORD, BLOCK)
            largest = tl.maximum(largest, tl.max(tl.where(real, dot, -WORD), 1))
        sums = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, keys, BLOCK):
            dot, real = _dot(signs, k, k_row, start, keys, WORD, BLOCK)
            e = tl.load(table + (largest[:, None] - dot) // 2, real, 0)
            sums += tl.sum(e, 1).to(tl.int64)  # 64 times 2^24
        limit = sums.to(tl.float64) * tl.load(half_alpha)
        bound = tl.minimum(limit, 1 << 24).to(tl.int32)  # no entry is above 2^24
    context = tl.zeros((BLOCK, WORD), tl.int32)
    for start in range(0, keys, BLOCK):
        dot, real = _dot(signs, k, k_row, start, keys, WORD, BLOCK)
        if table is None:
            attended = real & (dot >= lowest)
        else:
            e = tl.load(table + (largest[:, None] - dot) // 2, real, 0)
            attended = real & (e > bound[:, None])
        key = start + tl.arange(0, BLOCK)
        words = tl.load(v + key.to(tl.int64) * v_row, key < keys, 0)
        context += tl.dot(attended.to(tl.int8), signs_of(words, WORD), out_dtype=tl.int32)
    channel = tl.arange(0, WORD)
    mask = row < length
    if RAILS == 0:
        offset = (token * heads + head)[:, None] * WORD + channel[None, :]
        tl.store(out + offset, context, mask[:, None])
    else:
        inside = mask[:, None] & (keys > 0)
        at = out + token * (RAILS * heads) + head
        if thresholds is None:
            above = context > 0
            below = context < 0
        else:
            t = thresholds + head * WORD + channel
            above = context > tl.load(t)[None, :]
            below = above
            if RAILS == 2:
                below = context > tl.load(t + heads * WORD)[None, :]
                below &= context < tl.load(t + 2 * heads * WORD)[None, :]
        tl.store(at, pack_lanes(above & inside, WORD), mask)
        if RAILS == 2:
            tl.store(at + heads, pack_lanes(below & inside, WORD), mask)


@triton.jit(do_not_specialize=["sequences", "total"])
def _binary_qk_attention_kernel(
    q, k, v, v_scale, cu_seqlens, slopes, out, sequences, total, heads, scale,
    q_row, q_head, k_row, k_head, v_row, v_head,
    DOT: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    begin, row, length, keys = _find_rows(cu_seqlens, sequences, total, BLOCK)
    token = begin + row
    signs = signs_of(tl.load(q + token * q_row + head * q_head, row < length, 0), WORD)
    k += begin * k_row + head * k_head
    v += begin * v_row + head * v_head
    channel = tl.arange(0, WORD)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total_weight = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK, WORD), tl.float32)
    for start in range(0, keys, BLOCK):
        dot, real = _dot(signs, k, k_row, start, keys, WORD, BLOCK)
        scores = dot.to(tl.float32) * scale
        key = start + tl.arange(0, BLOCK)
        if slopes is not None:
            distance = tl.abs(row[:, None] - key[None, :]).to(tl.float32)
            scores -= tl.load(slopes + head) * distance
        scores = tl.where(real, scores, float("-inf"))
        before = largest
        largest = tl.maximum(largest, tl.max(scores, 1))  # every tile has a key: never -inf
        weights = tl.exp(scores - largest[:, None])
        shrink = tl.exp(before - largest)
        total_weight = total_weight * shrink + tl.sum(weights, 1)
        offset = key.to(tl.int64)[:, None] * v_row + channel[None, :]
        values = tl.load(v + offset, (key < keys)[:, None], 0).to(DOT)  # int8 exactly
        if v_scale is not None:
            weights *= tl.load(v_scale + begin + key, key < keys, 0)[None, :]
        weighted *= shrink[:, None]
        weighted += tl.dot(weights.to(DOT), values, input_precision="ieee")
    weighted /= tl.where(total_weight == 0, 1, total_weight)[:, None]
    offset = (token * heads + head)[:, None] * WORD + channel[None, :]
    tl.store(out + offset, weighted.to(out.dtype.element_ty), (row < length)[:, None])


@functools.lru_cache(maxsize=64)
def _elastic(softmax_scale, alpha, device):
    """The table of exponentials, int32 (65,), and alpha / 2, fp64 (1,): a plain number would reach
    the kernel as fp32."""
    table = torch.tensor(exponentials(softmax_scale), dtype=torch.int32, device=device)
    return table, torch.tensor([alpha / 2], dtype=torch.float64, device=device)


def _grid(q, cu_seqlens):
    sequences = cu_seqlens.shape[0] - 1
    return (q.shape[0] // _TILE["BLOCK"] + sequences + 1, q.shape[1])


@launcher
def binary_attention(q, k, v, cu_seqlens, mode, tie, softmax_scale, alpha, thresholds, rails):
    tokens, heads = q.shape
    shapes = ((tokens, heads, WORD), (tokens, heads), (tokens, 2, heads))
    out = q.new_empty(shapes[rails], dtype=torch.int64 if rails else torch.int32)
    elastic = _elastic(softmax_scale, alpha, q.device) if mode == "elastic" else (None, None)
    if out.numel():
        _binary_attention_kernel[_grid(q, cu_seqlens)](
            q, k, v, cu_seqlens.contiguous(), *elastic, vector(thresholds), out,
            cu_seqlens.shape[0] - 1, tokens, heads, *q.stride(), *k.stride(), *v.stride(),
            1 if tie == "strict" else 0, RAILS=rails, WORD=WORD,
            **(_ELASTIC_TILE if mode == "elastic" else _TILE),
        )  # fmt: skip
    return out


@launcher
def binary_qk_attention(q, k, v, cu_seqlens, softmax_scale, alibi_slopes, v_scale, out_dtype):
    v = row_strided(v)
    tokens, heads = q.shape
    out = v.new_empty(v.shape, dtype=out_dtype or v.dtype)
    # Weights times any scale are in the range of bf16, not of fp16.
    scaled_half = v.dtype == torch.int8 and out.dtype == torch.float16
    if out.numel():
        _binary_qk_attention_kernel[_grid(q, cu_seqlens)](
            q, k, v, vector(v_scale), cu_seqlens.contiguous(), vector(alibi_slopes), out,
            cu_seqlens.shape[0] - 1, tokens, heads, softmax_scale,
            *q.stride(), *k.stride(), *v.stride()[:2],
            DOT=dot_type(torch.bfloat16 if scaled_half else out.dtype), WORD=WORD, **_TILE,
        )  # fmt: skip
    return out
