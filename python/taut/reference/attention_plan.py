"""The order in which CUDA kernels of varlen attention take their work; no result depends on it.

A plan is int32 (4 + total_q // 64 + batch + batch, 2). With n = max(len_q, len_k) of a sequence:

    rows 0 to 3   error, rows of q in sequences, then how many items there are with n > 256, with
                  n > 32, with n > 16, and in all; 0, 0. An error leaves all else 0 and -1:
                  1: cu_seqlens does not start at 0, 2: decreases, 3: ends behind the tokens
    items         (sequence, first row): 128 rows of q where n > 256, else 64; by falling n, then by
                  sequence and row
    sequences     (sequence, n), in the same order

Unused rows are -1.
"""

import torch

from taut.reference._check import check_cu_seqlens

HEADER, SHORT_ROWS, LONG_ROWS, SHORT_LENGTH = 4, 64, 128, 256


def plan_rows(batch: int, total_q: int) -> int:
    return HEADER + total_q // SHORT_ROWS + 2 * batch


def check_attention_plan(cu_seqlens_q, cu_seqlens_k, total_q, total_k):
    op = "attention_plan"
    for name, total in (("total_q", total_q), ("total_k", total_k)):
        if total < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {total}")
    check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, total_q)
    if cu_seqlens_k is None:
        return
    check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, total_k)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"{op}: cu_seqlens_k must be {tuple(cu_seqlens_q.shape)} like cu_seqlens_q, "
            f"got {tuple(cu_seqlens_k.shape)}"
        )


def _error(offsets, total):
    """The largest of the errors."""
    if offsets[-1] > total:
        return 3
    if any(a > b for a, b in zip(offsets, offsets[1:], strict=False)):
        return 2
    return int(offsets[0] != 0)


def attention_plan(cu_seqlens_q, cu_seqlens_k, total_q, total_k):
    begin_q = cu_seqlens_q.tolist()
    begin_k = begin_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
    batch = len(begin_q) - 1
    plan = torch.full((plan_rows(batch, total_q), 2), -1, dtype=torch.int32)
    plan[:HEADER] = 0
    error = max(_error(begin_q, total_q), _error(begin_k, total_k)) if batch else 0
    plan[0, 0] = error
    if batch == 0 or error:
        return plan.to(cu_seqlens_q.device)
    len_q = [b - a for a, b in zip(begin_q, begin_q[1:], strict=False)]
    len_k = [b - a for a, b in zip(begin_k, begin_k[1:], strict=False)]
    longest = [max(pair) for pair in zip(len_q, len_k, strict=True)]
    order = sorted(range(batch), key=lambda b: -longest[b])
    items = [
        (b, first)
        for b in order
        for first in range(0, len_q[b], LONG_ROWS if longest[b] > SHORT_LENGTH else SHORT_ROWS)
    ]
    ends = [sum(longest[b] > n for b, _ in items) for n in (SHORT_LENGTH, 32, 16, -1)]
    plan[0, 1], plan[1, 0], plan[1, 1], plan[2, 0], plan[2, 1] = begin_q[-1], *ends
    if items:
        plan[HEADER : HEADER + len(items)] = torch.tensor(items, dtype=torch.int32)
    plan[-batch:] = torch.tensor([(b, longest[b]) for b in order], dtype=torch.int32)
    return plan.to(cu_seqlens_q.device)
