"""The native CUDA kernels of varlen attention on a GPU: the cases of the host executor, and what it
cannot show: streams, graphs, large tensors. Tests named small_ also run under compute-sanitizer."""

import pytest
import torch

import taut
from attention_cases import (
    HEADS,
    LENGTHS,
    OPTIONS,
    arguments,
    assert_gives,
    forward_case,
    random_qkv,
)
from helpers import cu_seqlens_of
from taut._native import last_cuda_variant
from taut.reference import attention as reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
HALVES = (torch.bfloat16, torch.float16)
NATURAL = (24, 7, 300, 65, 1, 0, 512, 128, 17, 1000)


def on_gpu(options):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


RARE = {"relative_bias", "softcap", "clip", "dropout_p"}


def variant_of(options, head_dim):
    """Which kernels serve a call without a bias, on a GPU of the architecture that is there."""
    hopper = torch.cuda.get_device_capability() == (9, 0) and 32 < head_dim <= 128
    return "native/hopper" if hopper and not RARE & options.keys() else "native"


def assert_forward(case, options):
    tensors = [t.cuda() for t in case[:5]]
    out, lse = taut.varlen_attention(*tensors, **on_gpu(options), return_lse=True)
    assert last_cuda_variant("varlen_attention") == variant_of(options, tensors[0].shape[2])
    assert_gives(out.cpu(), lse.cpu(), case)


@pytest.mark.parametrize("option", OPTIONS)
def test_small_options(option):
    assert_forward(forward_case(option, torch.bfloat16), OPTIONS[option])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", (16, 40, 64, 96, 128, 200, 256))
@pytest.mark.parametrize("option", ("none", "alibi"))
def test_small_head_dims(head_dim, option, dtype):
    assert_forward(forward_case(option, dtype, head_dim, lengths=(0, 1, 33, 65, 300)),
                   OPTIONS[option])  # fmt: skip


@pytest.mark.parametrize("option", ("none", "causal", "window", "all"))
def test_small_cross_attention(option):
    assert_forward(forward_case(option, torch.float16, heads_kv=1, cross=True), OPTIONS[option])


def gradients(q, k, v, grad, cu, options):
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    biases = {name: t.detach().clone().requires_grad_() for name, t in options.items()
              if isinstance(t, torch.Tensor)}  # fmt: skip
    taut.varlen_attention(*leaves, cu, **{**options, **biases}).backward(grad)
    return [t.grad for t in (*leaves, *biases.values())]


@pytest.mark.parametrize("head_dim", (32, 64, 128, 256))
@pytest.mark.parametrize("option", OPTIONS)
def test_small_gradients(option, head_dim):
    lengths = LENGTHS if head_dim == 32 else (0, 1, 33, 65, 300)
    options = OPTIONS[option]
    if option == "alibi_per_sequence":
        options = {"alibi_slopes": torch.rand(len(lengths), HEADS)}
    q, k, v = random_qkv(lengths, lengths, HEADS, HEADS, head_dim, torch.bfloat16)
    cu, grad = cu_seqlens_of(lengths), torch.randn_like(q)
    got = gradients(*(t.cuda() for t in (q, k, v, grad, cu)), on_gpu(options))
    assert last_cuda_variant("varlen_attention_backward") == variant_of(options, head_dim)
    again = gradients(*(t.cuda() for t in (q, k, v, grad, cu)), on_gpu(options))
    assert all(map(torch.equal, got, again))
    chosen = arguments(options, head_dim)
    wide = [t.double() for t in (q, k, v)]
    exact = reference.varlen_attention_backward(
        grad.double(), *wide, *reference.varlen_attention(*wide, cu, cu, *chosen), cu, cu, *chosen
    )
    for actual, want in zip(got[:3], exact, strict=False):
        error = (actual.cpu().double() - want).abs().max()
        assert error <= 0.02 * want.abs().max()
    wanted = [t for t in exact[3:] if t.numel()]
    for actual, want in zip(got[3:], wanted, strict=True):
        assert (actual.cpu() - want).abs().max() <= 0.03 * want.abs().max() + 0.05


def test_small_plan():
    for lengths in ((), (0,), NATURAL, tuple(torch.randint(0, 900, (1000,)).tolist())):
        cu = cu_seqlens_of(lengths)
        total = int(cu[-1]) + 3
        got = taut.attention_plan(cu.cuda(), total_q=total)
        assert last_cuda_variant("attention_plan") == "native"
        assert torch.equal(got.cpu(), reference.attention_plan(cu, None, total, total))


def test_small_malformed_offsets_are_reported():
    q = torch.randn(70, HEADS, 64, device="cuda", dtype=torch.bfloat16)
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32, device="cuda")
    assert taut.attention_plan(cu, total_q=70)[0, 0] == 2
    assert taut.varlen_attention(q, q, q, cu).isnan().all()


def natural_case(head_dim=64, dtype=torch.bfloat16):
    qkv = torch.randn(sum(NATURAL) + 5, 3, 12, head_dim, device="cuda", dtype=dtype)
    return qkv, cu_seqlens_of(NATURAL).cuda()


def test_small_packed_equals_separate():
    qkv, cu = natural_case(head_dim=32)  # the Hopper kernels, which round otherwise, take no bias
    bias = torch.randn(3, 12, 32, device="cuda", dtype=qkv.dtype)
    packed = taut.varlen_attention_qkvpacked(qkv, cu, bias=bias)
    assert torch.equal(packed, taut.varlen_attention(*(qkv + bias).unbind(1), cu))
    assert (packed[sum(NATURAL) :] == 0).all()


def test_a_plan_changes_nothing():
    qkv, cu = natural_case()
    plan = taut.attention_plan(cu, total_q=qkv.shape[0])
    with_plan = taut.varlen_attention_qkvpacked(qkv, cu, plan=plan)
    assert torch.equal(with_plan, taut.varlen_attention_qkvpacked(qkv, cu))


def test_batch_invariance():
    qkv, cu = natural_case()
    slopes = torch.rand(12, device="cuda")
    together = taut.varlen_attention_qkvpacked(qkv, cu, alibi_slopes=slopes)
    for begin, length in zip(cu.tolist(), NATURAL, strict=False):
        rows = slice(begin, begin + length)
        alone = taut.varlen_attention_qkvpacked(
            qkv[rows], cu_seqlens_of((length,)).cuda(), alibi_slopes=slopes
        )
        assert torch.equal(alone, together[rows])


def test_misaligned_and_strided_inputs():
    qkv, cu = natural_case()
    q, k, v = qkv.unbind(1)
    want = taut.varlen_attention(q, k, v, cu)
    odd = [torch.empty(t.numel() + 1, device="cuda", dtype=t.dtype)[1:].view(t.shape).copy_(t)
           for t in (q, k, v)]  # fmt: skip
    assert torch.equal(taut.varlen_attention(*odd, cu), want)
    turned = [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (q, k, v)]
    assert torch.equal(taut.varlen_attention(*turned, cu), want)


def test_cuda_graph():
    """One graph serves every batch of as many tokens and sequences."""
    qkv, cu = natural_case()
    for _ in range(2):
        taut.varlen_attention_qkvpacked(qkv, cu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = taut.varlen_attention_qkvpacked(qkv, cu)
    cu.copy_(cu_seqlens_of(NATURAL[::-1]))
    qkv.normal_()
    graph.replay()
    assert torch.equal(out, taut.varlen_attention_qkvpacked(qkv, cu))


def test_nothing_waits_for_the_device():
    qkv, cu = natural_case()
    leaf = qkv.clone().requires_grad_()
    taut.varlen_attention_qkvpacked(leaf, cu).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        taut.varlen_attention_qkvpacked(leaf, cu).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fp32_goes_to_triton():
    q = torch.randn(70, HEADS, 64, device="cuda")
    cu = cu_seqlens_of((70,)).cuda()
    out = taut.varlen_attention(q, q, q, cu)
    assert last_cuda_variant("varlen_attention") == "triton"
    exact, _ = reference.varlen_attention(*[q.double()] * 3, cu, cu, *arguments({}, 64))
    assert (out - exact).abs().max() < 1e-5


def test_offsets_beyond_2_to_31():
    tokens = (1 << 31) // (3 * 16 * 128) + 300
    qkv = torch.empty(tokens, 3, 16, 128, device="cuda", dtype=torch.bfloat16)
    last = slice(tokens - 200, tokens)
    qkv[last].normal_()
    starts = torch.tensor([0, 200], dtype=torch.int32).cuda()
    shifted = taut.varlen_attention_qkvpacked(qkv[last], starts)
    cu = torch.cat((torch.arange(0, tokens - 200, 512, dtype=torch.int32).cuda(),
                    torch.tensor([tokens - 200, tokens], dtype=torch.int32).cuda()))  # fmt: skip
    assert torch.equal(taut.varlen_attention_qkvpacked(qkv, cu)[last], shifted)
