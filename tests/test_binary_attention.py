"""Attention over packed signs: every instruction set against the reference, to the bit."""

import math

import pytest
import torch

import taut
from binary_cases import BEHIND, HEADS, LENGTHS, MODES, inputs, plain_qk_only, random_words
from helpers import assert_close_by_comparison, cu_seqlens_of, on_one_thread
from taut._native import last_variant
from taut.reference import binary_attention as reference
from taut.reference import binary_gemm

NAN = float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("mode", MODES)
def test_sums_and_bits(isa, mode):
    args, options = inputs(), MODES[mode]
    sums = taut.binary_attention(*args, **options, rails=0)
    assert last_variant("binary_attention") == isa
    want = reference.binary_attention(*args, **options, rails=0)
    assert sums.dtype == torch.int32 and torch.equal(sums, want)
    assert sums.any() or "nothing" in mode
    for rails, thresholds in (
        (1, None),
        (2, None),
        (1, torch.randint(-5, 6, (HEADS, 64), dtype=torch.int32)),
        (2, torch.randint(-5, 6, (3, HEADS, 64), dtype=torch.int32)),
    ):
        rest = {**options, "rails": rails, "thresholds": thresholds}
        bits = taut.binary_attention(*args, **rest)
        assert torch.equal(bits, reference.binary_attention(*args, **rest))
        assert (bits[-BEHIND:] == 0).all()


def test_default_is_the_sign_on_two_rails(isa):
    args = inputs()
    bits = taut.binary_attention(*args)
    sums = taut.binary_attention(*args, rails=0)
    assert bits.shape == (args[0].shape[0], 2, HEADS)
    signs = taut.unpack_bits(bits, HEADS * 64)
    assert torch.equal(signs, sums.flatten(1).sign().to(torch.int8))
    assert (signs[:-BEHIND] == 0).any(), "no ctx was 0: the third value was not tested"


def test_ties_of_bool(isa):
    """A key whose product with the query is 0 is attended to by tie "geq" only."""
    word = 0x0123456789ABCDEF  # 32 bits set
    q, v = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[-1]])
    k = torch.tensor([[word]])
    cu = cu_seqlens_of((1,))
    assert (taut.binary_attention(q, k, v, cu, rails=0) == 0).all()
    assert (taut.binary_attention(q, k, v, cu, rails=0, tie="geq") == 1).all()
    for closer, want in ((word & (word - 1), 1), (word | 1 << 63, 0)):
        k = torch.tensor([[closer if closer < 1 << 63 else closer - (1 << 64)]])
        for tie in ("strict", "geq"):
            assert (taut.binary_attention(q, k, v, cu, rails=0, tie=tie) == want).all()


def test_rows_that_attend_to_nothing(isa):
    q = random_words(70, HEADS)
    cu = cu_seqlens_of((70,))
    bits = taut.binary_attention(q, ~q[:1].expand(70, HEADS), q, cu)
    row = taut.binary_attention(q[:1].expand(70, HEADS), ~q[:1].expand(70, HEADS), q, cu)
    assert (row == 0).all() and (bits[0] == 0).all() and (bits != 0).any()


@pytest.mark.parametrize("alpha", (0.02, 0.1, 0.5))
@pytest.mark.parametrize("softmax_scale", (0.02, 0.125, 0.6))
def test_elastic_is_the_papers_softmax(softmax_scale, alpha):
    """Against the softmax in fp64, wherever P is not within 1e-4 of alpha / 2."""
    lengths = (1, 40, 130)
    q, k, v, cu = inputs(lengths)
    sums = taut.binary_attention(
        q, k, v, cu, mode="elastic", softmax_scale=softmax_scale, alpha=alpha, rails=0
    )
    signs = [binary_gemm.unpack_bits(t, 64 * HEADS).view(-1, HEADS, 64).double() for t in (q, k, v)]
    compared = 0
    for begin, end in zip(cu.tolist(), cu[1:].tolist(), strict=False):
        query, key, value = (t[begin:end].transpose(0, 1) for t in signs)
        p = (query @ key.transpose(1, 2) * softmax_scale).softmax(2)
        clear = ((p / (alpha / 2) - 1).abs() > 1e-4).all(2)
        want = ((p > alpha / 2).double() @ value).transpose(0, 1)
        clear = clear.T
        compared += int(clear.sum())
        assert torch.equal(sums[begin:end].double()[clear], want[clear])
    assert compared > 0.95 * sum(lengths) * HEADS


def test_exponential_table():
    table = reference.exponentials(0.125)
    assert len(table) == 65 and table[0] == 2**24 - 1
    assert all(a >= b > 0 for a, b in zip(table, table[1:], strict=False))
    assert table[4] == round(math.exp(-1) * (2**24 - 1))


@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_only(isa, dtype, alibi):
    q, k, _, cu = inputs()
    v = torch.randn(q.shape[0], HEADS, 64).to(dtype)
    slopes = torch.tensor([0.5, 0.02, 0.0]) if alibi else None
    for scale in (0.125, 1.5):
        out = taut.binary_attention(
            q, k, v, cu, mode="qk_only", softmax_scale=scale, alibi_slopes=slopes
        )
        assert last_variant("binary_qk_attention") == isa
        exact = reference.binary_qk_attention(q, k, v.double(), cu, scale, slopes)
        assert_close_by_comparison(out, plain_qk_only(q, k, v, cu, scale, slopes), exact)
        assert (out[-BEHIND:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_only_with_int8_values(isa, dtype):
    q, k, _, cu = inputs()
    v = torch.randint(-128, 128, (*q.shape, 64)).to(torch.int8)
    v_scale, slopes = torch.rand(q.shape[0], 1), torch.tensor([0.5, 0.02, 0.0])
    out = taut.binary_attention(
        q, k, v, cu, mode="qk_only", alibi_slopes=slopes, v_scale=v_scale, out_dtype=dtype
    )
    assert last_variant("binary_qk_attention") == isa
    wide = v.double() * v_scale[:, :, None]
    exact = reference.binary_qk_attention(q, k, wide, cu, 0.125, slopes)
    assert_close_by_comparison(out, plain_qk_only(q, k, wide.to(dtype), cu, 0.125, slopes), exact)
    strided = torch.zeros(q.shape[0], HEADS + 1, 70, dtype=torch.int8)
    strided[:, 1:, 3:67] = v
    again = taut.binary_attention(
        q, k, strided[:, 1:, 3:67], cu, mode="qk_only", alibi_slopes=slopes, v_scale=v_scale,
        out_dtype=dtype,
    )  # fmt: skip
    assert torch.equal(again, out)


def run_every_mode(q, k, v, values, cu):
    return [
        *(taut.binary_attention(q, k, v, cu, **MODES[m]) for m in ("bool", "elastic")),
        taut.binary_attention(q, k, v, cu, mode="elastic", alpha=0.02, rails=0),
        taut.binary_attention(q, k, values, cu, mode="qk_only"),
    ]


def test_layouts_give_the_same_bits(isa):
    q, k, v, cu = inputs()
    values = torch.randn(q.shape[0], HEADS, 64).bfloat16()
    want = run_every_mode(q, k, v, values, cu)
    wide = random_words(q.shape[0], 3, HEADS + 2)
    wide[:, :, 1:-1] = torch.stack((q, k, v), 1)
    wide_values = torch.full((q.shape[0], HEADS + 1, 70), NAN).bfloat16()
    wide_values[:, 1:, 3:67] = values
    views = *wide[:, :, 1:-1].unbind(1), wide_values[:, 1:, 3:67]
    for a, b in zip(want, run_every_mode(*views, cu), strict=True):
        assert torch.equal(a, b)


def test_batch_invariance(isa):
    """A sequence's bits do not depend on its companions, its place, or the number of threads."""
    q, k, v, cu = inputs()
    values = torch.randn(q.shape[0], HEADS, 64).bfloat16()
    together = run_every_mode(q, k, v, values, cu)
    alone = on_one_thread(run_every_mode, q, k, v, values, cu)
    assert all(map(torch.equal, together, alone))
    begin = 0
    for length in LENGTHS:
        rows = slice(begin, begin + length)
        begin += length
        companions = random_words(3, 90, HEADS)
        mixed = [
            torch.cat((c[:17], t[rows], c[17:])) for c, t in zip(companions, (q, k, v), strict=True)
        ]
        pad = torch.full((90, HEADS, 64), NAN).bfloat16()
        mixed.append(torch.cat((pad[:17], values[rows], pad[17:])))
        found = run_every_mode(*mixed, cu_seqlens_of((17, length, 73)))
        for a, b in zip(together, found, strict=True):
            assert torch.equal(a[rows], b[17 : 17 + length])


def test_long_sequences(isa):
    """More rows than a task takes, more keys than a byte can count."""
    q, k, v, cu = inputs((700,))
    for mode in ("bool", "elastic"):
        out = taut.binary_attention(q, k, v, cu, **MODES[mode], rails=0)
        assert torch.equal(out, reference.binary_attention(q, k, v, cu, **MODES[mode], rails=0))


def test_empty(isa):
    q = torch.zeros(0, HEADS, dtype=torch.int64)
    for cu in (cu_seqlens_of(()), cu_seqlens_of((0, 0))):
        assert taut.binary_attention(q, q, q, cu).shape == (0, 2, HEADS)
        values = torch.zeros(0, HEADS, 64)
        assert taut.binary_attention(q, q, values, cu, mode="qk_only").shape == values.shape


def test_bits_to_bits():
    """Projection, attention and output projection, nothing but bits in between."""
    tokens, width = 33, HEADS * 64
    x = torch.randn(tokens, width)
    weights = torch.randn(3 * width, width)
    packed = taut.pack_binary_weight(taut.pack_bits(weights))
    bits = taut.pack_bits(x)
    thresholds = torch.zeros(3 * width, dtype=torch.int32)
    qkv = taut.binary_linear_bits(bits, packed, thresholds, in_features=width)
    q, k, v = qkv.view(tokens, 3, HEADS).unbind(1)
    cu = cu_seqlens_of((20, 13))
    context = taut.binary_attention(q, k, v, cu)
    out = taut.binary_linear(context, packed, torch.ones(3 * width), in_features=width)
    strict = torch.where((x.sign() @ weights.sign().T) > 0, 1.0, -1.0)
    signs = strict.view(tokens, 3, HEADS, 64)
    want = []
    for part in signs.split((20, 13)):
        query, key, value = part.permute(1, 2, 0, 3)
        want.append(((query @ key.transpose(1, 2) > 0).float() @ value).transpose(0, 1))
    want = torch.cat(want).flatten(1).sign() @ weights.sign().T
    assert torch.equal(out, want)


def op_calls():
    q, k, v, cu = inputs((5, 70))
    thresholds = torch.zeros(HEADS, 64, dtype=torch.int32)
    return {
        "binary_attention": (q, k, v, cu, "elastic", "strict", 0.125, 0.05, thresholds, 1),
        "binary_qk_attention": (
            q, k, torch.ones(*q.shape, 64).to(torch.int8), cu, 0.125, torch.rand(HEADS),
            torch.rand(q.shape[0], 1), torch.bfloat16,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(op_calls()))
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.taut, name), op_calls()[name])


@pytest.mark.parametrize("mode", ("bool", "elastic", "qk_only"))
def test_compile(mode):
    q, k, v, cu = inputs((5, 70))
    if mode == "qk_only":
        v = torch.randn(*q.shape, 64)

    def attend(q, k, v):
        return taut.binary_attention(q, k, v, cu, mode=mode, alpha=0.05)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), attend(q, k, v))


def test_errors():
    q, k, v, cu = inputs((5, 70))
    attend = taut.binary_attention
    thresholds = torch.zeros(HEADS, 64, dtype=torch.int32)
    values = torch.randn(*q.shape, 64)
    for error, call, message in (
        (ValueError, lambda: attend(q, k, v, cu, mode="softmax"),
         "binary_attention: mode must be one of bool, elastic, qk_only, got 'softmax'"),
        (ValueError, lambda: attend(q, k, v, cu, tie="even"),
         "binary_attention: tie must be one of strict, geq, got 'even'"),
        (ValueError, lambda: attend(q, k, v, cu, mode="elastic"),
         "binary_attention: alpha must be positive in mode elastic, got 0.0"),
        (ValueError, lambda: attend(q, k, v, cu, softmax_scale=0.0),
         "binary_attention: softmax_scale must be positive, got 0.0"),
        (ValueError, lambda: attend(q, k, v, cu, rails=3),
         "binary_attention: rails must be one of 0, 1, 2, got 3"),
        (ValueError, lambda: attend(q, k, v, cu, thresholds=thresholds),
         r"thresholds must be \(3, 3, 64\) with rails = 2, got \(3, 64\)"),
        (ValueError, lambda: attend(q, k, v, cu, thresholds=thresholds, rails=0),
         "thresholds must be None with rails = 0"),
        (ValueError, lambda: attend(q, k, v, cu, thresholds=thresholds.long(), rails=1),
         "thresholds must be int32, got int64"),
        (TypeError, lambda: attend(None, k, v, cu),
         "binary_attention: q must be a torch.Tensor, got NoneType"),
        (ValueError, lambda: attend(q.int(), k, v, cu),
         "binary_attention: q must be int64, got int32"),
        (ValueError, lambda: attend(q, k[:-1], v, cu),
         r"binary_attention: k must be \(78, 3\) like q, got \(77, 3\)"),
        (ValueError, lambda: attend(q, k, v, cu + 1),
         "binary_attention: cu_seqlens must start at 0, got 1"),
        (ValueError, lambda: attend(q, k, v, cu_seqlens_of((80,))),
         "binary_attention: cu_seqlens must end within total_tokens = 78, got 80"),
        (ValueError, lambda: attend(q, k, v, cu, alibi_slopes=torch.rand(3)),
         "binary_attention: alibi_slopes must be None in mode bool"),
        (ValueError, lambda: attend(q, k, v, cu, mode="qk_only"),
         r"binary_qk_attention: v must be \(78, 3, 64\), got \(78, 3\)"),
        (ValueError, lambda: attend(q, k, values, cu, mode="qk_only", alibi_slopes=torch.rand(2)),
         r"binary_qk_attention: alibi_slopes must be \(3,\), one per head, got \(2,\)"),
        (ValueError, lambda: attend(q, k, values.to(torch.int8), cu, mode="qk_only"),
         "binary_qk_attention: v_scale must be given with v of int8, got None"),
        (ValueError,
         lambda: attend(q, k, values.to(torch.int8), cu, mode="qk_only", v_scale=torch.ones(78, 1)),
         "binary_qk_attention: out_dtype must be float32, bfloat16 or float16 with v of int8"),
        (ValueError,
         lambda: attend(q, k, values, cu, mode="qk_only", v_scale=torch.ones(78, 1)),
         "binary_qk_attention: v_scale must be None unless v is int8"),
        (ValueError, lambda: attend(q, k, v, cu, out_dtype=torch.float32),
         "binary_attention: out_dtype must be None in mode bool, got torch.float32"),
        (ValueError, lambda: attend(q, k, values, cu, mode="qk_only", thresholds=thresholds),
         "binary_attention: thresholds must be None in mode qk_only"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
