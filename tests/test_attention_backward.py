"""varlen_attention, backward: the reference by gradcheck, the kernels against the reference."""

import functools

import pytest
import torch

import taut
from attention_cases import (
    DTYPES,
    HEADS,
    LENGTHS,
    OPTIONS,
    arguments,
    clear_of_kinks,
    plain_attention,
    random_qkv,
)
from helpers import assert_close_by_comparison, cu_seqlens_of
from taut._native import last_variant
from taut.reference import attention as reference

NAN = float("nan")


class ReferenceAttention(torch.autograd.Function):
    """The reference forward with the reference backward, so that gradcheck can compare them."""

    @staticmethod
    def forward(ctx, q, k, v, slopes, relative_bias, cu_q, cu_k, rest):
        options = (0.3, slopes, relative_bias, *rest)
        out, lse = reference.varlen_attention(q, k, v, cu_q, cu_k, *options)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, grad):
        gradients = reference.varlen_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
        return *(g if g.numel() else None for g in gradients), None, None, None


@pytest.mark.parametrize(
    "rest",
    (
        (False, -1, -1, 0.0, None, 0.0, 0),
        (True, 2, -1, 1.5, None, 0.0, 0),
        (False, 3, 1, 0.0, (1.2, -0.05), 0.3, 9),
    ),
)
@pytest.mark.parametrize("biases", (False, True))
def test_reference_gradcheck(rest, biases):
    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    cu_q, cu_k = cu_seqlens_of((3, 0, 2)), cu_seqlens_of((4, 1, 1))
    slopes, relative = (leaf(2).exp(), leaf(2, 5)) if biases else (None, None)
    inputs = (leaf(6, 2, 16), leaf(7, 1, 16), leaf(7, 1, 16), slopes, relative, cu_q, cu_k, rest)
    assert torch.autograd.gradcheck(ReferenceAttention.apply, inputs, fast_mode=True)


def leaves(*tensors):
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


@functools.cache
def gradient_case(option, dtype, head_dim=24, heads_kv=1, lengths=LENGTHS):
    """q, k, v, their gradients' seed, cu_seqlens, then the gradients of plain torch at `dtype` and
    of the reference in fp64, which also gives those of the biases."""
    q, k, v = random_qkv(lengths, lengths, HEADS, heads_kv, head_dim, dtype)
    cu, options = cu_seqlens_of(lengths), arguments(OPTIONS[option], head_dim)
    grad = clear_of_kinks(torch.randn_like(q), q, k, v, cu, cu, *options)
    tensors = leaves(q, k, v)
    plain_attention(*tensors, cu, cu, *options).backward(grad)
    wide = [t.double() for t in (q, k, v)]
    found = reference.varlen_attention(*wide, cu, cu, *options)
    exact = reference.varlen_attention_backward(grad.double(), *wide, *found, cu, cu, *options)
    return q, k, v, grad, cu, [t.grad for t in tensors], exact


def assert_gradients(tensors, plain, exact):
    # The kernels add up to 400 fp32 terms in order, plain torch in blocks: a few ulp more.
    for t, at_dtype, want in zip(tensors, plain, exact, strict=False):
        slack = 16.0 if t.dtype == torch.float32 else 4.0
        assert_close_by_comparison(t.grad, at_dtype, want, slack=slack)


def assert_bias_gradient(bias, exact, q, typical):
    """Sums whose terms carry the rounding of q's dtype and largely cancel: `typical` is the size of
    the terms. fp32 rounds their sum, too."""
    assert bias.grad.dtype == torch.float32 and bias.grad.shape == exact.shape
    error = (bias.grad - exact).abs().max().item()
    units = 16 if q.dtype == torch.float32 else 4
    assert error <= units * torch.finfo(q.dtype).eps * typical, (error, typical)


@functools.cache
def bias_terms(option, dtype, lengths):
    """How large the terms of the biases' gradients are, (alibi_slopes, relative_bias): the largest
    sums over heads of |gradient of the scores at a distance|, with and without * |distance|."""
    q, k, v, grad, cu, _, _ = gradient_case(option, dtype, lengths=lengths)
    longest = max(lengths)
    options = list(arguments(OPTIONS[option], q.shape[2]))
    wide = [t.double() for t in (q, k, v)]
    found = reference.varlen_attention(*wide, cu, cu, *options)
    options[2] = torch.zeros(HEADS, 2 * longest + 1, dtype=torch.float64)
    at_distance = reference.varlen_attention_backward(
        grad.double(), *wide, *found, cu, cu, *options
    )[4].abs()
    distance = (torch.arange(2 * longest + 1) - longest).abs()
    return (at_distance * distance).sum(1).max().item(), at_distance.sum(1).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(isa, option, dtype):
    lengths = LENGTHS if option == "alibi_per_sequence" else (0, 1, 33, 65, 20)
    q, k, v, grad, cu, plain, exact = gradient_case(option, dtype, lengths=lengths)
    slopes, relative = (OPTIONS[option].get(name) for name in ("alibi_slopes", "relative_bias"))
    *given, slopes, relative = leaves(q, k, v, slopes, relative)
    biases = {"alibi_slopes": slopes, "relative_bias": relative}
    out = taut.varlen_attention(*given, cu, **{**OPTIONS[option], **biases})
    out.backward(grad)
    assert last_variant("varlen_attention_backward") == isa
    assert_gradients(given, plain, exact)
    for bias, want, typical in zip(
        (slopes, relative), exact[3:], bias_terms(option, dtype, lengths), strict=True
    ):
        if bias is not None:
            assert_bias_gradient(bias, want, q, typical)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("head_dim, heads_kv", ((16, 2), (64, 1), (72, 1), (256, 2)))
def test_head_dims(isa, head_dim, heads_kv, dtype):
    q, k, v, grad, cu, plain, exact = gradient_case("none", dtype, head_dim, heads_kv, (300, 40))
    given = leaves(q, k, v)
    taut.varlen_attention(*given, cu).backward(grad)
    assert_gradients(given, plain, exact)


@pytest.mark.parametrize(
    "option, dtype",
    (
        ("window", torch.float32), ("clip", torch.float32), ("all", torch.float32),
        ("window", torch.bfloat16), ("all", torch.bfloat16),
    ),
)  # fmt: skip
def test_lengths_around_blocks_of_keys(isa, option, dtype):
    q, k, v, grad, cu, plain, exact = gradient_case(option, dtype, lengths=(255, 256, 257, 600))
    given = leaves(q, k, v)
    taut.varlen_attention(*given, cu, **OPTIONS[option]).backward(grad)
    assert_gradients(given, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_qkvpacked(isa, dtype):
    lengths = (5, 0, 70, 1)
    qkv = torch.randn(sum(lengths) + 2, 3, HEADS, 24).to(dtype)
    bias = torch.randn(3, HEADS, 24).to(dtype)
    cu, options = cu_seqlens_of(lengths), arguments({"causal": True}, 24)
    qkv, bias, plain_qkv, plain_bias = leaves(qkv, bias, qkv, bias)
    out = taut.varlen_attention_qkvpacked(qkv, cu, bias=bias, causal=True)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert last_variant("varlen_attention_qkvpacked_backward") == isa
    plain_attention(*(plain_qkv + plain_bias).unbind(1), cu, cu, *options).backward(grad)
    with torch.no_grad():
        wide = qkv.double(), bias.double(), cu
        found = reference.varlen_attention_qkvpacked(*wide, *options)
        exact = reference.varlen_attention_qkvpacked_backward(
            grad.double(), *wide[:2], *found, cu, *options
        )
    assert_gradients((qkv, bias), (plain_qkv.grad, plain_bias.grad), exact)
    assert (qkv.grad[sum(lengths) :] == 0).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_batch_invariance_and_nan(isa, dtype):
    """Gradients of a sequence have the same bits alone and beside NaN."""
    lengths = (33, 70, 300)
    q, k, v = random_qkv((*lengths, 4), (*lengths, 4), HEADS, HEADS, 32, dtype)
    grad = torch.randn_like(q)
    for begin, length in zip((0, 33, 103), lengths, strict=True):
        rows = slice(begin, begin + length)
        alone = leaves(q[rows], k[rows], v[rows])
        taut.varlen_attention(*alone, cu_seqlens_of((length,)), causal=True).backward(grad[rows])
        mixed = [torch.full_like(t, NAN) for t in (q, k, v, grad)]
        for t, source in zip(mixed, (q, k, v, grad), strict=True):
            t[rows] = source[rows]
        together = leaves(*mixed[:3])
        taut.varlen_attention(*together, cu_seqlens_of(lengths), causal=True).backward(mixed[3])
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a.grad, b.grad[rows])
            assert (b.grad[sum(lengths) :] == 0).all()


def test_no_tokens_and_sequences_without_queries_or_keys(isa):
    q, k, v = leaves(*random_qkv((0, 5), (7, 0), HEADS, HEADS, 16, torch.float32))
    slopes = torch.ones(HEADS, requires_grad=True)
    out = taut.varlen_attention(
        q, k, v, cu_seqlens_of((0, 5)), cu_seqlens_of((7, 0)), alibi_slopes=slopes
    )
    out.sum().backward()
    assert all((t.grad == 0).all() for t in (q, k, v, slopes))
    empty = torch.empty(0, 3, HEADS, 16, requires_grad=True)
    taut.varlen_attention_qkvpacked(empty, cu_seqlens_of(())).sum().backward()
    assert empty.grad.shape == empty.shape


def test_opcheck():
    q, k, v = leaves(*random_qkv((5, 0, 9), (5, 0, 9), HEADS, 1, 16, torch.float32))
    cu = cu_seqlens_of((5, 0, 9))
    qkv, bias = leaves(torch.randn(14, 3, HEADS, 16), torch.randn(3, HEADS, 16))
    for name in ("none", "all"):
        options = list(arguments(OPTIONS[name], 16))
        options[1:3] = leaves(*options[1:3])
        options[7] = options[7] and list(options[7])
        torch.library.opcheck(torch.ops.taut.varlen_attention.default, (q, k, v, cu, cu, *options))
        torch.library.opcheck(torch.ops.taut.varlen_attention.default, (q, k, v, cu))
        torch.library.opcheck(
            torch.ops.taut.varlen_attention_qkvpacked.default, (qkv, bias, cu, *options)
        )
        with torch.no_grad():
            out, lse = torch.ops.taut.varlen_attention(q, k, v, cu, cu, *options)
            saved = (q, k, v, out, lse, cu, cu, *options)
            packed = torch.ops.taut.varlen_attention_qkvpacked(qkv, bias, cu, *options)
            for op, args in (
                (torch.ops.taut.varlen_attention_backward, (out, *saved)),
                (
                    torch.ops.taut.varlen_attention_qkvpacked_backward,
                    (out, qkv, bias, *packed, cu, *options),
                ),
            ):
                detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
                torch.library.opcheck(op.default, tuple(detached))


@pytest.mark.parametrize("option", ("none", "all"))
def test_compiles_without_graph_breaks(option):
    cu = cu_seqlens_of((5, 0, 9))
    qkv = torch.randn(14, 3, HEADS, 16)

    def step(qkv):
        separate = taut.varlen_attention(*qkv.unbind(1), cu, **OPTIONS[option])
        return separate + taut.varlen_attention_qkvpacked(qkv, cu, **OPTIONS[option])

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = leaves(qkv, qkv)
    out, eager = compiled(got), step(want)
    assert torch.equal(out, eager)
    out.sum().backward()
    eager.sum().backward()
    assert torch.equal(got.grad, want.grad)


def test_backward_refuses_bad_arguments():
    q, k, v = random_qkv((5,), (5,), HEADS, HEADS, 16, torch.float32)
    cu, options = cu_seqlens_of((5,)), arguments({}, 16)
    with pytest.raises(RuntimeError, match="varlen_attention_backward: out must be"):
        torch.ops.taut.varlen_attention_backward(
            q, q, k, v, q[:3], torch.zeros(HEADS, 5), cu, cu, *options
        )
    with pytest.raises(RuntimeError, match="logsumexp must be float32, got float64"):
        torch.ops.taut.varlen_attention_backward(
            q, q, k, v, q, torch.zeros(HEADS, 5).double(), cu, cu, *options
        )
    with pytest.raises(RuntimeError, match="varlen_attention_backward: logsumexp must be"):
        torch.ops.taut.varlen_attention_backward(
            q, q, k, v, q, torch.zeros(5, HEADS), cu, cu, *options
        )


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_bias_gradients_do_not_magnify_rounding(isa, dtype):
    """Sums along diagonals multiply a row's error by distances up to its length."""
    length, heads = 300, 2
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
    qkv = torch.randn(length, 3, heads, 32).to(dtype)
    grad = torch.randn(length, heads, 32).to(dtype)

    def gradients(qkv):
        slopes = torch.full((heads,), 0.1, requires_grad=True)
        bias = torch.randn(heads, 21, generator=torch.Generator().manual_seed(0))
        bias.requires_grad_()
        out = taut.varlen_attention_qkvpacked(
            qkv, cu_seqlens, alibi_slopes=slopes, relative_bias=bias
        )
        return torch.autograd.grad(out, (slopes, bias), grad.to(qkv.dtype))

    for got, want in zip(gradients(qkv), gradients(qkv.float()), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_no_heads_and_no_second_derivatives():
    qkv = torch.zeros(3, 3, 0, 64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32)
    taut.varlen_attention_qkvpacked(qkv, cu_seqlens).sum().backward()
    assert qkv.grad.shape == qkv.shape
    x = torch.randn(2, 8, requires_grad=True)
    (first,) = torch.autograd.grad(taut.layer_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_norm: second derivatives are not supported"):
        first.sum().backward()
