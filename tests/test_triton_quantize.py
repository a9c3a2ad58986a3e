"""The Triton kernels of quantize against their reference: on the GPU, or in the interpreter."""

import pytest
import torch

from helpers import adversarial_rows, assert_same, strided_rows
from triton_helpers import DEVICE, DTYPES, assert_agrees, guarded_memory, launch, reference

# Squares of the largest numbers overflow; infinities cancel in a butterfly.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def assert_bits_agree(op, *args):
    with guarded_memory():
        got = launch(op, *args)
    assert_same(got, reference(op, *args))


@pytest.mark.parametrize("grid", ("absmax", "full_range"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 33, 256))
def test_bits_are_those_of_the_reference(grid, dtype, columns):
    x = torch.cat((3 * torch.randn(5, columns), adversarial_rows(columns))).to(dtype)
    if dtype == torch.bfloat16:  # the interpreter reads its denormals wrongly
        x[x.abs() < torch.finfo(dtype).tiny] = 0
    scale, shift = torch.rand(columns) + 0.5, torch.randn(columns)
    for bits, group_size in ((8, 0), (4, 32), (2, 5), (3, 100)):
        assert_bits_agree("quantize_per_token", x, None, None, bits, grid, False, group_size)
    assert_bits_agree("quantize_per_token", x, scale, None, 8, grid, False, 0)
    assert_bits_agree("quantize_per_token", x, None, shift, 8, grid, False, 32)
    if columns == 256:
        for group_size in (0, 64, 128, 200):
            args = x, scale, shift, 4, grid, True, group_size
            assert_bits_agree("quantize_per_token", *args)


@pytest.mark.parametrize("bits", (2, 8))
@pytest.mark.parametrize("hadamard", (False, True))
def test_midrise(bits, hadamard):
    x = torch.cat((3 * torch.randn(5, 256), adversarial_rows(256)))
    for group_size in (0, 100):
        args = x, None, None, bits, "midrise", hadamard, group_size
        with guarded_memory():
            q, scale = launch("quantize_per_token", *args)
        want_q, want_scale = reference("quantize_per_token", *args)
        torch.testing.assert_close(scale, want_scale, rtol=2e-6, atol=0, equal_nan=True)
        assert (q - want_q).abs().max() <= 1
        assert (q != want_q).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_affine", (False, True))
def test_layer_norm_quantize(dtype, own_affine):
    x, residual = (2 * torch.randn(2, 40, 65) + 1).to(dtype)
    bias, weight, norm_bias, quant_weight = torch.randn(4, 65).to(dtype)
    norm = x, residual, bias, weight, norm_bias
    args = (*norm, quant_weight if own_affine else None, None, 1e-5, 8)
    with guarded_memory():
        out, q, scale = launch("layer_norm_quantize", *args)
    assert_agrees("layer_norm", *norm, 1e-5, False)
    # Equal but for what a compiler fuses: the kernel that quantizes fuses nothing.
    slack = {} if DEVICE == "cuda" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(out, launch("layer_norm", *norm, 1e-5, False)[0], **slack)
    _, want_q, want_scale = reference("layer_norm_quantize", *args)
    torch.testing.assert_close(scale, want_scale, rtol=1e-5, atol=0)
    assert (q - want_q).abs().max() <= 1
    if dtype == torch.float32 and not own_affine:  # out is what was quantized
        assert_same((q, scale), reference("quantize_per_token", out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((16, 24), (1, 1), (5, 70), (67, 3)))
def test_kronecker(dtype, shape):
    a, b = shape
    x, left, right = torch.randn(3, a * b), torch.randn(a, a), torch.randn(b, b)
    assert_agrees("kronecker", x.to(dtype), left.to(dtype), right.to(dtype))


def test_layouts_and_no_rows():
    x, eye = torch.randn(9, 128), torch.eye(8)
    for op, rest in (
        ("quantize_per_token", (None, None, 8, "absmax", True, 64)),
        ("layer_norm_quantize", (None, *(None,) * 5, 1e-5, 8)),
        ("kronecker", (eye, torch.eye(16))),
    ):
        for layout in (strided_rows(x), x.t().contiguous().t()):
            assert_same(launch(op, layout, *rest), launch(op, x, *rest))
        assert_same(launch(op, x[:0], *rest), reference(op, x[:0], *rest))
