"""Gradients of attention over packed sequences, in a fixed order: no atomics anywhere.

A program per tile of queries makes dq, delta and its share of the options' gradients; a program per
tile of keys then makes dk and dv; a program per tile of queries and block of diagonals adds up what
lies on each diagonal for the relative bias.
"""

import torch
import triton
import triton.language as tl

from taut.triton_kernels._attention_tile import (
    find_tile,
    finite_or_zero,
    keep_factors,
    key_range,
    load_k,
    load_q,
    load_rows,
    load_v,
    row_range,
    scores,
    sequence_bounds,
    store_rows,
    stretch,
)

# (bytes per element, head_dim up to) -> tile. Each kernel holds two accumulators or operands more
# than the forward one, hence smaller tiles for wide heads; K and V, or Q and the gradient, must fit
# the 64 KB of shared memory of gfx942.
_TILES = {
    (2, 64): {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    (2, 128): {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4, "num_stages": 1},
    (2, 256): {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
    (4, 64): {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
    (4, 128): {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
    (4, 256): {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
}

# Likewise for _diagonal_kernel: ROWS queries, and a WINDOW of keys that holds every diagonal.
_DIAGONAL_TILES = {
    (2, 64): {"ROWS": 32, "DIAGONALS": 64, "WINDOW": 128},
    (2, 128): {"ROWS": 16, "DIAGONALS": 32, "WINDOW": 64},
    (2, 256): {"ROWS": 16, "DIAGONALS": 32, "WINDOW": 64},
    (4, 64): {"ROWS": 16, "DIAGONALS": 32, "WINDOW": 64},
    (4, 128): {"ROWS": 16, "DIAGONALS": 8, "WINDOW": 32},
    (4, 256): {"ROWS": 16, "DIAGONALS": 8, "WINDOW": 32},
}


@triton.jit
def _probabilities(q, k, grad, v, lse, sequence, head, row, column, len_q, len_k, p):
    """(softmax, the probabilities that met v before dropout, gradient of the softmax without
    dropout's factor, scores before biases): one tile, fp32."""
    s, capped = scores(q, k, sequence, head, row, column, len_q, len_k, p)
    soft = tl.exp(s - finite_or_zero(lse)[:, None])
    dsoft = tl.dot(grad, tl.trans(v), input_precision="ieee")
    used = soft
    if p.zeta is not None:
        stretched = stretch(soft, s, p)
        used = tl.minimum(tl.maximum(stretched, 0), 1)
        dsoft = tl.where(stretched == used, dsoft * (p.zeta - p.gamma), 0)
    return soft, used, dsoft, capped


@triton.jit
def _through_softcap(dscores, capped, p):
    if p.softcap is not None:
        ratio = capped / p.softcap
        dscores = dscores * (1 - ratio * ratio)
    return dscores


@triton.jit
def _load_lse(pointer, total_q, head, begin, row, length):
    return tl.load(pointer + head * total_q + begin + row, row < length, float("-inf"))


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "seed"])
def _query_gradient_kernel(
    p, sequences, total_q, total_k, seed,
    grad_out, out, logsumexp, dq, delta_out, slopes_partial, ends_partial,
    grad_row, grad_head, out_row, out_head, dq_row, dq_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """slopes_partial (tiles, heads): shares of the slopes' gradient; ends_partial (tiles, heads, 2):
    of the relative biases of keys at -R or before, and at R (1 if R is 0) or after."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    sequence, first_row = find_tile(tile, p.cu_seqlens_q, sequences, BLOCK_M)
    begin_q, len_q = sequence_bounds(p.cu_seqlens_q, sequence, sequences, total_q)
    if first_row >= len_q:
        return
    begin_k, len_k = sequence_bounds(p.cu_seqlens_k, sequence, sequences, total_k)
    len_k = tl.where(sequence < sequences, len_k, 0)
    row = first_row + tl.arange(0, BLOCK_M)
    q = load_q(p, begin_q, head, row, len_q)
    grad = load_rows(
        grad_out + begin_q * grad_row + head * grad_head, None, head, row, len_q, grad_row, p
    )
    lse = _load_lse(logsumexp, total_q, head, begin_q, row, len_q)
    begin, end = key_range(first_row, len_k - len_q, len_k, p, BLOCK_M, BLOCK_N)

    # delta: sum over keys of softmax times its gradient; without clipping that is out . grad_out,
    # but for the rounding of out, which the gradient of the relative bias would magnify.
    if p.zeta is None and p.relative is None:
        given = load_rows(
            out + begin_q * out_row + head * out_head, None, head, row, len_q, out_row, p
        )
        delta = tl.sum(given.to(tl.float32) * grad.to(tl.float32), 1)
    else:
        delta = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(begin, end, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)
            k = load_k(p, begin_k, head // p.group, column, len_k)
            v = load_v(p, begin_k, head // p.group, column, len_k)
            soft, _, dsoft, _ = _probabilities(
                q, k, grad, v, lse, sequence, head, row, column, len_q, len_k, p
            )
            if p.threshold is not None:
                dsoft *= keep_factors(p, seed, head, begin_q + row, start, BLOCK_N)
            delta += tl.sum(soft * dsoft, 1)
    tl.store(delta_out + head * total_q + begin_q + row, delta, row < len_q)

    weighted = tl.zeros((BLOCK_M, p.BLOCK_D), tl.float32)
    far_sum = tl.zeros((BLOCK_M,), tl.float32)
    far_mean = tl.zeros((BLOCK_M,), tl.float32)
    residue = tl.zeros((BLOCK_M,), tl.float32)
    low_sum = tl.zeros((BLOCK_M,), tl.float32)
    high_sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(begin, end, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        k = load_k(p, begin_k, head // p.group, column, len_k)
        v = load_v(p, begin_k, head // p.group, column, len_k)
        soft, _, dsoft, capped = _probabilities(
            q, k, grad, v, lse, sequence, head, row, column, len_q, len_k, p
        )
        if p.threshold is not None:
            dsoft *= keep_factors(p, seed, head, begin_q + row, start, BLOCK_N)
        dscores = soft * (dsoft - delta[:, None])
        offset = column[None, :] - row[:, None] - (len_k - len_q)
        if p.slopes is not None:
            far = tl.abs(offset).to(tl.float32)
            far_sum += tl.sum(dscores * far, 1)
            far_mean += tl.sum(soft * far, 1)
            residue += tl.sum(dscores, 1)
        if p.relative is not None:
            low_sum += tl.sum(tl.where(offset <= -p.limit, dscores, 0), 1)
            high_sum += tl.sum(tl.where(offset >= tl.maximum(p.limit, 1), dscores, 0), 1)
        dscores = _through_softcap(dscores, capped, p)
        weighted += tl.dot(dscores.to(p.DOT), k, input_precision="ieee")
    store_rows(dq + begin_q * dq_row + head * dq_head, row, len_q, dq_row, weighted * p.scale, p)
    share = tile.to(tl.int64) * tl.num_programs(1) + head
    if p.slopes is not None:
        # A row of dscores sums to zero but for the rounding of delta, which distances would magnify.
        tl.store(slopes_partial + share, -tl.sum(far_sum - residue * far_mean, 0))
    if p.relative is not None:
        tl.store(ends_partial + 2 * share, tl.sum(low_sum, 0))
        tl.store(ends_partial + 2 * share + 1, tl.sum(high_sum, 0))


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "seed"])
def _key_gradient_kernel(
    p, sequences, total_q, total_k, seed,
    grad_out, logsumexp, delta_in, dk, dv,
    grad_row, grad_head, dk_row, dk_head, dv_row, dv_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of keys and head of k, over the queries of all heads in its group."""
    key_head = tl.program_id(1).to(tl.int64)
    sequence, first_column = find_tile(tl.program_id(0), p.cu_seqlens_k, sequences, BLOCK_N)
    begin_k, len_k = sequence_bounds(p.cu_seqlens_k, sequence, sequences, total_k)
    if first_column >= len_k:
        return
    begin_q, len_q = sequence_bounds(p.cu_seqlens_q, sequence, sequences, total_q)
    len_q = tl.where(sequence < sequences, len_q, 0)
    column = first_column + tl.arange(0, BLOCK_N)
    k = load_k(p, begin_k, key_head, column, len_k)
    v = load_v(p, begin_k, key_head, column, len_k)
    begin, end = row_range(first_column, len_k - len_q, len_q, p, BLOCK_M, BLOCK_N)
    key_sum = tl.zeros((BLOCK_N, p.BLOCK_D), tl.float32)
    value_sum = tl.zeros((BLOCK_N, p.BLOCK_D), tl.float32)
    for member in range(0, p.group):
        head = key_head * p.group + member
        for start in range(begin, end, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            q = load_q(p, begin_q, head, row, len_q)
            grad = load_rows(
                grad_out + begin_q * grad_row + head * grad_head,
                None,
                head,
                row,
                len_q,
                grad_row,
                p,
            )
            lse = _load_lse(logsumexp, total_q, head, begin_q, row, len_q)
            delta = tl.load(delta_in + head * total_q + begin_q + row, row < len_q, 0)
            soft, used, dsoft, capped = _probabilities(
                q, k, grad, v, lse, sequence, head, row, column, len_q, len_k, p
            )
            if p.threshold is not None:
                keep = keep_factors(p, seed, head, begin_q + row, first_column, BLOCK_N)
                dsoft *= keep
                used *= keep
            value_sum += tl.dot(tl.trans(used.to(p.DOT)), grad, input_precision="ieee")
            dscores = _through_softcap(soft * (dsoft - delta[:, None]), capped, p)
            key_sum += tl.dot(tl.trans(dscores.to(p.DOT)), q, input_precision="ieee")
    pointer = dk + begin_k * dk_row + key_head * dk_head
    store_rows(pointer, column, len_k, dk_row, key_sum * p.scale, p)
    pointer = dv + begin_k * dv_row + key_head * dv_head
    store_rows(pointer, column, len_k, dv_row, value_sum, p)


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "seed"])
def _diagonal_kernel(
    p, sequences, total_q, total_k, seed,
    grad_out, logsumexp, delta_in, diagonals, grad_row, grad_head,
    ROWS: tl.constexpr, DIAGONALS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """diagonals (tiles, heads, 2R - 1): sums of score gradients over ROWS queries and the keys at
    one offset from each, offsets 1 - R to R - 1. A tile of (ROWS, WINDOW) is skewed so that its
    columns are diagonals."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    sequence, first_row = find_tile(tile, p.cu_seqlens_q, sequences, ROWS)
    begin_q, len_q = sequence_bounds(p.cu_seqlens_q, sequence, sequences, total_q)
    if (first_row >= len_q) | (sequence == sequences):
        return
    begin_k, len_k = sequence_bounds(p.cu_seqlens_k, sequence, sequences, total_k)
    first_diagonal = tl.program_id(2) * DIAGONALS
    row = first_row + tl.arange(0, ROWS)
    # A window that starts at a multiple of 4 keeps the words of a Philox counter together.
    wanted = first_row + len_k - len_q + first_diagonal + 1 - p.limit
    skip = ((wanted % 4) + 4) % 4
    column = wanted - skip + tl.arange(0, WINDOW)
    q = load_q(p, begin_q, head, row, len_q)
    k = load_k(p, begin_k, head // p.group, column, len_k)
    v = load_v(p, begin_k, head // p.group, column, len_k)
    pointer = grad_out + begin_q * grad_row + head * grad_head
    grad = load_rows(pointer, None, head, row, len_q, grad_row, p)
    lse = _load_lse(logsumexp, total_q, head, begin_q, row, len_q)
    delta = tl.load(delta_in + head * total_q + begin_q + row, row < len_q, 0)
    soft, _, dsoft, _ = _probabilities(
        q, k, grad, v, lse, sequence, head, row, column, len_q, len_k, p
    )
    if p.threshold is not None:
        dsoft *= keep_factors(p, seed, head, begin_q + row, wanted - skip, WINDOW)
    dscores = soft * (dsoft - delta[:, None])
    tl.static_assert(ROWS + DIAGONALS + 2 <= WINDOW, "a skewed row must stay inside the window")
    diagonal = tl.arange(0, DIAGONALS)
    skewed = tl.gather(dscores, tl.arange(0, ROWS)[:, None] + diagonal[None, :] + skip, 1)
    share = (tile.to(tl.int64) * tl.num_programs(1) + head) * (2 * p.limit - 1) + first_diagonal
    mask = first_diagonal + diagonal < 2 * p.limit - 1
    tl.store(diagonals + share + diagonal, tl.sum(skewed, 0), mask)


@triton.jit(do_not_specialize=["sequences", "total_q"])
def _sum_tiles_kernel(
    partial, cu_seqlens, out, sequences, total_q, heads,
    BLOCK_M: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """out[b] is the sum of partial (tiles, heads) over the tiles of sequence b."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    begin, length = sequence_bounds(cu_seqlens, sequence, sequences, total_q)
    first = begin // BLOCK_M + sequence
    total = tl.zeros((HEADS,), tl.float32)
    for tile in range(first, first + (length + BLOCK_M - 1) // BLOCK_M):
        total += tl.load(partial + tile * heads + head, head < heads, 0)
    tl.store(out + sequence * heads + head, total, head < heads)


def _slopes_gradient(problem, partial, block):
    """The gradient of (batch, heads) or (heads,) slopes."""
    sequences, heads = problem.cu_seqlens_q.shape[0] - 1, partial.shape[1]
    if not problem.slopes_row:
        return partial.sum(0)
    dslopes = partial.new_empty((sequences, heads))
    if dslopes.numel():
        _sum_tiles_kernel[(sequences,)](
            partial, problem.cu_seqlens_q, dslopes, sequences, problem.q.shape[0], heads,
            BLOCK_M=block, HEADS=triton.next_power_of_2(heads),
        )  # fmt: skip
    return dslopes


def _relative_gradient(problem, common, ends, given, key):
    """The gradient of (heads, 2R + 1) relative biases."""
    low, high = ends.sum(0).unbind(1)
    if problem.limit == 0:
        return (low + high)[:, None]
    tile = _DIAGONAL_TILES[key]
    sequences, total, heads = common[0], common[1], problem.q.shape[1]
    tiles, width = total // tile["ROWS"] + sequences + 1, 2 * problem.limit - 1
    diagonals = ends.new_zeros((tiles, heads, width))
    _diagonal_kernel[(tiles, heads, triton.cdiv(width, tile["DIAGONALS"]))](
        problem, *common, *given[:3], diagonals, *given[3:], **tile
    )
    return torch.cat((low[:, None], diagonals.sum(0), high[:, None]), 1)


def attention_backward(problem, seed, grad_out, out, logsumexp, dq, dk, dv):
    """Fills dq, dk and dv (rows may be strided); returns (dslopes, drelative_bias)."""
    q, k = problem.q, problem.k
    total, heads, head_dim = q.shape
    sequences = problem.cu_seqlens_q.shape[0] - 1
    key = q.element_size(), max(64, triton.next_power_of_2(head_dim))
    tile = _TILES[key]
    common = sequences, total, k.shape[0], seed
    logsumexp = logsumexp.contiguous()
    delta = logsumexp.new_empty(logsumexp.shape)
    tiles = total // tile["BLOCK_M"] + sequences + 1
    slopes = None if problem.slopes is None else delta.new_zeros((tiles, heads))
    ends = None if problem.relative is None else delta.new_zeros((tiles, heads, 2))
    strides = grad_out.stride()[:2]
    if q.numel():
        _query_gradient_kernel[(tiles, heads)](
            problem, *common, grad_out, out, logsumexp, dq, delta, slopes, ends,
            *strides, *out.stride()[:2], *dq.stride()[:2], **tile,
        )  # fmt: skip
    if k.numel():
        _key_gradient_kernel[(k.shape[0] // tile["BLOCK_N"] + sequences + 1, k.shape[1])](
            problem, *common, grad_out, logsumexp, delta, dk, dv,
            *strides, *dk.stride()[:2], *dv.stride()[:2], **tile,
        )  # fmt: skip
    none = delta.new_empty((0,))
    return (
        none if slopes is None else _slopes_gradient(problem, slopes, tile["BLOCK_M"]),
        none if ends is None else _relative_gradient(
            problem, common, ends, (grad_out, logsumexp, delta, *strides), key
        ),
    )  # fmt: skip
