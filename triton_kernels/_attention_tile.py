"""What the attention kernels share: finding a tile's sequence, and one tile of scores.

Programs cover packed rows in tiles of BLOCK that never cross a sequence. Sequence b begins at tile
cu_seqlens[b] // BLOCK + b: at least one tile for each of its parts, found without its length, so
that the grid needs only total_tokens and the batch. Rows behind the last sequence count as one more
sequence that has nothing on the other side. Surplus programs find themselves past their sequence.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from taut.triton_kernels.activation import tanh


class Problem(NamedTuple):
    """The arguments every attention kernel takes as one. None stands for an option not used.

    Biases are (heads, head_dim), strides in elements, rows are tokens.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_bias: torch.Tensor | None
    k_bias: torch.Tensor | None
    v_bias: torch.Tensor | None
    q_row: int
    q_head: int
    k_row: int
    k_head: int
    v_row: int
    v_head: int
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    group: int  # heads of q per head of k and v
    scale: float
    slopes: torch.Tensor | None
    slopes_row: int  # from one sequence's slopes to the next, 0 where all share them
    relative: torch.Tensor | None
    limit: int  # R of relative (heads, 2R + 1)
    left: int | None
    right: int | None
    softcap: float | None
    zeta: float | None
    gamma: float | None
    threshold: int | None  # of the random words that keep a probability under dropout
    keep_scale: float | None
    HEAD_DIM: tl.constexpr
    BLOCK_D: tl.constexpr
    DOT: tl.constexpr  # the type of the factors of tl.dot


@triton.jit
def sequence_bounds(cu_seqlens, sequence, sequences, total):
    """First row and length, inside [0, total] whatever cu_seqlens says; index `sequences` stands
    for the rows behind the last sequence."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), total)
    end = tl.load(cu_seqlens + sequence + 1, sequence < sequences, total)
    end = tl.minimum(tl.maximum(end, begin), total)
    return begin.to(tl.int64), (end - begin).to(tl.int32)


@triton.jit
def find_tile(tile, cu_seqlens, sequences, BLOCK: tl.constexpr):
    """(sequence, first row within it) of a tile, by binary search; never a negative row, whatever
    cu_seqlens says."""
    low = tl.zeros((), tl.int32)
    high = low + sequences
    while low < high:
        middle = (low + high + 1) // 2
        reached = tl.load(cu_seqlens + middle) // BLOCK + middle <= tile
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    return low, tl.maximum(tile - low - tl.load(cu_seqlens + low) // BLOCK, 0) * BLOCK


@triton.jit
def key_range(first_row, shift, len_k, p, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys that a tile of queries may see."""
    begin = tl.zeros((), tl.int32)
    end = len_k
    if p.left is not None:
        begin = tl.maximum(first_row + shift - p.left, 0) // BLOCK_N * BLOCK_N
    if p.right is not None:
        end = tl.minimum(len_k, first_row + BLOCK_M + shift + p.right)
    return begin, end


@triton.jit
def row_range(first_column, shift, len_q, p, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The queries that may see a tile of keys."""
    begin = tl.zeros((), tl.int32)
    end = len_q
    if p.right is not None:
        begin = tl.maximum(first_column - shift - p.right, 0) // BLOCK_M * BLOCK_M
    if p.left is not None:
        end = tl.minimum(len_q, first_column + BLOCK_N - shift + p.left)
    return begin, end


@triton.jit
def load_rows(pointer, bias, head, row, length, stride, p):
    """Rows of one head, (rows, BLOCK_D), as factors of tl.dot; rows outside [0, length) are zero
    or, with a bias, that of `head`: finite, so that a probability of zero hides them."""
    column = tl.arange(0, p.BLOCK_D)
    mask = ((row >= 0) & (row < length))[:, None] & (column < p.HEAD_DIM)[None, :]
    offset = row.to(tl.int64)[:, None] * stride + column[None, :]
    values = tl.load(pointer + offset, mask, 0)
    if bias is not None:
        shift = tl.load(bias + head * p.HEAD_DIM + column, column < p.HEAD_DIM, 0).to(tl.float32)
        values = (values.to(tl.float32) + shift[None, :]).to(pointer.dtype.element_ty)
    return values.to(p.DOT)


@triton.jit
def store_rows(pointer, row, length, stride, values, p):
    column = tl.arange(0, p.BLOCK_D)
    mask = (row < length)[:, None] & (column < p.HEAD_DIM)[None, :]
    offset = row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(pointer + offset, values.to(pointer.dtype.element_ty), mask)


@triton.jit
def load_q(p, begin, head, row, length):
    pointer = p.q + begin * p.q_row + head * p.q_head
    return load_rows(pointer, p.q_bias, head, row, length, p.q_row, p)


@triton.jit
def load_k(p, begin, head, row, length):
    pointer = p.k + begin * p.k_row + head * p.k_head
    return load_rows(pointer, p.k_bias, head, row, length, p.k_row, p)


@triton.jit
def load_v(p, begin, head, row, length):
    pointer = p.v + begin * p.v_row + head * p.v_head
    return load_rows(pointer, p.v_bias, head, row, length, p.v_row, p)


@triton.jit
def scores(q, k, sequence, head, row, column, len_q, len_k, p):
    """(scores with -inf for hidden keys, scores before the biases were added), both fp32."""
    capped = tl.dot(q, tl.trans(k), input_precision="ieee") * p.scale
    if p.softcap is not None:
        capped = p.softcap * tanh(capped / p.softcap)
    distance = row[:, None] + (len_k - len_q) - column[None, :]
    total = capped
    if p.slopes is not None:
        slope = tl.load(p.slopes + sequence * p.slopes_row + head)
        total -= slope * tl.abs(distance).to(tl.float32)
    if p.relative is not None:
        index = tl.minimum(tl.maximum(-distance, -p.limit), p.limit) + p.limit
        total += tl.load(p.relative + head * (2 * p.limit + 1) + index)
    visible = (row < len_q)[:, None] & ((column >= 0) & (column < len_k))[None, :]
    if p.left is not None:
        visible &= distance <= p.left
    if p.right is not None:
        visible &= distance >= -p.right
    return tl.where(visible, total, float("-inf")), capped


@triton.jit
def stretch(probabilities, total, p):
    """The linear part of the clipped softmax, 0 for hidden keys."""
    stretched = (p.zeta - p.gamma) * probabilities + p.gamma
    return tl.where(total == float("-inf"), 0, stretched)


@triton.jit
def finite_or_zero(x):
    return tl.where(x == float("-inf"), 0, x)


@triton.jit
def keep_factors(p, seed, head, packed_row, first_column, BLOCK_N: tl.constexpr):
    """0 or 1 / (1 - dropout_p), (rows, BLOCK_N): key j of the sequence takes word j % 4 of Philox
    with counter (j // 4, row of q in the packed tensor, head, 0). first_column is a multiple of 4.
    """
    block = first_column // 4 + tl.arange(0, BLOCK_N // 4)
    zeros = tl.zeros((packed_row.shape[0], BLOCK_N // 4), tl.int32)
    w0, w1, w2, w3 = tl.philox(
        seed,
        zeros + block[None, :],
        zeros + packed_row.to(tl.int32)[:, None],
        zeros + head.to(tl.int32),
        zeros,
    )
    # Two joins put word 2s + t at [..., s, t].
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, (packed_row.shape[0], BLOCK_N))
    return tl.where(words >= p.threshold, p.keep_scale, 0.0)
