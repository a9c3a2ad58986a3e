"""The Hopper kernels of the backward of varlen attention, run in the host executor."""

import functools

import pytest
import torch

from attention_cases import HEADS, OPTIONS, arguments, assert_backward_gives, random_qkv
from helpers import cu_seqlens_of
from simt import attention as cuda
from simt import build
from taut.reference import attention as reference

NAN = float("nan")
backward = functools.partial(cuda.backward, on_hopper=True)
# One on either side of every limit: of the classes, of tiles of 64 and of 128.
EDGES = (33, 0, 63, 64, 65, 1, 255, 256, 257, 31)
SERVED = ("none", "scale", "alibi", "causal", "window", "window_left")


def saved(q, k, v, cu_q, cu_k, *chosen):
    """What a forward pass leaves: out and logsumexp."""
    out, logsumexp = reference.varlen_attention(q, k, v, cu_q, cu_k, *chosen)
    return out, logsumexp.float()


def random_call(lengths, options, head_dim=64, dtype=torch.bfloat16, rest=0):
    """grad_out, q, k, v, out, logsumexp, cu_seqlens twice, then the options."""
    packed = (*lengths, rest) if rest else lengths
    q, k, v = random_qkv(packed, packed, HEADS, HEADS, head_dim, dtype)
    cu, chosen = cu_seqlens_of(lengths), arguments(options, head_dim)
    return torch.randn_like(q), q, k, v, *saved(q, k, v, cu, cu, *chosen), cu, cu, *chosen


def assert_backward(lengths, options, head_dim=64, dtype=torch.bfloat16, lengths_k=None,
                    heads_kv=HEADS, schedule=0):  # fmt: skip
    lengths_k = lengths if lengths_k is None else lengths_k
    q, k, v = random_qkv(lengths, lengths_k, HEADS, heads_kv, head_dim, dtype)
    cu_q, cu_k = cu_seqlens_of(lengths), cu_seqlens_of(lengths_k)
    chosen, grad = arguments(options, head_dim), torch.randn_like(q)
    found = saved(q, k, v, cu_q, cu_k, *chosen)
    got = backward(grad, q, k, v, *found, cu_q, cu_k, *chosen, schedule=schedule)
    assert_backward_gives(got, grad, q, k, v, cu_q, cu_k, *chosen)


@pytest.mark.parametrize("option", SERVED)
def test_options(option):
    assert_backward(EDGES, OPTIONS[option])


@pytest.mark.parametrize("option", ("none", "alibi", "causal", "window"))
def test_wide_heads_in_half(option):
    assert_backward(EDGES, OPTIONS[option], 128, torch.float16)


@pytest.mark.parametrize("head_dim, dtype", ((40, torch.bfloat16), (96, torch.float16)))
def test_heads_that_do_not_fill_a_tile(head_dim, dtype):
    assert_backward((1, 65, 0, 257), OPTIONS["alibi"], head_dim, dtype)


@pytest.mark.parametrize("option, head_dim", (("none", 64), ("alibi", 128)))
def test_thousand_tokens(option, head_dim):
    assert_backward((1000, 5), OPTIONS[option], head_dim, schedule=1)


@pytest.mark.parametrize("option", ("none", "alibi", "causal", "window"))
def test_cross_attention_with_shared_heads(option):
    """Also sequences without keys or queries, and with more rows than keys by far."""
    lengths_k = (*EDGES[3:], 40, 0, 3)
    assert_backward(EDGES, OPTIONS[option], 64, torch.float16, lengths_k, 1, schedule=2)


def test_slopes_per_sequence():
    lengths = (257, 0, 40)
    slopes = torch.rand(3, HEADS)
    grad, q, k, v, out, lse, cu, _, *chosen = random_call(lengths, {"alibi_slopes": slopes})
    together = backward(grad, q, k, v, out, lse, cu, cu, *chosen)
    for rows, own in ((slice(0, 257), 0), (slice(257, 297), 2)):
        alone = cu_seqlens_of((rows.stop - rows.start,))
        options = arguments({"alibi_slopes": slopes[own]}, 64)
        parts = [t[rows].clone() for t in (grad, q, k, v, out)]
        got = backward(*parts, lse[:, rows].contiguous(), alone, alone, *options)
        assert all(map(torch.equal, got[:3], (t[rows] for t in together[:3])))
        assert torch.equal(got[3], together[3][own])


@pytest.mark.parametrize("slope", (0.0, 1e-5, 3.7))
def test_any_slope(slope):
    assert_backward((270, 70), {"alibi_slopes": torch.tensor([slope, slope / 3])})


def test_slopes_in_a_window():
    options = {"alibi_slopes": torch.tensor([0.3, -0.01]), "window_size": (250, 180)}
    assert_backward((450, 130), options)


@pytest.mark.parametrize("head_dim", (64, 128))
def test_schedules_give_the_same_bits(head_dim):
    call = random_call((33, 0, 65, 256, 257, 31), OPTIONS["alibi"], head_dim)
    want, *others = (backward(*call, schedule=schedule) for schedule in build.SCHEDULES)
    for got in others:
        assert all(map(torch.equal, got, want))


def test_batch_invariance():
    lengths = (300, 65, 256)
    grad, q, k, v, out, lse, cu, _, *chosen = random_call(lengths, OPTIONS["alibi"])
    together = backward(grad, q, k, v, out, lse, cu, cu, *chosen)
    for begin, length in zip(cu.tolist(), lengths, strict=False):
        rows, companions = slice(begin, begin + length), cu_seqlens_of((5, length, 70))
        mixed = []
        for t in (grad, q, k, v, out, lse.t()):
            padding = torch.randn(75, *t.shape[1:]).to(t.dtype)
            mixed.append(torch.cat((padding[:5], t[rows], padding[5:])))
        mixed[-1] = mixed[-1].t().contiguous()
        got = backward(*mixed, companions, companions, *chosen)
        for own, of_all in zip(got[:3], together[:3], strict=True):
            assert torch.equal(own[5 : 5 + length], of_all[rows])


@pytest.mark.parametrize("poison, head_dim", ((NAN, 64), (float("inf"), 64), (NAN, 128)))
def test_neighbours_do_not_leak(poison, head_dim):
    """Tiles reach over the end of a sequence into the next one, or past the tensors."""
    lengths = (40, 70, 300, 257, 90)
    grad, q, k, v, out, lse, cu, _, *chosen = random_call(
        lengths, OPTIONS["none"], head_dim, rest=9
    )
    clean = backward(grad, q, k, v, out, lse, cu, cu, *chosen)
    assert all(t.isfinite().all() for t in clean)
    for rows in (slice(40, 110), slice(410, 667), slice(757, None)):
        for t in (grad, q, k, v, out):
            t[rows] = poison
        lse[:, rows] = poison
    got = backward(grad, q, k, v, out, lse, cu, cu, *chosen)
    for own, want in zip(got[:3], clean[:3], strict=True):
        for rows in (slice(0, 40), slice(110, 410), slice(667, 757)):
            assert torch.equal(own[rows], want[rows])
        assert own[40:110].isnan().all() and own[410:667].isnan().all()
        assert (own[757:] == 0).all()


def test_slopes_do_not_see_what_follows():
    """Their gradients sum over rows of tiles that the sequence does not fill."""
    lengths, options = (40, 300), {"alibi_slopes": torch.rand(2, HEADS)}
    call = random_call(lengths, options, rest=200)
    clean = backward(*call)
    for t in call[:5]:
        t[340:] = NAN
    got = backward(*call)
    assert torch.equal(got[3], clean[3]) and got[3].isfinite().all()


def test_rows_of_a_packed_projection():
    """Strides other than those of a contiguous tensor, of inputs and of gradients."""
    lengths = (70, 0, 300)
    qkv, cu = torch.randn(375, 3, HEADS, 40).half(), cu_seqlens_of(lengths)
    chosen, grad = arguments(OPTIONS["causal"], 40), torch.randn(375, HEADS, 40).half()
    plain = [t.contiguous() for t in qkv.unbind(1)]
    out, lse = saved(*plain, cu, cu, *chosen)
    dqkv = torch.full_like(qkv, 77.0)
    backward(grad, *qkv.unbind(1), out, lse, cu, cu, *chosen, gradients=dqkv.unbind(1))
    want = backward(grad, *plain, out, lse, cu, cu, *chosen)
    assert all(map(torch.equal, dqkv.unbind(1), want[:3]))
    assert (dqkv[370:] == 0).all()


@pytest.mark.parametrize("offsets", ([0, 50, 40, 370], [-5, 380, 900, 3]))
def test_a_wrong_plan_stays_inside(offsets):
    """Memory is checked: a plan of other offsets, or nonsense, only misses rows."""
    good = cu_seqlens_of((300, 60, 10))
    for options in ({}, OPTIONS["alibi"]):
        (
            grad,
            q,
            k,
            v,
            out,
            lse,
            *_,
        ) = call = random_call((300, 60, 10), options)
        chosen = call[8:]
        plan = cuda.plan(good, good, 370, 370)
        cu = torch.tensor(offsets, dtype=torch.int32)
        backward(grad, q, k, v, out, lse, cu, cu, *chosen, given_plans=(plan, plan))
        wrong = plan.clone()
        wrong[4:] = cuda.nonsense_items(plan)
        wrong[:4] = torch.tensor([[0, 99], [3, 1 << 30], [7, 1 << 30], [0, 0]])
        backward(*call, given_plans=(wrong, wrong))


def test_malformed_offsets_give_nan():
    call = list(random_call((70,), {}))
    call[6] = call[7] = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    assert all(t.isnan().all() for t in backward(*call)[:3])


@pytest.mark.parametrize("option", ("relative_bias", "softcap", "clip", "dropout"))
def test_rare_options_are_not_served(option):
    with pytest.raises(build.SimtError, match="do not serve"):
        backward(*random_call((70,), OPTIONS[option]))
