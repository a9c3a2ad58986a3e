"""varlen_attention, forward: every instruction set against the reference."""

import math

import pytest
import torch

import taut
from attention_cases import (
    DEFAULTS,
    DTYPES,
    HEADS,
    LENGTHS,
    OPTIONS,
    arguments,
    forward_case,
    long_case,
    plain_attention,
    qkvpacked_case,
    random_qkv,
)  # fmt: skip
from helpers import assert_close_by_comparison, cu_seqlens_of, misaligned
from taut._native import last_variant
from taut.reference import attention as reference

NAN = float("nan")


def assert_forward(isa, case, options, slack=4.0):
    q, k, v, cu_q, cu_k, plain, (exact, exact_lse) = case
    out, lse = taut.varlen_attention(q, k, v, cu_q, cu_k, **options, return_lse=True)
    assert last_variant("varlen_attention") == isa
    assert out.is_contiguous() and lse.dtype == torch.float32
    assert_close_by_comparison(out, plain, exact, slack=slack)
    # Products of bf16 and fp16 inputs are exact in fp32, so one bound serves every dtype; the
    # polynomial exp2 of bf16 kernels may be as coarse as 2^-16.
    assert torch.equal(lse.isneginf(), exact_lse.isneginf())
    bound = 2e-5 if q.dtype == torch.bfloat16 else 4e-6
    finite = exact_lse.isfinite()
    assert ((lse - exact_lse)[finite].abs() <= bound * exact_lse[finite].abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(isa, option, dtype):
    assert_forward(isa, forward_case(option, dtype), OPTIONS[option])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", (16, 24, 40, 64, 128, 256))
def test_head_dims(isa, head_dim, dtype):
    case = forward_case("none", dtype, head_dim, lengths=(0, 1, 33, 65, 7))
    # Scores over 256 channels: 1 of some thousand seeds needs a little more.
    assert_forward(isa, case, {}, slack=6.0 if head_dim == 256 else 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ("none", "causal", "window", "all"))
def test_cross_attention_with_shared_heads(isa, option, dtype):
    case = forward_case(option, dtype, heads_kv=1, cross=True)
    assert_forward(isa, case, OPTIONS[option])


@pytest.mark.parametrize("option", ("none", "window", "clip"))
def test_lengths_around_blocks_of_keys(isa, option):
    assert_forward(isa, long_case(option), OPTIONS[option])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", (False, True))
def test_qkvpacked(isa, dtype, with_bias):
    qkv, bias, cu, plain, (exact, exact_lse) = qkvpacked_case(dtype, with_bias)
    out, lse = taut.varlen_attention_qkvpacked(qkv, cu, bias=bias, causal=True, return_lse=True)
    assert last_variant("varlen_attention_qkvpacked") == isa
    assert_close_by_comparison(out, plain, exact)
    if not with_bias:
        same = taut.varlen_attention(*qkv.unbind(1), cu, causal=True, return_lse=True)
        assert torch.equal(out, same[0]) and torch.equal(lse, same[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_same_bits(isa, dtype):
    q, k, v, cu, _, _, _ = forward_case("none", dtype)
    want = taut.varlen_attention(q, k, v, cu)
    wide = torch.full((q.shape[0] + 1, 3, HEADS + 1, 35), NAN, dtype=dtype)
    wide[1:, :, 1:, 2:34] = torch.stack((q, k, v), 1)
    assert torch.equal(taut.varlen_attention(*wide[1:, :, 1:, 2:34].unbind(1), cu), want)
    assert torch.equal(taut.varlen_attention(*map(misaligned, (q, k, v)), cu), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ("none", "alibi", "all"))
def test_batch_invariance(isa, option, dtype):
    """A sequence's bits do not depend on its companions, its place, or the number of threads."""
    options = {k: v for k, v in OPTIONS[option].items() if "dropout" not in k}
    q, k, v = random_qkv(LENGTHS, LENGTHS, HEADS, HEADS, 64, dtype)
    together = taut.varlen_attention(q, k, v, cu_seqlens_of(LENGTHS), **options, return_lse=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        begin = 0
        for length in LENGTHS:
            rows = slice(begin, begin + length)
            begin += length
            companions = (17, length, 300)
            pad = [torch.randn(317, HEADS, 64).to(dtype) for _ in range(3)]
            mixed = (torch.cat((p[:17], t[rows], p[17:])) for p, t in zip(pad, (q, k, v),
                                                                          strict=True))  # fmt: skip
            out, lse = taut.varlen_attention(
                *mixed, cu_seqlens_of(companions), **options, return_lse=True
            )
            assert torch.equal(out[17 : 17 + length], together[0][rows])
            assert torch.equal(lse[:, 17 : 17 + length], together[1][:, rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ("none", "window", "clip"))
def test_nan_stays_in_its_sequence_and_rest_is_zero(isa, option, dtype):
    """Neighbours hold NaN, rows past the end hold NaN and must come out as zeros."""
    lengths = (33, 70, 5, 257, 1)
    q, k, v = (t.clone() for t in random_qkv((*lengths, 9), (*lengths, 9), HEADS, HEADS, 32, dtype))
    cu = cu_seqlens_of(lengths)
    clean = taut.varlen_attention(q, k, v, cu, **OPTIONS[option])
    for t in (q, k, v):
        for poisoned in (slice(33, 103), slice(108, 365), slice(366, None)):
            t[poisoned] = NAN
    out, lse = taut.varlen_attention(q, k, v, cu, **OPTIONS[option], return_lse=True)
    for rows in (slice(0, 33), slice(103, 108), slice(365, 366)):
        assert torch.equal(out[rows], clean[rows])
    assert out[33:103].isnan().all() and lse[:, 33:103].isnan().all()
    assert (out[366:] == 0).all() and lse[:, 366:].isneginf().all()


def test_rows_without_keys_give_zero(isa):
    q, k, v = random_qkv((70, 20), (50, 0), HEADS, HEADS, 32, torch.float32)
    cu_q, cu_k = cu_seqlens_of((70, 20)), cu_seqlens_of((50, 0))
    for options in ({"causal": True}, {"causal": True, "clip": (1.1, -0.001)}):
        out, lse = taut.varlen_attention(q, k, v, cu_q, cu_k, **options, return_lse=True)
        assert (out[:20] == 0).all() and lse[:, :20].isneginf().all()
        assert (out[70:] == 0).all() and lse[:, 70:].isneginf().all()
        assert (out[20:70] != 0).any(-1).all() and lse[:, 20:70].isfinite().all()


def test_large_scores_neither_overflow_nor_lose_the_maximum(isa):
    q = torch.randn(40, 1, 16) * 300
    cu = cu_seqlens_of((40,))
    out = taut.varlen_attention(q, q, q, cu)
    exact, _ = reference.varlen_attention(*[q.double()] * 3, cu, cu, *arguments({}, 16))
    assert_close_by_comparison(out, plain_attention(q, q, q, cu, cu, *arguments({}, 16)), exact)


def test_offsets_beyond_2_to_31(isa):
    """Tokens 2^30 elements apart; the pages between them are never touched."""
    storage = torch.empty((2 << 30) + 16, dtype=torch.bfloat16)
    far = storage.as_strided((3, 1, 16), (1 << 30, 16, 1))
    near = torch.randn(3, 1, 16).bfloat16()
    far.copy_(near)
    cu = cu_seqlens_of((3,))
    want = taut.varlen_attention(near, near, near, cu)
    assert torch.equal(taut.varlen_attention(far, far, far, cu), want)


@pytest.mark.parametrize("lengths", ((), (0, 0)))
def test_no_tokens(isa, lengths):
    q = torch.empty(0, HEADS, 32)
    out, lse = taut.varlen_attention(q, q, q, cu_seqlens_of(lengths), return_lse=True)
    assert out.shape == (0, HEADS, 32) and lse.shape == (HEADS, 0)


def test_dropout_seed_comes_from_torch_generator():
    q, k, v = random_qkv((50,), (50,), HEADS, HEADS, 32, torch.float32)
    cu = cu_seqlens_of((50,))
    torch.manual_seed(1)
    first = taut.varlen_attention(q, k, v, cu, dropout_p=0.5)
    second = taut.varlen_attention(q, k, v, cu, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(first, taut.varlen_attention(q, k, v, cu, dropout_p=0.5))
    assert not torch.equal(first, second)


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10."""
    ones = torch.tensor(0xFFFFFFFF)
    assert reference.philox4x32((0,) * 4, (0,) * 2) == [
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    ]  # fmt: skip
    assert reference.philox4x32((ones,) * 4, (0xFFFFFFFF,) * 2) == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    (
        ({"q": torch.ones(3, 4)}, r"q must be \(total_q, heads, head_dim\), got \(3, 4\)"),
        ({"q": torch.ones(9, 2, 12)}, "q must have a head_dim from 16 to 256"),
        ({"k": torch.ones(9, 3, 16)}, "k must have a number of heads that divides"),
        ({"v": torch.ones(8, 2, 16)}, r"v must be \(9, 2, 16\) like k, got \(8, 2, 16\)"),
        ({"v": torch.ones(9, 2, 16).half()}, "v must be float32, got float16"),
        ({"cu_seqlens_q": torch.tensor([0, 9])}, "cu_seqlens_q must be int32, got int64"),
        ({"cu_seqlens_q": torch.tensor([1, 9]).int()}, "cu_seqlens_q must start at 0, got 1"),
        ({"cu_seqlens_q": torch.tensor([0, 10]).int()}, "cu_seqlens_q must end within"),
        ({"cu_seqlens_k": torch.tensor([0, 10]).int()}, "cu_seqlens_k must end within"),
        ({"cu_seqlens_q": torch.tensor([0, 5, 4]).int()}, "cu_seqlens_q must not decrease"),
        ({"cu_seqlens_k": torch.tensor([0, 5, 9]).int()}, r"cu_seqlens_k must be \(2,\) like"),
        ({"alibi_slopes": torch.ones(3)}, r"alibi_slopes must be \(2,\) or \(1, 2\)"),
        ({"relative_bias": torch.ones(2, 4)}, r"relative_bias must be \(2, 2R \+ 1\)"),
        ({"window_size": (-2, 0)}, r"window_size must be .*, got \(-2, 0\)"),
        ({"window_size": (1,)}, r"window_size must be \(left, right\), got \(1,\)"),
        (
            {"cu_seqlens_k": None, "k": torch.ones(8, 2, 16), "v": torch.ones(8, 2, 16)},
            "cu_seqlens_k must end within total_tokens = 8, got 9",
        ),
        ({"softcap": -1.0}, "softcap must be at least 0 in fp32, got -1.0"),
        ({"clip": (0.5, 0.0)}, "clip must be"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"clip": (1.0, -math.inf)}, "clip must be"),
        ({"softmax_scale": -1.0}, "softmax_scale must be positive in fp32, got -1.0"),
        ({"softmax_scale": 1e300}, "softmax_scale must be positive in fp32, got 1e"),
    ),
)
def test_refuses_bad_values(change, message):
    t, cu = torch.ones(9, 2, 16), cu_seqlens_of((9,))
    given = {"q": t, "k": t, "v": t, "cu_seqlens_q": cu, "cu_seqlens_k": cu, **change}
    with pytest.raises(ValueError, match=f"varlen_attention: {message}"):
        taut.varlen_attention(**given)


def test_refuses_wrong_types_and_packed_values():
    t, cu = torch.ones(9, 3, 2, 16), cu_seqlens_of((9,))
    with pytest.raises(TypeError, match="varlen_attention: q must be a torch.Tensor, got list"):
        taut.varlen_attention([1.0], t, t, cu)
    for window_size in (3, (1.5, 2), "ab"):
        with pytest.raises(TypeError, match="qkvpacked: window_size must be .*, got "):
            taut.varlen_attention_qkvpacked(t, cu, window_size=window_size)
    with pytest.raises(ValueError, match=r"qkvpacked: qkv must be \(total, 3, heads, head_dim\)"):
        taut.varlen_attention_qkvpacked(t[:, :2], cu)
    with pytest.raises(ValueError, match=r"qkvpacked: bias must be \(3, 2, 16\)"):
        taut.varlen_attention_qkvpacked(t, cu, bias=torch.ones(96))
    with pytest.raises(ValueError, match="qkvpacked: cu_seqlens must not decrease"):
        taut.varlen_attention_qkvpacked(t, torch.tensor([0, 4, 3]).int())


def test_defaults_are_those_of_the_signature():
    assert set(DEFAULTS) < set(taut.varlen_attention.__kwdefaults__)


def test_defaults_mean_what_they_say(isa):
    """No cu_seqlens_k: that of q; no softmax_scale: 1 / sqrt(head_dim); the reference agrees."""
    q, k, v = random_qkv((5, 30), (5, 30), HEADS, HEADS, 24, torch.float32)
    cu, given = cu_seqlens_of((5, 30)), arguments({}, 24)
    want = torch.ops.taut.varlen_attention(q, k, v, cu, cu, *given)
    for name in ("scale", "cu_seqlens_k", "both"):
        got = torch.ops.taut.varlen_attention(
            q, k, v, cu, *((cu,) if name == "scale" else (None,)),
            *(given if name == "cu_seqlens_k" else ()),
        )  # fmt: skip
        assert all(map(torch.equal, got, want))
    none = (None, None, *given[1:])
    for got, known in zip(
        reference.varlen_attention(q, k, v, cu, *none),
        reference.varlen_attention(q, k, v, cu, cu, *given),
        strict=True,
    ):
        assert torch.equal(got, known)
    assert torch.equal(taut.varlen_attention(q, k, v, cu, softmax_scale=given[0]), want[0])
    assert not torch.equal(taut.varlen_attention(q, k, v, cu, softmax_scale=1.0), want[0])


def test_a_hidden_key_shows_nothing(isa):
    """Neither NaN in a key nor a huge value of one that comes later reaches an earlier row."""
    qkv = torch.randn(40, 3, 2, 32)
    cu_seqlens = torch.tensor([0, 40], dtype=torch.int32)
    want = taut.varlen_attention_qkvpacked(qkv, cu_seqlens, causal=True)[:30]
    qkv[30, 1] = float("nan")
    assert torch.equal(taut.varlen_attention_qkvpacked(qkv, cu_seqlens, causal=True)[:30], want)
    qkv[30, 1], qkv[30, 2] = 0.0, 3e38
    assert torch.equal(taut.varlen_attention_qkvpacked(qkv, cu_seqlens, causal=True)[:30], want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiny_scale_averages_the_keys_that_are_there(isa, dtype):
    """All scores are nearly equal; keys that only fill up a step must weigh nothing."""
    q, k, v = random_qkv((5, 37), (5, 37), HEADS, HEADS, 32, dtype)
    for scale in (1e-30, 1e-45):
        out = taut.varlen_attention(q, k, v, cu_seqlens_of((5, 37)), softmax_scale=scale)
        for rows in (slice(0, 5), slice(5, 42)):
            want = v[rows].double().mean(0).expand(out[rows].shape)
            assert (out[rows] - want).abs().max() <= 4 * torch.finfo(dtype).eps


def test_refusals_say_what_came():
    t, cu = torch.ones(9, 3, 2, 16), cu_seqlens_of((9,))
    for change, message in (
        ({"alibi_slopes": torch.ones(2).double()}, "alibi_slopes must be float32, got float64"),
        (
            {"relative_bias": torch.ones(2, 3).double()},
            "relative_bias must be float32, got float64",
        ),
        ({"alibi_slopes": torch.ones(4)[::2]}, "alibi_slopes must be contiguous"),
        ({"bias": torch.ones(3, 2, 16).half()}, "bias must be float32, got float16"),
    ):
        with pytest.raises(ValueError, match=f"varlen_attention_qkvpacked: {message}"):
            taut.varlen_attention_qkvpacked(t, cu, **change)


@pytest.mark.parametrize("dtype", (torch.int8, torch.float64))
def test_dtypes_that_are_offered_are_taken(dtype):
    qkv = torch.ones(9, 3, 2, 16, dtype=dtype)
    with pytest.raises((ValueError, RuntimeError)) as refusal:
        taut.varlen_attention_qkvpacked(qkv, cu_seqlens_of((9,)))
    offered, _, came = str(refusal.value).partition("got")
    assert "float64" not in offered and str(dtype).removeprefix("torch.") in came


def test_a_scale_of_zero_is_refused():
    qkv, cu_seqlens = torch.randn(4, 3, 1, 16), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="softmax_scale must be"):
        taut.varlen_attention_qkvpacked(qkv, cu_seqlens, softmax_scale=0.0)
