"""The Hopper kernels of varlen attention, run in the host executor, against the reference."""

import functools

import pytest
import torch

from attention_cases import HEADS, OPTIONS, arguments, assert_gives, forward_case, random_qkv
from helpers import cu_seqlens_of
from simt import attention as cuda
from simt import build
from taut.reference import attention as reference

NAN = float("nan")
forward = functools.partial(cuda.forward, on_hopper=True)
# One on either side of every limit: of the classes, of tiles of 64 and of 128.
EDGES = (33, 0, 63, 64, 65, 1, 255, 256, 257, 31)
SERVED = ("none", "scale", "alibi", "causal", "window", "window_left")


def assert_forward(case, options, schedule=0):
    q, k, v, cu_q, cu_k, *_ = case
    chosen = arguments(options, q.shape[2])
    assert_gives(
        *forward(q, k, v, cu_q, cu_k, *chosen, schedule=schedule), case, options.get("alibi_slopes")
    )


@pytest.mark.parametrize("option", SERVED)
def test_options(option):
    assert_forward(forward_case(option, torch.bfloat16, 64, lengths=EDGES), OPTIONS[option])


@pytest.mark.parametrize("option", SERVED)
def test_wide_heads_in_half(option):
    assert_forward(forward_case(option, torch.float16, 128, lengths=EDGES), OPTIONS[option])


@pytest.mark.parametrize("head_dim", (40, 96))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_heads_that_do_not_fill_a_tile(head_dim, dtype):
    lengths = (1, 65, 0, 257)
    assert_forward(forward_case("alibi", dtype, head_dim, lengths=lengths), OPTIONS["alibi"])


@pytest.mark.parametrize("head_dim", (64, 128))
@pytest.mark.parametrize("option", ("none", "alibi"))
def test_thousand_tokens(option, head_dim):
    case = forward_case(option, torch.bfloat16, head_dim, lengths=(1000, 5))
    assert_forward(case, OPTIONS[option], schedule=1)


@pytest.mark.parametrize("option", ("none", "alibi", "causal", "window"))
def test_cross_attention_with_shared_heads(option):
    """Also sequences without keys, and with more rows than keys by far."""
    case = forward_case(option, torch.float16, 64, heads_kv=1, cross=True, lengths=EDGES)
    assert_forward(case, OPTIONS[option], schedule=2)


def test_slopes_per_sequence():
    lengths = (257, 0, 40)
    q, k, v = random_qkv(lengths, lengths, HEADS, HEADS, 64, torch.bfloat16)
    cu, slopes = cu_seqlens_of(lengths), torch.rand(3, HEADS)
    together, _ = forward(q, k, v, cu, cu, *arguments({"alibi_slopes": slopes}, 64))
    for rows, own in ((slice(0, 257), slopes[0]), (slice(257, 297), slopes[2])):
        alone = cu_seqlens_of((rows.stop - rows.start,))
        parts = [t[rows].clone() for t in (q, k, v)]
        out, _ = forward(*parts, alone, alone, *arguments({"alibi_slopes": own}, 64))
        assert torch.equal(out, together[rows])


@pytest.mark.parametrize("window", ((-1, -1), (400, 300)))
@pytest.mark.parametrize("slope", (0.0, 1e-5, -0.1, 3.7, 2000.0))
def test_any_slope(slope, window):
    """Slopes are split into three bf16: the smallest and the steepest keep their 24 bits."""
    lengths = (700, 200)
    options = {"alibi_slopes": torch.tensor([slope, slope / 3]), "window_size": window}
    q, k, v = random_qkv(lengths, lengths, HEADS, HEADS, 64, torch.float16)
    cu, chosen = cu_seqlens_of(lengths), arguments(options, 64)
    out, lse = forward(q, k, v, cu, cu, *chosen)
    want, want_lse = reference.varlen_attention(*(t.double() for t in (q, k, v)), cu, cu, *chosen)
    assert (out - want).abs().max() < 4e-3
    assert ((lse - want_lse).abs() <= 4e-6 * want_lse.abs().clamp(min=1)).all()


@pytest.mark.parametrize("head_dim", (64, 128))
def test_schedules_give_the_same_bits(head_dim):
    q, k, v, cu_q, cu_k, *_ = forward_case("alibi", torch.bfloat16, head_dim, lengths=EDGES)
    chosen = arguments(OPTIONS["alibi"], head_dim)
    want, *others = (
        forward(q, k, v, cu_q, cu_k, *chosen, schedule=schedule) for schedule in build.SCHEDULES
    )
    for got in others:
        assert all(map(torch.equal, got, want))


def test_batch_invariance():
    lengths = (300, 65, 256)
    chosen = arguments(OPTIONS["alibi"], 64)
    q, k, v = random_qkv(lengths, lengths, HEADS, HEADS, 64, torch.bfloat16)
    cu = cu_seqlens_of(lengths)
    together, lse = forward(q, k, v, cu, cu, *chosen)
    for begin, length in zip(cu.tolist(), lengths, strict=False):
        rows, companions = slice(begin, begin + length), cu_seqlens_of((5, length, 70))
        padding = torch.randn(3, 75, HEADS, 64).bfloat16()
        mixed = [
            torch.cat((p[:5], t[rows], p[5:])) for t, p in zip((q, k, v), padding, strict=True)
        ]
        out, own = forward(*mixed, companions, companions, *chosen)
        assert torch.equal(out[5 : 5 + length], together[rows])
        assert torch.equal(own[:, 5 : 5 + length], lse[:, rows])


@pytest.mark.parametrize("poison", (NAN, float("inf")))
def test_neighbours_do_not_leak(poison):
    """Tiles of K and V reach over the end of a sequence into the next one, or past the tensors."""
    lengths = (40, 70, 300, 257, 90)
    q, k, v = random_qkv((*lengths, 9), (*lengths, 9), HEADS, HEADS, 64, torch.bfloat16)
    cu, chosen = cu_seqlens_of(lengths), arguments({}, 64)
    clean, clean_lse = forward(q, k, v, cu, cu, *chosen)
    assert clean.isfinite().all()
    poisoned = [slice(40, 110), slice(410, 667), slice(757, None)]
    for t in (q, k, v):
        for rows in poisoned:
            t[rows] = poison
    out, lse = forward(q, k, v, cu, cu, *chosen)
    for rows in (slice(0, 40), slice(110, 410), slice(667, 757)):
        assert torch.equal(out[rows], clean[rows]) and torch.equal(lse[:, rows], clean_lse[:, rows])
    assert out[40:110].isnan().all() and out[410:667].isnan().all()
    assert (out[757:] == 0).all() and lse[:, 757:].isneginf().all()


@pytest.mark.parametrize("column", range(8))
def test_one_nan_among_the_keys_is_seen(column):
    """Whichever way its exponential is computed."""
    q, k, v = random_qkv((300,), (300,), HEADS, HEADS, 64, torch.bfloat16)
    k[8 * 20 + column :: 64] = NAN
    cu = cu_seqlens_of((300,))
    out, lse = forward(q, k, v, cu, cu, *arguments({}, 64))
    assert out.isnan().all() and lse.isnan().all()


def test_rows_of_a_packed_projection():
    """Strides other than those of a contiguous tensor."""
    lengths = (70, 0, 300)
    qkv, cu = torch.randn(370, 3, HEADS, 40).half(), cu_seqlens_of(lengths)
    chosen = arguments({"causal": True}, 40)
    got = forward(*qkv.unbind(1), cu, cu, *chosen)
    want = forward(*(t.contiguous() for t in qkv.unbind(1)), cu, cu, *chosen)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("offsets", ([0, 50, 40, 370], [-5, 380, 900, 3]))
def test_a_wrong_plan_stays_inside(offsets):
    q, k, v = random_qkv((370,), (370,), HEADS, HEADS, 64, torch.bfloat16)
    good = cu_seqlens_of((300, 60, 10))
    plan = cuda.plan(good, good, 370, 370)
    for slopes in ({}, OPTIONS["alibi"]):
        chosen = arguments(slopes, 64)
        cu = torch.tensor(offsets, dtype=torch.int32)
        forward(q, k, v, cu, cu, *chosen, given_plan=plan)
        wrong = plan.clone()
        wrong[4:] = cuda.nonsense_items(plan)
        wrong[:4] = torch.tensor([[0, 99], [3, 1 << 30], [7, 1 << 30], [0, 0]])
        forward(q, k, v, good, good, *chosen, given_plan=wrong)


def test_malformed_offsets_give_nan():
    q, k, v = random_qkv((70,), (70,), HEADS, HEADS, 64, torch.bfloat16)
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    out, lse = forward(q, k, v, cu, cu, *arguments({}, 64))
    assert out.isnan().all() and lse.isnan().all()


@pytest.mark.parametrize("option", ("relative_bias", "softcap", "clip", "dropout"))
def test_rare_options_are_not_served(option):
    q, k, v = random_qkv((70,), (70,), HEADS, HEADS, 64, torch.bfloat16)
    cu = cu_seqlens_of((70,))
    with pytest.raises(build.SimtError, match="do not serve"):
        forward(q, k, v, cu, cu, *arguments(OPTIONS[option], 64))
