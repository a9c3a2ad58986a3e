"""Calls the CUDA attention kernels in the host executor: the launchers' part in Python."""

import ctypes

import torch

from simt import build

KINDS = {torch.bfloat16: 1, torch.float16: 0}
HEADER, SHORT_ROWS, NO_WINDOW = 4, 64, 1 << 30


def _structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def _fields(kind, names):
    return [(name, kind) for name in names.split()]


_pointer, _int, _float, _bool = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_bool
Rows = _structure(
    "Rows", *_fields(_pointer, "data bias"), *_fields(_int, "token_stride head_stride")
)
Gradient = _structure(
    "Gradient", *_fields(_pointer, "data"), *_fields(_int, "token_stride head_stride")
)
PlanParams = _structure(
    "PlanParams",
    *_fields(_pointer, "cu_seqlens_q cu_seqlens_k"),
    *_fields(_int, "batch total_q total_k items"),
    *_fields(_pointer, "plan"),
)
Params = _structure(
    "Params",
    *_fields(Rows, "q k v"),
    *_fields(_pointer, "out logsumexp cu_seqlens_q cu_seqlens_k plan"),
    *_fields(_int, "plan_items batch total_q total_k heads group head_dim"),
    *_fields(_float, "scale"),
    *_fields(_pointer, "alibi_slopes"),
    *_fields(_int, "slopes_stride"),
    *_fields(_pointer, "relative_bias"),
    *_fields(_int, "relative_limit window_left window_right"),
    *_fields(_float, "softcap"),
    *_fields(_bool, "clip dropout"),
    *_fields(_float, "clip_slope clip_offset"),
    *_fields(ctypes.c_uint32, "dropout_threshold"),
    *_fields(_float, "keep_scale"),
    ("seed", ctypes.c_uint32 * 2),
    *_fields(_bool, "on_hopper"),
)
BackwardParams = _structure(
    "BackwardParams",
    *_fields(_int, "phase"),
    ("forward", Params),
    *_fields(Rows, "out grad_out"),
    *_fields(Gradient, "dq dk dv"),
    *_fields(_pointer, "lse2 delta key_plan"),
    *_fields(_int, "key_plan_items"),
    *_fields(_pointer, "slope_shares relative_shares"),
)
SharesParams = _structure(
    "SharesParams",
    *_fields(_pointer, "x out cu_seqlens"),
    *_fields(_int, "rows columns total"),
)


class Memory(ctypes.Structure):
    """What the kernels of a call may touch: everything else is out of bounds."""

    _fields_ = [
        ("reads", ctypes.c_void_p * 16),
        ("read_bytes", ctypes.c_int64 * 16),
        ("writes", ctypes.c_void_p * 8),
        ("write_bytes", ctypes.c_int64 * 8),
    ]


def _extent(t):
    """Bytes from the first to the last element of t."""
    if t.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def _memory(reads, writes):
    memory = Memory()
    for pointers, sizes, tensors in (
        (memory.reads, memory.read_bytes, reads),
        (memory.writes, memory.write_bytes, writes),
    ):
        for i, t in enumerate(t for t in tensors if t is not None):
            pointers[i], sizes[i] = t.data_ptr(), _extent(t)
    return memory


def _call(name, *arguments, schedule, seed=1, case="attention"):
    function = getattr(build.load(case), name)
    arguments = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    build.call(function, *arguments, schedule, seed)


def pointer_of(t):
    return None if t is None else t.data_ptr()


def _rows(t, bias=None):
    return Rows(t.data_ptr(), pointer_of(bias), t.stride(0), t.stride(1))


def plan(cu_q, cu_k, total_q, total_k, schedule=0):
    batch = cu_q.shape[0] - 1
    items = total_q // SHORT_ROWS + batch
    out = torch.full((HEADER + items + batch, 2), -77, dtype=torch.int32)
    params = PlanParams(
        cu_q.data_ptr(), cu_k.data_ptr(), batch, total_q, total_k, items, out.data_ptr()
    )
    _call("plan", params, _memory((cu_q, cu_k), (out,)), schedule=schedule)
    return out


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
    memory = _memory(reads, (out, logsumexp))
    p.on_hopper = on_hopper
    if on_hopper:
        _call(
            "forward_hopper", p, memory, KINDS[q.dtype], schedule=schedule, case="attention_hopper"
        )
    _call("forward", p, memory, KINDS[q.dtype], schedule=schedule)
    return out, logsumexp


def backward(
    grad_out, q, k, v, out, logsumexp, cu_q, cu_k, *options, biases=(None,) * 3, schedule=0,
    gradients=None,
):  # fmt: skip
    """(dq, dk, dv, dslopes, drelative_bias), as the op gives them."""
    slopes, relative = options[1:3]
    total_q, heads = q.shape[:2]
    items = plan(cu_q, cu_k, total_q, k.shape[0], schedule)
    key_items = plan(cu_k, cu_q, k.shape[0], total_q, schedule)
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
    memory = _memory(reads, (*gradients, lse2, delta, slope_shares, relative_shares))
    _call("backward", b, memory, KINDS[q.dtype], schedule=schedule)

    def summed(shares, like, per_sequence):
        if shares is None:
            return torch.empty(0)
        sums = torch.full(like.shape, 77.0)
        params = SharesParams(
            shares.data_ptr(), sums.data_ptr(), cu_q.data_ptr() if per_sequence else None,
            tiles, shares[0].numel() if tiles else like[..., :].numel(), total_q,
        )  # fmt: skip
        rows = like.shape[0] if per_sequence else 1
        _call("shares", params, _memory((shares, cu_q), (sums,)), rows, schedule=schedule)
        return sums

    return (
        *gradients,
        summed(slope_shares, slopes, slopes is not None and slopes.dim() == 2),
        summed(relative_shares, relative, False),
    )
