"""The Triton attention kernels against their reference: on the GPU, or in the interpreter."""

from unittest import mock

import pytest
import torch

from attention_cases import clear_of_kinks
from helpers import cu_seqlens_of, strided_rows
from taut.reference import attention as attention_reference
from taut.registry import OPS
from triton_helpers import DTYPES, assert_agrees, guarded_memory, launch, reference, to_device

# Tiles are 16 to 64 rows: lengths beside their edges, empty and single sequences on either side.
LENGTHS_Q = (0, 1, 63, 65, 4)
LENGTHS_K = (3, 1, 70, 0, 33)
BEHIND = 3  # rows after the last sequence
DEFAULTS = {
    "softmax_scale": 0.2,
    "alibi_slopes": None,
    "relative_bias": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "clip": None,
    "dropout_p": 0.0,
    "dropout_seed": 0,
}
CASES = {
    "no option": lambda: {},
    "slopes": lambda: {"alibi_slopes": torch.rand(2)},
    "slopes of each sequence": lambda: {"alibi_slopes": torch.rand(len(LENGTHS_Q), 2)},
    "relative bias": lambda: {"relative_bias": torch.randn(2, 41)},
    "relative bias, R = 1": lambda: {"relative_bias": torch.randn(2, 3)},
    "causal": lambda: {"causal": True},
    "window": lambda: {"window_size": (7, 3)},
    "left window": lambda: {"window_size": (9, -1)},
    "softcap": lambda: {"softcap": 2.0},
    "clip": lambda: {"clip": (1.03, -0.05)},
    "dropout": lambda: {"dropout_p": 0.6, "dropout_seed": -12345678901234},
    "all": lambda: {
        "alibi_slopes": torch.rand(len(LENGTHS_Q), 2),
        "relative_bias": torch.randn(2, 11),
        "window_size": (20, 10),
        "softcap": 3.0,
        "clip": (1.03, -0.05),
        "dropout_p": 0.2,
        "dropout_seed": 1 << 40,
    },
}


def narrow_reference(op, *args):
    """The reference without its wide arithmetic: plain torch at the dtype of q."""
    with mock.patch.object(attention_reference, "_wide", lambda t: t):
        narrow = reference(op, *args)
    return [t.to(wide.dtype) for t, wide in zip(narrow, reference(op, *args), strict=True)]


def inputs(head_dim, dtype, heads=2, heads_kv=1):
    q = torch.randn(sum(LENGTHS_Q) + BEHIND, heads, head_dim).to(dtype)
    k, v = torch.randn(2, sum(LENGTHS_K) + BEHIND, heads_kv, head_dim).to(dtype)
    return q, k, v, cu_seqlens_of(LENGTHS_Q), cu_seqlens_of(LENGTHS_K)


def options(case="no option"):
    return flat({**DEFAULTS, **CASES[case]()})


def flat(options):
    """The op's positional options: window_size is two of them."""
    *tensors, causal, window_size, softcap, clip, dropout_p, seed = options.values()
    return *tensors, causal, *window_size, softcap, clip, dropout_p, seed


def assert_attention_agrees(head_dim, dtype, case, *heads):
    q, k, v, *offsets = inputs(head_dim, dtype, *heads)
    chosen = options(case)
    args = q, k, v, *offsets, *chosen
    assert_agrees("varlen_attention", *args, plain=narrow_reference("varlen_attention", *args))
    op = "varlen_attention_backward"
    out, logsumexp = reference("varlen_attention", *args)
    grad = clear_of_kinks(torch.randn(q.shape).to(dtype), q, k, v, *offsets, *chosen)
    args = grad, q, k, v, out, logsumexp, *offsets, *chosen
    assert_agrees(op, *args, plain=narrow_reference(op, *args))


@pytest.mark.parametrize("case", CASES)
def test_options(case):
    assert_attention_agrees(24, torch.float32, case)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ("slopes", "relative bias", "all"))
def test_narrow_types(dtype, case):
    assert_attention_agrees(64, dtype, case)


def test_relative_bias_of_one_entry():
    """Shifting every score changes nothing, and its gradient is zero but for rounding."""
    q, k, v, *offsets = inputs(16, torch.float32)
    rest = flat({**DEFAULTS, "relative_bias": torch.randn(2, 1)})
    out, logsumexp = assert_agrees("varlen_attention", q, k, v, *offsets, *rest)
    args = torch.randn(q.shape), q, k, v, out, logsumexp, *offsets, *rest
    gradient = launch("varlen_attention_backward", *args)[4]
    assert gradient.shape == (2, 1) and gradient.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    ((16, torch.bfloat16), (72, torch.bfloat16), (200, torch.bfloat16), (200, torch.float32)),
)
def test_head_dims(head_dim, dtype):
    assert_attention_agrees(head_dim, dtype, "no option")


def test_a_wide_softcap_changes_nothing():
    q, k, v, *offsets = inputs(16, torch.float32)
    wide = flat({**DEFAULTS, "softcap": 1e6})
    got, want = (launch("varlen_attention", q, k, v, *offsets, *o)[0] for o in (wide, options()))
    torch.testing.assert_close(got, want)


def test_grouped_heads():
    assert_attention_agrees(16, torch.float32, "no option", 4, 2)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("with_bias", (False, True))
def test_qkvpacked(dtype, with_bias):
    cu_seqlens = cu_seqlens_of(LENGTHS_Q)
    qkv = torch.randn(sum(LENGTHS_Q) + BEHIND, 3, 2, 32).to(dtype)
    bias = torch.randn(3, 2, 32).to(dtype) if with_bias else None
    args = qkv, bias, cu_seqlens, *options("causal")
    op = "varlen_attention_qkvpacked"
    assert_agrees(op, *args, plain=narrow_reference(op, *args))
    out, logsumexp = reference(op, *args)
    op += "_backward"
    args = torch.randn(out.shape).to(dtype), qkv, bias, out, logsumexp, *args[2:]
    assert_agrees(op, *args, plain=narrow_reference(op, *args))


def test_sequences_do_not_see_each_other():
    """A sequence's results are bit for bit those it has alone, beside NaN neighbours too."""
    q, k, v, cu_q, cu_k = inputs(32, torch.float32)
    grad_out = torch.randn(q.shape)
    alone_q, alone_k = slice(1, 64), slice(4, 74)  # sequence 2
    for t, kept in ((q, alone_q), (grad_out, alone_q), (k, alone_k), (v, alone_k)):
        t[: kept.start] = t[kept.stop :] = float("nan")

    def run(q, k, v, grad_out, *rest):
        out, logsumexp = launch("varlen_attention", q, k, v, *rest)
        saved = grad_out, q, k, v, out, logsumexp
        return out, *launch("varlen_attention_backward", *saved, *rest)[:3]

    batch = run(q, k, v, grad_out, cu_q, cu_k, *options("window"))
    alone = run(
        q[alone_q], k[alone_k], v[alone_k], grad_out[alone_q],
        cu_seqlens_of((63,)), cu_seqlens_of((70,)), *options("window"),
    )  # fmt: skip
    for t, single, kept in zip(batch, alone, (alone_q, alone_q, alone_k, alone_k), strict=True):
        assert single.isfinite().all() and torch.equal(t[kept], single)


def test_rows_and_heads_may_be_strided():
    q, k, v, *offsets = inputs(32, torch.float32)
    want = launch("varlen_attention", q, k, v, *offsets, *options())
    heads_first = q.transpose(0, 1).contiguous().transpose(0, 1)
    columns_first = v.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    got = launch(
        "varlen_attention", heads_first, strided_rows(k), columns_first, *offsets, *options()
    )
    assert all(map(torch.equal, got, want))


def test_defaults():
    q, offsets = torch.randn(sum(LENGTHS_Q), 2, 24), cu_seqlens_of(LENGTHS_Q)
    args = q, *torch.randn(2, *q.shape), offsets
    want = OPS["varlen_attention"].complete((*args, offsets, 24**-0.5))
    left_out = OPS["varlen_attention"].complete(args)
    got = launch("varlen_attention", *left_out)
    assert all(map(torch.equal, got, launch("varlen_attention", *want)))


@pytest.mark.parametrize("batch", (0, 1))
def test_nothing_to_attend(batch):
    for queries, keys in ((0, 3), (3, 0), (0, 0)):
        q, (k, v) = torch.randn(queries, 2, 16), torch.randn(2, keys, 2, 16)
        offsets = (cu_seqlens_of(batch * (length,)) for length in (queries, keys))
        args = q, k, v, *offsets, *options()
        out, logsumexp = assert_agrees("varlen_attention", *args)
        assert_agrees("varlen_attention_backward", q, q, k, v, out, logsumexp, *args[3:])


@pytest.mark.parametrize("offsets", ([0, 9, 4, 9], [5, 0, 9], [0, 99], [-7, 3, 9], [9, 9, 9]))
def test_malformed_offsets_stay_inside(offsets):
    """The check of a launcher reads the offsets; behind it the kernels must still stay inside."""
    from taut.triton_kernels import attention

    qkv, cu_seqlens = torch.randn(9, 3, 1, 16), torch.tensor(offsets, dtype=torch.int32)
    slopes, relative_bias = torch.rand(len(offsets) - 1, 1), torch.randn(1, 5)
    qkv, *rest = to_device((qkv, cu_seqlens, 0.2, slopes, relative_bias, *options()[3:], None))
    with guarded_memory():
        out, logsumexp = attention.varlen_attention_qkvpacked.__wrapped__(qkv, None, *rest)
        attention.varlen_attention_qkvpacked_backward.__wrapped__(
            out, qkv, None, out, logsumexp, *rest
        )
