"""layer_norm and rms_norm against their reference, on every instruction set."""

import pytest
import torch

import taut
from helpers import assert_close_by_comparison, misaligned, strided_rows
from taut._native import last_variant
from taut.reference import norm as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS = (1, 7, 8, 16, 31, 384, 387)


def inputs(rows, columns, dtype):
    x, residual = (3 * torch.randn(rows, columns) + 1).to(dtype), torch.randn(rows, columns)
    bias, weight, norm_bias = torch.randn(3, columns)
    return x, residual.to(dtype), bias.to(dtype), weight.to(dtype), norm_bias.to(dtype)


def plain_layer_norm(x, residual, bias, weight, norm_bias, eps):
    return torch.nn.functional.layer_norm(x + bias + residual, x.shape[1:], weight, norm_bias, eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_layer_norm_forward(isa, dtype, columns):
    x, residual, bias, weight, norm_bias = inputs(37, columns, dtype)
    out, total = taut.layer_norm(
        x, weight, norm_bias, residual=residual, bias=bias, eps=1e-5, return_sum=True
    )
    assert last_variant("layer_norm") == isa
    wide = [t.double() for t in (x, residual, bias, weight, norm_bias)]
    exact = reference.layer_norm(*wide, 1e-5, True)
    plain = plain_layer_norm(x, residual, bias, weight, norm_bias, 1e-5)
    assert_close_by_comparison(out, plain, exact[0])
    assert_close_by_comparison(total, x + bias + residual, exact[1])


@pytest.mark.parametrize("change", (misaligned, strided_rows))
def test_layer_norm_layouts(isa, change):
    x, residual, bias, weight, norm_bias = inputs(9, 35, torch.float32)
    want = taut.layer_norm(x, weight, norm_bias, residual=residual, bias=bias)
    got = taut.layer_norm(change(x), weight, norm_bias, residual=change(residual), bias=bias)
    assert torch.equal(got, want)


def test_layer_norm_refuses_bad_arguments():
    x, residual, bias, weight, norm_bias = inputs(3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"layer_norm: weight must be \(4,\).*got \(5,\)"):
        taut.layer_norm(x, torch.ones(5))
    with pytest.raises(ValueError, match=r"layer_norm: residual must be \(3, 4\).*got \(2, 4\)"):
        taut.layer_norm(x, residual=residual[:2])
    with pytest.raises(TypeError, match="layer_norm: x must be a torch.Tensor, got list"):
        taut.layer_norm([1.0])
    with pytest.raises(RuntimeError, match=r"layer_norm: weight must have shape \(4,\)"):
        torch.ops.taut.layer_norm(x, None, None, torch.ones(5), None, 1e-5, False)
