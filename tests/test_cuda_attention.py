"""The CUDA kernels of varlen attention, run in the host executor, against the reference."""

import pytest
import torch

from attention_cases import (
    HEADS,
    LENGTHS,
    OPTIONS,
    arguments,
    assert_backward_gives,
    assert_gives,
    assert_logsumexp,
    forward_case,
    long_case,
    qkvpacked_case,
    random_qkv,
)
from helpers import assert_close_by_comparison, cu_seqlens_of
from simt import attention as cuda
from simt import build
from taut.reference import attention as reference

NAN = float("nan")
HALVES = (torch.bfloat16, torch.float16)
FEW = (0, 1, 33, 65, 7)
# One on either side of every limit: heads per tile (16, 32), rows of a tile, long sequences.
EDGES = (16, 17, 32, 31, 0, 1, 63, 64, 65, 255, 256, 257)


# ---- the planner


def plan_both(lengths_q, lengths_k, rest=0, schedule=0):
    cu_q, cu_k = cu_seqlens_of(lengths_q), cu_seqlens_of(lengths_k)
    total_q, total_k = int(cu_q[-1]) + rest, int(cu_k[-1])
    want = reference.attention_plan(cu_q, cu_k, total_q, total_k)
    return cuda.plan(cu_q, cu_k, total_q, total_k, schedule), want


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_plan(schedule):
    lengths = torch.randint(0, 700, (300,)).tolist()  # more than the sequences of a block
    got, want = plan_both(lengths, lengths[::-1], 130, schedule)
    assert torch.equal(got, want)


@pytest.mark.parametrize("lengths", ((), (0,), (0, 0), (1,), (64,), EDGES))
def test_plan_of_few(lengths):
    assert torch.equal(*plan_both(lengths, lengths))


@pytest.mark.parametrize(
    "offsets, error", (([1, 9], 1), ([0, 5, 4, 9], 2), ([0, 10], 3), ([3, 2, 99], 3))
)
def test_plan_of_malformed_offsets(offsets, error):
    cu, good = torch.tensor(offsets, dtype=torch.int32), torch.zeros(len(offsets)).int()
    for pair in ((cu, good), (good, cu)):
        got = cuda.plan(*pair, 9, 9)
        assert got[0].tolist() == [error, 0]
        assert torch.equal(got, reference.attention_plan(*pair, 9, 9))


# ---- forward


def assert_forward(case, options, schedule=0):
    q, k, v, cu_q, cu_k, *_ = case
    chosen = arguments(options, q.shape[2])
    assert_gives(
        *cuda.forward(q, k, v, cu_q, cu_k, *chosen, schedule=schedule),
        case,
        options.get("alibi_slopes"),
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option):
    assert_forward(forward_case(option, torch.bfloat16), OPTIONS[option])


@pytest.mark.parametrize("head_dim", (16, 24, 40, 64, 96, 128, 200, 256))
@pytest.mark.parametrize("option", ("none", "alibi"))
def test_head_dims(head_dim, option):
    case = forward_case(option, torch.float16, head_dim, lengths=FEW)
    assert_forward(case, {k: v for k, v in OPTIONS[option].items()})


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("option", ("none", "all"))
def test_schedules_give_the_same_bits(option, schedule):
    q, k, v, cu_q, cu_k, *_ = forward_case(option, torch.bfloat16, lengths=EDGES)
    chosen = arguments(OPTIONS[option], q.shape[2])
    want = cuda.forward(q, k, v, cu_q, cu_k, *chosen)
    got = cuda.forward(q, k, v, cu_q, cu_k, *chosen, schedule=schedule)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("option", ("none", "alibi", "causal", "window", "all"))
def test_cross_attention_with_shared_heads(option):
    assert_forward(forward_case(option, torch.float16, heads_kv=1, cross=True), OPTIONS[option])


@pytest.mark.parametrize("option", ("none", "alibi", "window", "clip"))
def test_long_sequences(option):
    case = forward_case(option, torch.bfloat16, 40 if option == "none" else 64, lengths=(600, 257))
    assert_forward(case, OPTIONS[option], schedule=1)


@pytest.mark.parametrize("slope", (0.0, 1e-5, -0.1, 3.7, 2000.0))
def test_any_slope(slope):
    """Also in a window that begins and ends on either side of the diagonal."""
    options = {"alibi_slopes": torch.tensor([slope, slope / 3]), "window_size": (230, 170)}
    q, k, v = random_qkv((400, 130), (400, 130), HEADS, HEADS, 64, torch.float16)
    cu, chosen = cu_seqlens_of((400, 130)), arguments(options, 64)
    out, lse = cuda.forward(q, k, v, cu, cu, *chosen)
    want, want_lse = reference.varlen_attention(*(t.double() for t in (q, k, v)), cu, cu, *chosen)
    assert (out - want).abs().max() < 4e-3
    assert_logsumexp(lse, want_lse, options["alibi_slopes"])


def test_thousand_tokens():
    assert_forward(long_case("none"), {})


def test_heads_that_do_not_fill_a_tile():
    """Three heads where a tile holds two or four, more heads of q than of k."""
    lengths = (5, 20, 16, 33)
    cu = cu_seqlens_of(lengths)
    q, k, v = random_qkv(lengths, lengths, 6, 2, 32, torch.bfloat16)
    slopes = torch.rand(6)
    chosen = arguments({"alibi_slopes": slopes}, 32)
    for heads in (slice(0, 3), slice(0, 6)):
        group = (
            q[:, heads],
            k[:, : 1 if heads.stop == 3 else 2],
            v[:, : 1 if heads.stop == 3 else 2],
        )
        own = (chosen[0], slopes[heads], *chosen[2:])
        out, lse = cuda.forward(*group, cu, cu, *own)
        want, want_lse = reference.varlen_attention(*(t.double() for t in group), cu, cu, *own)
        assert (out - want).abs().max() < 0.02 and (lse - want_lse).abs().max() < 1e-5


@pytest.mark.parametrize("with_bias", (False, True))
def test_qkvpacked(with_bias):
    qkv, bias, cu, plain, (exact, _) = qkvpacked_case(torch.bfloat16, with_bias)
    biases = (None,) * 3 if bias is None else bias.unbind(0)
    out, _ = cuda.forward(
        *qkv.unbind(1), cu, cu, *arguments({"causal": True}, qkv.shape[3]), biases=biases
    )
    assert_close_by_comparison(out, plain, exact)


def test_batch_invariance():
    chosen = arguments(OPTIONS["alibi"], 32)
    q, k, v = random_qkv(EDGES, EDGES, HEADS, HEADS, 32, torch.bfloat16)
    cu = cu_seqlens_of(EDGES)
    together, lse = cuda.forward(q, k, v, cu, cu, *chosen)
    for begin, length in zip(cu.tolist(), EDGES, strict=False):
        if length not in (17, 31, 65, 257):
            continue
        rows = slice(begin, begin + length)
        companions = cu_seqlens_of((5, length, 70))
        mixed = []
        for t in (q, k, v):
            pad = torch.randn(75, HEADS, 32).to(t.dtype)
            mixed.append(torch.cat((pad[:5], t[rows], pad[5:])))
        out, own = cuda.forward(*mixed, companions, companions, *chosen)
        assert torch.equal(out[5 : 5 + length], together[rows])
        assert torch.equal(own[:, 5 : 5 + length], lse[:, rows])


@pytest.mark.parametrize("option", ("none", "window", "clip"))
def test_nan_stays_in_its_sequence_and_rest_is_zero(option):
    lengths = (33, 70, 5, 257, 1)
    q, k, v = random_qkv((*lengths, 9), (*lengths, 9), HEADS, HEADS, 32, torch.bfloat16)
    cu, chosen = cu_seqlens_of(lengths), arguments(OPTIONS[option], 32)
    clean, _ = cuda.forward(q, k, v, cu, cu, *chosen)
    q, k, v = (t.clone() for t in (q, k, v))
    for t in (q, k, v):
        for poisoned in (slice(33, 103), slice(108, 365), slice(366, None)):
            t[poisoned] = NAN
    out, lse = cuda.forward(q, k, v, cu, cu, *chosen)
    for rows in (slice(0, 33), slice(103, 108), slice(365, 366)):
        assert torch.equal(out[rows], clean[rows])
    assert out[33:103].isnan().all()
    assert (out[366:] == 0).all() and lse[:, 366:].isneginf().all()


def test_malformed_offsets_give_nan():
    q, k, v = random_qkv((70,), (70,), HEADS, HEADS, 32, torch.bfloat16)
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    out, lse = cuda.forward(q, k, v, cu, cu, *arguments({}, 32))
    assert out.isnan().all() and lse.isnan().all()


@pytest.mark.parametrize("offsets", ([0, 50, 40, 70], [-5, 80, 900, 3]))
def test_a_wrong_plan_stays_inside(offsets):
    """Memory is checked: a plan of other offsets, or nonsense, only misses rows."""
    q, k, v = random_qkv((70,), (70,), HEADS, HEADS, 32, torch.bfloat16)
    cu = torch.tensor(offsets, dtype=torch.int32)
    good = cu_seqlens_of((30, 30, 10))
    plan = cuda.plan(good, good, 70, 70)
    cuda.forward(q, k, v, cu, cu, *arguments({}, 32), given_plan=plan)
    plan[4:] = cuda.nonsense_items(plan)
    plan[:4] = torch.tensor([[0, 99], [-3, 90], [7, 1 << 30], [0, 0]])
    cuda.forward(q, k, v, good, good, *arguments({}, 32), given_plan=plan)


# ---- backward


def assert_backward(lengths_q, lengths_k, heads_kv, head_dim, dtype, options, schedule=0):
    q, k, v = random_qkv(lengths_q, lengths_k, HEADS, heads_kv, head_dim, dtype)
    cu_q, cu_k = cu_seqlens_of(lengths_q), cu_seqlens_of(lengths_k)
    chosen, grad = arguments(options, head_dim), torch.randn_like(q)
    out, lse = cuda.forward(q, k, v, cu_q, cu_k, *chosen)
    got = cuda.backward(grad, q, k, v, out, lse, cu_q, cu_k, *chosen, schedule=schedule)
    assert_backward_gives(got, grad, q, k, v, cu_q, cu_k, *chosen)
    return got


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients(option):
    assert_backward(LENGTHS, LENGTHS, HEADS, 32, torch.bfloat16, OPTIONS[option])


@pytest.mark.parametrize("head_dim", (16, 40, 64, 96, 128, 200))
@pytest.mark.parametrize("option", ("none", "alibi"))
def test_gradients_of_head_dims(head_dim, option):
    assert_backward(FEW, FEW, 1, head_dim, torch.float16, OPTIONS[option])


def test_gradients_of_wide_heads_with_every_option():
    options = {**OPTIONS["all"], "relative_bias": torch.randn(HEADS, 1)}
    assert_backward(FEW, FEW, HEADS, 256, torch.float16, options)


@pytest.mark.parametrize("option", ("none", "alibi", "causal", "window", "all"))
def test_gradients_of_cross_attention(option):
    lengths_k = (*LENGTHS[3:], 40, 0, 3)
    assert_backward(LENGTHS, lengths_k, 1, 32, torch.bfloat16, OPTIONS[option], schedule=1)


@pytest.mark.parametrize("option", ("alibi", "window", "dropout"))
def test_gradients_of_long_sequences(option):
    assert_backward((400, 3, 257), (400, 3, 257), 1, 32, torch.bfloat16, OPTIONS[option])


def test_gradients_of_slopes_in_a_window():
    options = {**OPTIONS["alibi"], "window_size": (230, 170)}
    assert_backward((400, 130), (400, 130), HEADS, 32, torch.bfloat16, options)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_gradients_have_the_same_bits_in_every_schedule(schedule):
    options = {"alibi_slopes": torch.rand(HEADS), "relative_bias": torch.randn(HEADS, 9)}
    torch.manual_seed(3)
    want = assert_backward((70, 300, 5), (70, 300, 5), 1, 32, torch.bfloat16, options)
    torch.manual_seed(3)
    got = assert_backward((70, 300, 5), (70, 300, 5), 1, 32, torch.bfloat16, options, schedule)
    assert all(map(torch.equal, got, want))


def test_gradients_into_packed_rows():
    """qkv (total, 3, heads, head_dim) with a bias, gradients into the same layout, rows behind the
    last sequence."""
    lengths = (40, 0, 70)
    qkv, bias = torch.randn(115, 3, HEADS, 32).half(), torch.randn(3, HEADS, 32).half()
    cu, chosen = cu_seqlens_of(lengths), arguments(OPTIONS["causal"], 32)
    biased = (qkv + bias).unbind(1)
    out, lse = cuda.forward(*qkv.unbind(1), cu, cu, *chosen, biases=bias.unbind(0))
    grad, dqkv = torch.randn_like(out), torch.full_like(qkv, 77.0)
    cuda.backward(
        grad, *qkv.unbind(1), out, lse, cu, cu, *chosen, biases=bias.unbind(0),
        gradients=dqkv.unbind(1),
    )  # fmt: skip
    want = cuda.backward(grad, *(t.contiguous() for t in biased), out, lse, cu, cu, *chosen)
    assert all(map(torch.equal, dqkv.unbind(1), want[:3]))
    assert (dqkv[110:] == 0).all()
