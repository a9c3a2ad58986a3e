"""Calls the CUDA kernels of attention over packed signs in the host executor: the launchers' part
in Python."""

import torch

from simt import attention
from simt.binary_gemm import SENTINEL
from simt.memory import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    POINTER,
    call,
    fields,
    memory_of,
    pointer_of,
    structure,
)
from taut.formats import WORD
from taut.reference.binary_attention import exponentials

BitRows = structure("BitRows", ("data", POINTER), *fields(INT64, "token_stride head_stride"))
Batch = structure(
    "Batch",
    *fields(POINTER, "cu_seqlens plan"),
    *fields(INT32, "plan_items batch total heads"),
)
Params = structure(
    "Params",
    *fields(BitRows, "q k v"),
    ("batch", Batch),
    ("lowest", INT32),
    ("elastic", BOOL),
    ("exponentials", INT32 * (WORD + 1)),
    ("half_alpha", DOUBLE),
    ("thresholds", POINTER),
    ("rails", INT32),
    ("out", POINTER),
)
QkParams = structure(
    "QkParams",
    *fields(BitRows, "q k"),
    ("v", attention.Rows),
    ("v_scale", POINTER),
    ("batch", Batch),
    ("scale", FLOAT),
    *fields(POINTER, "alibi_slopes out"),
)


def _rows(t):
    return BitRows(t.data_ptr(), *t.stride())


def _batch(tokens, heads, cu_seqlens, plan):
    sequences = cu_seqlens.shape[0] - 1
    items = tokens // attention.SHORT_ROWS + sequences
    return Batch(cu_seqlens.data_ptr(), plan.data_ptr(), items, sequences, tokens, heads)


def binary_attention(
    q, k, v, cu_seqlens, mode="bool", tie="strict", softmax_scale=0.125, alpha=0.0,
    thresholds=None, rails=2, schedule=0, given_plan=None,
):  # fmt: skip
    tokens, heads = q.shape
    plan = given_plan
    if plan is None:
        plan = attention.plan(cu_seqlens, cu_seqlens, tokens, tokens, schedule)
    shapes = ((tokens, heads, WORD), (tokens, heads), (tokens, 2, heads))
    out = torch.full(shapes[rails], SENTINEL, dtype=torch.int64 if rails else torch.int32)
    p = Params(*map(_rows, (q, k, v)), _batch(tokens, heads, cu_seqlens, plan))
    p.lowest = 33 if tie == "strict" else 32
    p.elastic, p.half_alpha = mode == "elastic", alpha / 2
    p.exponentials[:] = exponentials(softmax_scale)
    p.thresholds, p.rails, p.out = pointer_of(thresholds), rails, out.data_ptr()
    memory = memory_of((q, k, v, cu_seqlens, plan, thresholds), (out,))
    call("binary_attention", "binary_attention", p, memory, schedule=schedule)
    return out


def binary_qk_attention(
    q, k, v, cu_seqlens, softmax_scale=0.125, alibi_slopes=None, v_scale=None, out_dtype=None,
    schedule=0,
):  # fmt: skip
    tokens, heads = q.shape
    plan = attention.plan(cu_seqlens, cu_seqlens, tokens, tokens, schedule)
    out = torch.full((tokens, heads, WORD), 77.0, dtype=out_dtype or v.dtype)
    pairs = 2 if v.dtype == torch.int8 else 1
    rows = attention.Rows(v.data_ptr(), None, v.stride(0) // pairs, v.stride(1) // pairs)
    p = QkParams(_rows(q), _rows(k), rows, pointer_of(v_scale))
    p.batch = _batch(tokens, heads, cu_seqlens, plan)
    p.scale, p.alibi_slopes, p.out = softmax_scale, pointer_of(alibi_slopes), out.data_ptr()
    memory = memory_of((q, k, v, cu_seqlens, plan, alibi_slopes, v_scale), (out,))
    kind = attention.KINDS[out.dtype]
    call("binary_attention", "binary_qk_attention", p, memory, kind, schedule=schedule)
    return out
