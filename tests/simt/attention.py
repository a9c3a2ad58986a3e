"""Calls the CUDA attention kernels in the host executor: the launchers' part in Python."""

import ctypes

import torch

from simt.memory import BOOL, FLOAT, INT32, POINTER, call, fields, memory_of, pointer_of, structure

KINDS = {torch.bfloat16: 1, torch.float16: 0}
HEADER, SHORT_ROWS, NO_WINDOW = 4, 64, 1 << 30


Rows = structure("Rows", *fields(POINTER, "data bias"), *fields(INT32, "token_stride head_stride"))
Gradient = structure(
    "Gradient", *fields(POINTER, "data"), *fields(INT32, "token_stride head_stride")
)
PlanParams = structure(
    "PlanParams",
    *fields(POINTER, "cu_seqlens_q cu_seqlens_k"),
    *fields(INT32, "batch total_q total_k items"),
    *fields(POINTER, "plan"),
)
Params = structure(
    "Params",
    *fields(Rows, "q k v"),
    *fields(POINTER, "out logsumexp cu_seqlens_q cu_seqlens_k plan"),
    *fields(INT32, "plan_items batch total_q total_k heads group head_dim"),
    *fields(FLOAT, "scale"),
    *fields(POINTER, "alibi_slopes"),
    *fields(INT32, "slopes_stride"),
    *fields(POINTER, "relative_bias"),
    *fields(INT32, "relative_limit window_left window_right"),
    *fields(FLOAT, "softcap"),
    *fields(BOOL, "clip dropout"),
    *fields(FLOAT, "clip_slope clip_offset"),
    *fields(ctypes.c_uint32, "dropout_threshold"),
    *fields(FLOAT, "keep_scale"),
    ("seed", ctypes.c_uint32 * 2),
    *fields(BOOL, "on_hopper"),
)
BackwardParams = structure(
    "BackwardParams",
    *fields(INT32, "phase"),
    ("forward", Params),
    *fields(Rows, "out grad_out"),
    *fields(Gradient, "dq dk dv"),
    *fields(POINTER, "lse2 delta key_plan"),
    *fields(INT32, "key_plan_items"),
    *fields(POINTER, "slope_shares relative_shares"),
)
SharesParams = structure(
    "SharesParams",
    *fields(POINTER, "x out cu_seqlens"),
    *fields(INT32, "rows columns total"),
)


def _rows(t, bias=None):
    return Rows(t.data_ptr(), pointer_of(bias), t.stride(0), t.stride(1))


def plan(cu_q, cu_k, total_q, total_k, schedule=0):
    batch = cu_q.shape[0] - 1
    items = total_q // SHORT_ROWS + batch
    out = torch.full((HEADER + items + batch, 2), -77, dtype=torch.int32)
    params = PlanParams(
        cu_q.data_ptr(), cu_k.data_ptr(), batch, total_q, total_k, items, out.data_ptr()
    )
    call("attention", "plan", params, memory_of((cu_q, cu_k), (out,)), schedule=schedule)
    return out


def nonsense_items(plan):
    """In place of a plan's items. No two are of one sequence: blocks that write the same rows race."""
    items = torch.randint(-100, 100, plan[HEADER:].shape, dtype=torch.int32)
    items[:, 0] = torch.randperm(200)[: len(items)] - 100
    return items


def _params(q, k, v, biases, cu_q, cu_k, plan, options):
    scale, slopes, relative, causal, left, right, softcap, clip, dropout_p, seed = options
    right = 0 if causal else right
    batch = cu_q.shape[0] - 1
    p = Params(*(_rows(t, bias) for t, bias in zip((q, k, v), biases, strict=True)))
    p.cu_seqlens_q, p.cu_seqlens_k, p.plan = map(pointer_of, (cu_q, cu_k, plan))
    p.plan_items, p.batch = q.shape[0] // SHORT_ROWS + batch, batch
    p.total_q, p.total_k, p.heads, p.head_dim = q.shape[0], k.shape[0], q.shape[1], q.shape[2]
    p.group, p.scale, p.softcap = q.shape[1] // k.shape[1], scale, softcap
    p.alibi_slopes, p.relative_bias = pointer_of(slopes), pointer_of(relative)
    p.slopes_stride = q.shape[1] if slopes is not None and slopes.dim() == 2 else 0
    p.relative_limit = 0 if relative is None else relative.shape[1] // 2
    p.window_left = NO_WINDOW if left < 0 else left
    p.window_right = NO_WINDOW if right < 0 else right
    if clip is not None:
        p.clip, p.clip_slope, p.clip_offset = True, clip[0] - clip[1], clip[1]
    p.dropout, p.dropout_threshold = dropout_p > 0, int(dropout_p * 2**32)
    p.keep_scale = 1 / (1 - dropout_p)
    p.seed[0], p.seed[1] = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return p


def forward(q, k, v, cu_q, cu_k, *options, biases=(None,) * 3, schedule=0, given_plan=None,
            on_hopper=False):  # fmt: skip
    """(out, logsumexp), as the op gives them; outputs start as a sentinel."""
    out = torch.full(q.shape, 77.0, dtype=q.dtype)
    logsumexp = torch.full((q.shape[1], q.shape[0]), 77.0)
    items = given_plan
    if items is None:
        items = plan(cu_q, cu_k, q.shape[0], k.shape[0], schedule)
    p = _params(q, k, v, biases, cu_q, cu_k, items, options)
    p.out, p.logsumexp = out.data_ptr(), logsumexp.data_ptr()
    reads = (q, k, v, cu_q, cu_k, items, *options[1:3], *biases)
    memory = memory_of(reads, (out, logsumexp))
    p.on_hopper = on_hopper
    if on_hopper:
        kind = KINDS[q.dtype]
        call("attention_hopper", "forward_hopper", p, memory, kind, schedule=schedule)
    call("attention", "forward", p, memory, KINDS[q.dtype], schedule=schedule)
    return out, logsumexp


def backward(
    grad_out, q, k, v, out, logsumexp, cu_q, cu_k, *options, biases=(None,) * 3, schedule=0,
    gradients=None, given_plans=None, on_hopper=False,
):  # fmt: skip
    """(dq, dk, dv, dslopes, drelative_bias), as the op gives them."""
    slopes, relative = options[1:3]
    total_q, heads = q.shape[:2]
    items, key_items = given_plans or (
        plan(cu_q, cu_k, total_q, k.shape[0], schedule),
        plan(cu_k, cu_q, k.shape[0], total_q, schedule),
    )
    b = BackwardParams()
    b.forward = _params(q, k, v, biases, cu_q, cu_k, items, options)
    b.forward.logsumexp = logsumexp.data_ptr()
    b.out, b.grad_out = _rows(out), _rows(grad_out)
    if gradients is None:
        gradients = [torch.full(t.shape, 77.0, dtype=t.dtype) for t in (q, k, v)]
    b.dq, b.dk, b.dv = (Gradient(t.data_ptr(), t.stride(0), t.stride(1)) for t in gradients)
    lse2, delta = torch.full((2, heads, total_q), float("nan"))
    b.lse2, b.delta, b.key_plan = lse2.data_ptr(), delta.data_ptr(), key_items.data_ptr()
    b.key_plan_items = k.shape[0] // SHORT_ROWS + cu_k.shape[0] - 1
    tiles = b.forward.plan_items
    slope_shares = None if slopes is None else torch.zeros(tiles, heads)
    relative_shares = None if relative is None else torch.zeros(tiles, heads, relative.shape[1])
    b.slope_shares, b.relative_shares = map(pointer_of, (slope_shares, relative_shares))
    reads = (q, k, v, cu_q, cu_k, items, key_items, *options[1:3], *biases, out, grad_out,
             logsumexp)  # fmt: skip
    memory = memory_of(reads, (*gradients, lse2, delta, slope_shares, relative_shares))
    b.forward.on_hopper = on_hopper
    if on_hopper:
        kind = KINDS[q.dtype]
        call("attention_hopper_backward", "backward_hopper", b, memory, kind, schedule=schedule)
    call("attention", "backward", b, memory, KINDS[q.dtype], schedule=schedule)

    def summed(shares, like, per_sequence):
        if shares is None:
            return torch.empty(0)
        sums = torch.full(like.shape, 77.0)
        params = SharesParams(
            shares.data_ptr(), sums.data_ptr(), cu_q.data_ptr() if per_sequence else None,
            tiles, shares[0].numel() if tiles else like[..., :].numel(), total_q,
        )  # fmt: skip
        rows = like.shape[0] if per_sequence else 1
        call(
            "attention",
            "shares",
            params,
            memory_of((shares, cu_q), (sums,)),
            rows,
            schedule=schedule,
        )
        return sums

    return (
        *gradients,
        summed(slope_shares, slopes, slopes is not None and slopes.dim() == 2),
        summed(relative_shares, relative, False),
    )
