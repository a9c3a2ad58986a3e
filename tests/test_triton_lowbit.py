"""The Triton kernels of lowbit_gemm against their reference: on the GPU, or in the interpreter."""

import pytest
import torch

from helpers import assert_same
from lowbit_cases import GROUPED, integers, weight_of
from taut.formats import BITS
from triton_helpers import DTYPES, assert_agrees, guarded_memory, launch, reference

# A sigmoid far below zero is 1 / inf.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_point", (None, "whole", "half"))
@pytest.mark.parametrize("shape", ((1, 1, 1), (65, 70, 33), (3, 65, 130)))
def test_bits_of_integer_products(bits, zero_point, shape):
    """One group: nothing is rounded before the scale, so the backends give the same bits."""
    rows, channels, features = shape
    x, x_scale = integers(rows, features)
    packed, scale, zeros, _ = weight_of(channels, features, bits, 0, zero_point)
    for x_zero_point in (0.0, -0.5):
        args = (
            x, x_scale, packed, scale, zeros, None, None, channels, bits, 0, 8,
            "none", None, x_zero_point, torch.float32,
        )  # fmt: skip
        with guarded_memory():
            got = launch("lowbit_linear", *args)
        assert_same(got, reference("lowbit_linear", *args))


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
def test_groups_of_integer_products(bits, group_size):
    groups = -(-300 // group_size)
    packed, *weight = weight_of(70, 300, bits, group_size, "half")
    residual, bias = torch.randn(5, 70), torch.randn(70)
    for x_groups in (1, groups):
        assert_agrees(
            "lowbit_linear", *integers(5, 300, x_groups), packed, *weight, bias, 70, bits,
            group_size, 8, "none", residual, -0.5, torch.float32,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ("relu", "gelu", "gelu_tanh", "silu", "tanh"))
def test_epilogues(dtype, epilogue):
    packed, scale, *rest = weight_of(70, 96, 4)
    weight = packed, scale / 300, *rest
    x, x_scale = integers(5, 96)
    residual, bias = torch.randn(5, 70).to(dtype), torch.randn(70).to(dtype)
    operands = (*weight, bias, 70, 4, 0)
    assert_agrees("lowbit_linear", x, x_scale / 50, *operands, 8, epilogue, residual, 0.0, dtype)


@pytest.mark.parametrize("x_bits", (4, 8))
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantizing_inside_is_quantizing_before(x_bits, dtype):
    operands = (*weight_of(70, 96, 3), None, 70, 3, 0, x_bits, "none", None, 0.0)
    x = torch.randn(5, 96).to(dtype)
    q, scale = launch("quantize_per_token", x, None, None, x_bits, "absmax", False, 0)
    inside = launch("lowbit_linear", x, None, *operands, None)
    assert_same(inside, launch("lowbit_linear", q, scale, *operands, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
def test_floating_point_activations(dtype, bits, group_size):
    x = torch.randn(5, 200).to(dtype)
    for zero_point, codebook in ((None, None), ("whole", None), (None, "one"), (None, "channel")):
        size = 0 if codebook == "channel" else group_size
        weight = weight_of(70, 200, bits, size, zero_point, codebook)
        operands = (*weight, None, 70, bits, size, 0)
        assert_agrees(
            "lowbit_linear", x, None, *operands, "none", None, 0.0, None,
            plain=(x @ _values(*weight, bits, size, 200).to(dtype).T,),
        )  # fmt: skip


def _values(packed, scale, zero_point, codebook, bits, group_size, features):
    identity = torch.eye(features)
    channels = scale.shape[0]
    weight = packed, scale, zero_point, codebook, None, channels, bits, group_size, 0
    return reference("lowbit_linear", identity, None, *weight)[0].T


@pytest.mark.parametrize("out_group_size", (0, 32, 64, 128, 256))
@pytest.mark.parametrize("out_bits", (4, 8))
def test_requantizing(out_group_size, out_bits):
    """relu rounds nothing: the same bits as the result in fp32, quantized."""
    x, x_scale = integers(40, 70)
    operands = (*weight_of(200, 70, 4, 0, "whole"), torch.randn(200), 200, 4, 0, 8, "relu")
    args = (x, x_scale, *operands, out_bits, out_group_size)
    with guarded_memory():
        got = launch("lowbit_linear_quantize", *args)
    assert_same(got, reference("lowbit_linear_quantize", *args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype):
    packed, scale, *rest = weight_of(70, 96, 4, 0, "whole")
    x, x_scale = integers(5, 96)
    residual = torch.randn(5, 70).to(dtype)
    weight, norm_bias, bias = torch.randn(3, 70).to(dtype)
    operands = (packed, scale / 300, *rest, bias, 70, 4, 0, 8)
    args = (x, x_scale, *operands, residual, weight, norm_bias, 1e-5)
    assert_agrees("lowbit_linear_layer_norm", *args, False)
    with guarded_memory():
        out, q, q_scale = launch("lowbit_linear_layer_norm", *args, True)
    want, want_q, want_scale = reference("lowbit_linear_layer_norm", *args, True)
    torch.testing.assert_close(q_scale, want_scale, rtol=1e-5, atol=0)
    assert (q - want_q).abs().max() <= 1 and (q != want_q).float().mean() < 0.01
    torch.testing.assert_close(out, want, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_rows_do_not_depend_on_others():
    packed, *weight = weight_of(70, 130, 4, 64)
    operands = (None, packed, *weight, None, 70, 4, 64)
    for x_bits in (0, 8):
        x = torch.randn(70, 130)
        x[5, 7] = float("nan")
        rest = x_bits, "gelu", None, 0.0, None
        batch = launch("lowbit_linear", x, *operands, *rest)[0]
        assert torch.equal(batch[66:67], launch("lowbit_linear", x[66:67], *operands, *rest)[0])
        assert batch[5].isnan().all() and batch[:5].isfinite().all() and batch[6:].isfinite().all()


def test_layouts_and_no_rows():
    packed, *weight = weight_of(70, 40, 2)
    operands = (packed, *weight, None, 70, 2, 0, 8, "none", None, 0.0, torch.float32)
    x, x_scale = integers(9, 40)
    want = launch("lowbit_linear", x, x_scale, *operands)
    shifted = torch.zeros(packed.numel() + 1, dtype=torch.uint8)[1:].view_as(packed)
    shifted.copy_(packed)
    for layout in (x.t().contiguous().t(), torch.cat((x, x), 1)[:, :40]):
        assert_same(launch("lowbit_linear", layout, x_scale, shifted, *operands[1:]), want)
    assert launch("lowbit_linear", x[:0], x_scale[:0], *operands)[0].shape == (0, 70)
    args = (x[:0], x_scale[:0], *operands[:9])
    for op, rest in (
        ("lowbit_linear_quantize", ("none", 8, 64)),
        ("lowbit_linear_quantize", ("none", 8, 0)),
        ("lowbit_linear_layer_norm", (torch.zeros(0, 70), None, None, 1e-5, True)),
    ):
        assert_same(launch(op, *args, *rest), reference(op, *args, *rest))
