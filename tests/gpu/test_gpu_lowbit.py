"""The native CUDA kernels of quantize and lowbit_gemm on a GPU: the cases of the host executor, and
what it cannot show. Tests named small_ also run under compute-sanitizer."""

import pytest
import torch

import lowbit_cases as cases
import taut
from lowbit_cases import DTYPES, EXACT_GRIDS, GROUPED
from taut._native import last_cuda_variant
from taut.formats import BITS
from taut.registry import OPS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU",
)
SHAPES = ((1, 1, 1), (65, 70, 33), (3, 130, 200), (17, 64, 384), (300, 200, 768))


def call(op, *args):
    on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    result = OPS[op].overload(*on_gpu)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def run(op, *args):
    outputs = tuple(t.cpu() for t in call(op, *args))
    assert last_cuda_variant(op).startswith("native")
    return outputs


@pytest.mark.parametrize("grid", EXACT_GRIDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 33, 256, 3072))
def test_small_bits_are_those_of_the_reference(grid, dtype, columns):
    cases.check_grid(run, grid, dtype, columns)


@pytest.mark.parametrize("bits", (2, 8))
@pytest.mark.parametrize("hadamard", (False, True))
def test_small_midrise(bits, hadamard):
    cases.check_midrise(run, bits, hadamard)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_affine", (False, True))
def test_small_norms(dtype, own_affine):
    cases.check_layer_norm_quantize(run, dtype, own_affine)
    cases.check_linear_layer_norm(run, dtype, own_affine)


def test_small_rows_without_elements_and_with_gaps():
    cases.check_no_rows_and_layouts(run)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_places_of_rows(dtype):
    cases.check_places_of_rows(run, dtype)


@pytest.mark.parametrize("bits", BITS)
def test_small_integer_products(bits):
    cases.check_products(run, bits, SHAPES)


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
def test_small_groups(bits, group_size):
    cases.check_groups(run, bits, group_size)
    cases.check_groups(run, bits, group_size, (150, 260, 420))


def test_small_extremes():
    for bits in BITS:
        cases.check_extremes(run, bits)


@pytest.mark.parametrize("attempt", range(20))
def test_small_fuzz(attempt):
    cases.check_fuzz(run, int(torch.randint(1 << 62, ())))


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_small_floating_point_activations(dtype, bits, group_size):
    for shape in ((1, 1, 1), (5, 70, 200), (40, 33, 300), (1, 768, 3072), (700, 768, 384)):
        cases.check_floats(run, dtype, bits, group_size, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ("relu", "gelu", "gelu_tanh", "silu", "tanh"))
def test_small_epilogues(dtype, epilogue):
    cases.check_epilogue(run, dtype, epilogue)


@pytest.mark.parametrize("out_group_size", (0, 32, 64, 128, 256))
@pytest.mark.parametrize("out_bits", (4, 8))
def test_small_requantizing(out_group_size, out_bits):
    for rows in (20, 500):
        cases.check_requantizing(run, out_bits, out_group_size, rows)


def test_small_nothing_leaks_between_rows():
    cases.check_nothing_leaks(run)


def test_batch_invariance():
    """From one row to as many as fill the device with the largest tiles."""
    parts = (slice(19999, 20000), slice(7, 23), slice(100, 612), slice(1, 4097))
    cases.check_batch_invariance(run, 20000, parts)
    cases.check_float_batch_invariance(run, 20000, parts)


@pytest.mark.parametrize("rows", (1, 16, 64, 512, 4096))
@pytest.mark.parametrize("bits", BITS)
def test_encoder_shapes(rows, bits):
    for features, channels in ((384, 1536), (768, 768), (3072, 768)):
        cases.check_products(run, bits, ((rows, channels, features),))


@on_hopper
@pytest.mark.parametrize("bits", BITS)
def test_small_wgmma(bits):
    """As many rows as fill a GPU with the largest tiles, one scale per channel."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for rows, channels, features in ((128 * processors - 6, 200, 100), (4096, 1536, 200)):
        weight = cases.weight_of(channels, features, bits)
        args = (*weight, torch.randn(channels), channels, bits, 0, 8)
        cases.assert_bits(
            run, "lowbit_linear", *cases.integers(rows, features), *args, "relu", None, 0.0,
            torch.bfloat16,
        )  # fmt: skip
        assert last_cuda_variant("lowbit_linear") == "native/hopper"
        x = cases.integers(rows, features)
        cases.assert_bits(run, "lowbit_linear_quantize", *x, *args, "relu", 8, 128)


@on_hopper
@pytest.mark.parametrize("group_size", (0, 32, 64, 128, 256))
@pytest.mark.parametrize("bits", BITS)
def test_small_wgmma_of_groups(bits, group_size):
    """The same with scales per group, and with zero points."""
    for shape in ((2048, 1536, 300), (16000, 200, 520)):
        rows, channels, features = shape
        if group_size:
            cases.check_groups(run, bits, group_size, shape)
        else:
            cases.check_products(run, bits, (shape,))
        assert last_cuda_variant("lowbit_linear") == "native/hopper"
        weight = cases.weight_of(channels, features, bits, group_size, "half")
        args = (*weight, None, channels, bits, group_size, 8, "relu", 8, 128)
        cases.assert_bits(run, "lowbit_linear_quantize", *cases.integers(rows, features), *args)


def test_misaligned_and_strided_inputs():
    x, x_scale = cases.integers(70, 128)
    weight = cases.weight_of(130, 128, 4, 32)
    rest = (x_scale, *weight, None, 130, 4, 32, 8, "none", None, 0.0, torch.float32)
    want = run("lowbit_linear", x, *rest)[0]
    odd = torch.empty(70 * 128 + 1, dtype=torch.int8, device="cuda")[1:].view(70, 128).copy_(x)
    for layout in (odd, x.cuda().t().contiguous().t(), torch.cat((x, x), 1).cuda()[:, :128]):
        assert torch.equal(call("lowbit_linear", layout, *rest)[0].cpu(), want)


def test_weights_are_packed_on_the_gpu():
    for bits in BITS:
        codes = torch.randint(0, 2**bits, (70, 100), dtype=torch.uint8)
        packed = taut.formats.pack_codes(codes.cuda(), bits)
        assert torch.equal(packed.cpu(), taut.formats.pack_codes(codes, bits))
        prepacked = taut.pack_lowbit(packed, bits, 100)
        assert torch.equal(prepacked.cpu(), taut.pack_lowbit(packed.cpu(), bits, 100))
        assert torch.equal(taut.unpack_lowbit(prepacked, bits, 70, 100), packed)


def test_what_kernels_do_not_serve_goes_to_triton():
    x, weight = torch.randn(5, 96), cases.weight_of(70, 96, 4)
    call("lowbit_linear", x, None, *weight, None, 70, 4, 0, 0)
    assert last_cuda_variant("lowbit_linear") == "triton"
    call("quantize_per_token", torch.randn(2, 100000))
    assert last_cuda_variant("quantize_per_token") == "triton"


def encoder_part():
    x = torch.randn(300, 384, device="cuda", dtype=torch.bfloat16)
    weight = [t if t is None else t.cuda() for t in cases.weight_of(384, 384, 4, 128)]
    operands = (*weight, None, 384, 4, 128, 8)

    def part():
        q, scale = taut.quantize_per_token(x)
        linear = OPS["lowbit_linear"].overload(
            q, scale, *operands, "gelu", None, 0.0, torch.bfloat16
        )
        return OPS["lowbit_linear_layer_norm"].overload(
            linear, None, *operands, x, None, None, 1e-5, True
        )

    return x, part


def test_cuda_graph():
    x, part = encoder_part()
    part()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = part()
    x.normal_()
    graph.replay()
    assert all(map(torch.equal, outputs, part()))


def test_nothing_waits_for_the_device():
    _, part = encoder_part()
    part()
    torch.cuda.set_sync_debug_mode("error")
    try:
        part()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_refuses_bad_arguments():
    x, x_scale = (t.cuda() for t in cases.integers(5, 96))
    packed, scale, *_ = (t if t is None else t.cuda() for t in cases.weight_of(70, 96, 4))
    good = (x, x_scale, packed, scale, None, None, None, 70, 4, 0, 8)
    rest = ("none", None, 0.0, torch.float32)
    for place, value, message in (
        (1, None, "x_scale must be given with x of int8"),
        (1, x_scale[:4], "x_scale must have shape"),
        (2, packed[:1], "packed must be pack_lowbit"),
        (3, scale.cpu(), "scale must be on cuda"),
        (7, 200, "packed must be pack_lowbit"),
        (9, 48, "group_size must be one of"),
    ):
        args = [*good, *rest]
        args[place] = value
        with pytest.raises(RuntimeError, match=f"lowbit_linear: {message}"):
            OPS["lowbit_linear"].overload(*args)
