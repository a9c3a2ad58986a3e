"""The native CUDA kernels of packed signs on a GPU: the cases of the host executor, and what it cannot
show: streams, graphs, large tensors. Tests named small_ also run under compute-sanitizer."""

import pytest
import torch

import taut
from binary_cases import (
    BEHIND,
    HEADS,
    LENGTHS,
    MODES,
    assert_int8_attention,
    inputs,
    int8_inputs,
    plain_qk_only,
    qk_inputs,
    random_bits,
    random_thresholds,
    random_weight,
    random_words,
    scales_of_every_size,
    some_zeros,
)
from helpers import assert_close_by_comparison, cu_seqlens_of, strided_rows
from taut._native import last_cuda_variant
from taut.reference import binary_attention as reference
from taut.reference import binary_gemm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (64, 64), (70, 130), (256, 65), (1100, 3), (768, 3072))
NATURAL = (24, 7, 300, 65, 1, 0, 512, 128, 17, 1000)


def server(op, many=False):
    """Who has to serve products of bits on this GPU; wgmma's, on Hopper, if there are `many`."""
    native = 80 <= 10 * torch.cuda.get_device_capability()[0] < 100
    hopper = "/hopper" if many and torch.cuda.get_device_capability() == (9, 0) else ""
    assert last_cuda_variant(op) == (f"native{hopper}" if native else "triton")


def on_gpu(*tensors):
    return [t.cuda() if isinstance(t, torch.Tensor) else t for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 63, 64, 65, 257, 768))
def test_small_pack_and_unpack(columns, dtype):
    x, threshold = some_zeros(70, columns).to(dtype), torch.randn(columns)
    for rails in (1, 2):
        for tie in ("strict", "geq"):
            for limit in (None, threshold):
                given = on_gpu(strided_rows(x), limit)
                bits = taut.pack_bits(*given, rails=rails, tie=tie)
                assert last_cuda_variant("pack_bits") == "native"
                assert torch.equal(bits.cpu(), binary_gemm.pack_bits(x, limit, rails, tie))
        signs = taut.unpack_bits(bits, columns)
        assert last_cuda_variant("unpack_bits") == "native"
        assert torch.equal(signs.cpu(), binary_gemm.unpack_bits(bits.cpu(), columns))


@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("shape", SHAPES)
def test_small_sums_are_exact(shape, rails):
    in_features, out_features = shape
    packed = random_weight(out_features, in_features)
    for rows in (1, 65, 700):
        many = -(-rows // 128) * -(-out_features // 128) >= 132
        x = random_bits(rows, in_features, rails)
        want = binary_gemm._sums(x, packed, out_features, in_features)
        given = on_gpu(strided_rows(x), packed)
        ones = torch.ones(out_features, device="cuda")
        out = taut.binary_linear(*given, ones, in_features=in_features)
        server("binary_linear", many)
        assert torch.equal(out.cpu().double(), want)
        for count in ((out_features,), (3, out_features)):
            thresholds = torch.randint(-9, 10, count, dtype=torch.int32)
            bits = taut.binary_linear_bits(*given, thresholds.cuda(), in_features=in_features)
            server("binary_linear_bits", many)
            assert torch.equal(bits.cpu(), binary_gemm.compare(want, thresholds))


@pytest.mark.parametrize("largest", (1, 2, 8, 128))
def test_small_sums_of_codes(largest):
    packed, one, row_scale = on_gpu(random_weight(70, 300), torch.ones(70), torch.ones(300, 1))
    q = torch.randint(-largest, min(largest, 127) + 1, (300, 300)).to(torch.int8)
    out = taut.binary_linear(q.cuda(), packed, one, in_features=300, x_scale=row_scale)
    assert torch.equal(out.cpu().double(), binary_gemm._sums(q, packed.cpu(), 70, 300))


@pytest.mark.parametrize("rails", (1, 2))
@pytest.mark.parametrize("shape", ((2048, 130, 1536), (17000, 768, 70), (2048, 1100, 3072)))
def test_small_products_that_fill_the_device(shape, rails):
    rows, in_features, out_features = shape
    packed, ones = random_weight(out_features, in_features), torch.ones(out_features)
    x = random_bits(rows, in_features, rails)
    want = binary_gemm._sums(x, packed, out_features, in_features)
    thresholds = torch.randint(-9, 10, (3, out_features), dtype=torch.int32)
    out = taut.binary_linear(*on_gpu(x, packed, ones), in_features=in_features)
    server("binary_linear", many=True)
    assert torch.equal(out.cpu().double(), want)
    bits = taut.binary_linear_bits(*on_gpu(x, packed, thresholds), in_features=in_features)
    server("binary_linear_bits", many=True)
    assert torch.equal(bits.cpu(), binary_gemm.compare(want, thresholds))
    q = torch.randint(-9, 10, (rows, in_features)).to(torch.int8)
    args = on_gpu(q, packed, ones)
    scales = torch.ones(rows, 1, device="cuda")
    out = taut.binary_linear(*args, in_features=in_features, x_scale=scales)
    server("binary_linear", many=True)
    want = binary_gemm._sums(q, packed, out_features, in_features)
    assert torch.equal(out.cpu().double(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh"))
def test_small_epilogue(epilogue, dtype):
    for out_features in (67, 68):
        packed, x = random_weight(out_features, 130), random_bits(40, 130)
        scale, bias = torch.randn(2, out_features) / 10
        residual = torch.randn(40, out_features).to(dtype)
        rest = {"epilogue": epilogue, "in_features": 130, "out_dtype": dtype}
        out = taut.binary_linear(*on_gpu(x, packed, scale, bias), residual=residual.cuda(), **rest)
        exact = binary_gemm.binary_linear(
            x, None, packed, scale, bias, out_features, 130, epilogue, residual, torch.float32
        )
        assert_close_by_comparison(out.cpu(), exact.to(dtype), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_layer_norm(dtype):
    packed, x = random_weight(200, 130), random_bits(40, 130)
    scale, bias = torch.randn(2, 200)
    residual, weight, norm_bias = (
        t.to(dtype) for t in (torch.randn(40, 200), *torch.randn(2, 200))
    )
    args = (x, packed, scale, bias, residual, weight, norm_bias)
    out, bits = taut.binary_linear_layer_norm(*on_gpu(*args), in_features=130)
    server("binary_linear_layer_norm")
    wide = [t.double() if dtype != torch.float32 else t for t in args[4:]]
    exact, _ = binary_gemm.binary_linear_layer_norm(x, None, packed, scale, bias, 130, *wide, 1e-5)
    assert_close_by_comparison(out.cpu(), exact.to(dtype), exact)
    clear = exact.abs() > 1e-4
    signs = binary_gemm.unpack_bits(bits.cpu(), 200)
    assert torch.equal((signs > 0)[clear], (exact > 0)[clear])


@pytest.mark.parametrize("mode", MODES)
def test_small_attention(mode):
    args = inputs()
    sums = taut.binary_attention(*on_gpu(*args), **MODES[mode], rails=0)
    server("binary_attention")
    assert torch.equal(sums.cpu(), reference.binary_attention(*args, **MODES[mode], rails=0))
    for rails in (1, 2):
        for thresholds in random_thresholds(rails):
            rest = {**MODES[mode], "rails": rails}
            on = {**rest, "thresholds": None if thresholds is None else thresholds.cuda()}
            bits = taut.binary_attention(*on_gpu(*args), **on)
            want = reference.binary_attention(*args, **rest, thresholds=thresholds)
            assert torch.equal(bits.cpu(), want)


@pytest.mark.parametrize("heads", (1, 2, 5))
def test_small_attention_of_few_heads(heads):
    args = inputs((16, 20, 3, 32), heads)
    bits = taut.binary_attention(*on_gpu(*args))
    assert torch.equal(bits.cpu(), reference.binary_attention(*args))


@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", HALVES)
def test_small_qk_only(dtype, alibi):
    q, k, v, cu = qk_inputs(LENGTHS, dtype)
    slopes = torch.tensor([0.5, 0.02, 0.0]) if alibi else None
    for scale in (0.125, 1.5):
        given, rest = on_gpu(q, k, v, cu), {"mode": "qk_only", "softmax_scale": scale}
        out = taut.binary_attention(*given, **rest, alibi_slopes=slopes.cuda() if alibi else None)
        server("binary_qk_attention")
        exact = reference.binary_qk_attention(q, k, v.double(), cu, scale, slopes)
        assert_close_by_comparison(out.cpu(), plain_qk_only(q, k, v, cu, scale, slopes), exact)
        assert (out[-BEHIND:] == 0).all()


@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", HALVES)
def test_small_qk_only_with_int8_values(dtype, alibi):
    args = int8_inputs(LENGTHS)
    slopes = torch.tensor([0.5, 0.02, 0.0]) if alibi else None
    smallest, largest = (-6, 2) if dtype == torch.float16 else (-37, 33)
    scales = scales_of_every_size(LENGTHS, smallest, largest)
    for v_scale in (args[4], scales):
        given = (*args[:4], v_scale)
        q, k, v, cu, on_device = on_gpu(*given)
        out = taut.binary_attention(
            q, k, v, cu, mode="qk_only", v_scale=on_device, out_dtype=dtype,
            alibi_slopes=slopes.cuda() if alibi else None,
        )  # fmt: skip
        server("binary_qk_attention")
        assert_int8_attention(out.cpu(), *given, slopes=slopes)
        wide = torch.zeros(v.shape[0], HEADS + 1, 75, dtype=torch.int8, device="cuda")
        wide[:, 1:, 11:] = v
        again = taut.binary_attention(
            q, k, wide[:, 1:, 11:], cu, mode="qk_only", v_scale=on_device, out_dtype=dtype,
            alibi_slopes=slopes.cuda() if alibi else None,
        )  # fmt: skip
        assert torch.equal(again, out)


def test_small_malformed_offsets_are_reported():
    q, k, v = random_words(3, 70, HEADS).cuda()
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32, device="cuda")
    assert (taut.binary_attention(q, k, v, cu) == 0).all()
    values = torch.randn(70, HEADS, 64, device="cuda", dtype=torch.bfloat16)
    assert taut.binary_attention(q, k, values, cu, mode="qk_only").isnan().all()


def test_what_is_not_native_goes_to_triton():
    q, k, v, cu = on_gpu(*qk_inputs((70,), torch.float32))
    exact = reference.binary_qk_attention(q, k, v.double(), cu)
    out = taut.binary_attention(q, k, v, cu, mode="qk_only")
    assert last_cuda_variant("binary_qk_attention") == "triton"
    assert (out - exact).abs().max() < 1e-5
    q, k, v, cu, v_scale = on_gpu(*int8_inputs((70,)))
    rest = {"v_scale": v_scale, "out_dtype": torch.float32}
    exact = reference.binary_qk_attention(q, k, v.double(), cu, **rest)
    out = taut.binary_attention(q, k, v, cu, mode="qk_only", **rest)
    assert last_cuda_variant("binary_qk_attention") == "triton"
    assert (out - exact).abs().max() < 1e-3


def natural_case():
    words = random_words(3, sum(NATURAL) + 5, 12).cuda()
    return (*words, cu_seqlens_of(NATURAL).cuda())


@pytest.mark.parametrize("mode", ("bool", "elastic"))
def test_batch_invariance_and_strides(mode):
    q, k, v, cu = natural_case()
    together = taut.binary_attention(q, k, v, cu, **MODES[mode])
    turned = [t.T.contiguous().T for t in (q, k, v)]
    assert torch.equal(taut.binary_attention(*turned, cu, **MODES[mode]), together)
    for begin, length in zip(cu.tolist(), NATURAL, strict=False):
        rows = slice(begin, begin + length)
        own = cu_seqlens_of((length,)).cuda()
        alone = taut.binary_attention(q[rows], k[rows], v[rows], own, **MODES[mode])
        assert torch.equal(alone, together[rows])


def test_cuda_graph():
    """One graph serves every batch of as many tokens and sequences."""
    q, k, v, cu = natural_case()
    for _ in range(2):
        taut.binary_attention(q, k, v, cu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = taut.binary_attention(q, k, v, cu)
    cu.copy_(cu_seqlens_of(NATURAL[::-1]))
    q.copy_(random_words(*q.shape))
    graph.replay()
    assert torch.equal(out, taut.binary_attention(q, k, v, cu))


def test_nothing_waits_for_the_device():
    args = natural_case()
    packed, thresholds = on_gpu(random_weight(768, 768), torch.zeros(768, dtype=torch.int32))

    def run():
        bits = taut.binary_attention(*args, rails=1)
        return taut.binary_linear_bits(bits, packed, thresholds, in_features=768)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_2_to_31():
    """Floats whose last rows lie behind 2^31 elements."""
    rows, columns = (1 << 31) // 768 + 300, 768
    x = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    x[-70:].normal_()
    bits = taut.pack_bits(x)[-70:]
    assert torch.equal(bits, taut.pack_bits(x[-70:].contiguous()))
    packed, scale = on_gpu(random_weight(768, 768), torch.rand(768))
    far = torch.zeros(rows, 12, device="cuda", dtype=torch.int64)
    far[-70:] = bits
    out = taut.binary_linear(far, packed, scale, in_features=768, out_dtype=torch.bfloat16)
    near = taut.binary_linear(bits, packed, scale, in_features=768, out_dtype=torch.bfloat16)
    assert torch.equal(out[-70:], near)
