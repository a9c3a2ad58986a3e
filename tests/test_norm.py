"""layer_norm and rms_norm against their reference, on every instruction set."""

import pytest
import torch

import taut
from helpers import (
    assert_close_by_comparison,
    far_rows,
    gradients_of,
    misaligned,
    on_one_thread,
    strided_rows,
)
from taut._native import last_variant
from taut.reference import norm as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS = (1, 7, 8, 16, 31, 384, 387)
EPS = 1e-5


def inputs(rows, columns, dtype):
    """x, residual, bias, weight, norm_bias"""
    x, residual = 3 * torch.randn(rows, columns) + 1, torch.randn(rows, columns)
    return [t.to(dtype) for t in (x, residual, *torch.randn(3, columns))]


def layer_norm(x, residual, bias, weight, norm_bias):
    return taut.layer_norm(
        x, weight, norm_bias, residual=residual, bias=bias, eps=EPS, return_sum=True
    )


def rms_norm(x, residual, bias, weight):
    return taut.rms_norm(x, weight, residual=residual, bias=bias, eps=EPS, return_sum=True)


def plain_layer_norm(x, residual, bias, weight, norm_bias):
    total = x + bias + residual
    return torch.nn.functional.layer_norm(total, x.shape[1:], weight, norm_bias, EPS), total


def plain_rms_norm(x, residual, bias, weight):
    total = x + bias + residual
    return torch.nn.functional.rms_norm(total, x.shape[1:], weight, EPS), total


def exact_layer_norm(x, residual, bias, weight, norm_bias):
    return reference.layer_norm(x, residual, bias, weight, norm_bias, EPS, True)[:2]


def exact_rms_norm(x, residual, bias, weight):
    return reference.rms_norm(x, residual, bias, weight, EPS, True)[:2]


NORMS = {
    "layer_norm": (layer_norm, plain_layer_norm, exact_layer_norm, 5),
    "rms_norm": (rms_norm, plain_rms_norm, exact_rms_norm, 4),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("name", NORMS)
def test_forward(isa, name, dtype, columns):
    kernel, plain, exact, count = NORMS[name]
    args = inputs(37, columns, dtype)[:count]
    got, by_torch = kernel(*args), plain(*args)
    assert last_variant(name) == isa
    for actual, rough, true in zip(got, by_torch, exact(*(t.double() for t in args)), strict=True):
        assert_close_by_comparison(actual, rough, true)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (7, 16, 387))
@pytest.mark.parametrize("name", NORMS)
def test_gradients(isa, name, dtype, columns):
    kernel, plain, exact, count = NORMS[name]
    args = inputs(131, columns, dtype)[:count]
    grads = torch.randn(2, 131, columns).to(dtype).unbind()
    got, by_torch = gradients_of(kernel, args, grads), gradients_of(plain, args, grads)
    assert last_variant(f"{name}_backward") == isa
    wide = [t.double() for t in args]
    true = gradients_of(exact, wide, [g.double() for g in grads])
    for actual, rough, exact_gradient in zip(got, by_torch, true, strict=True):
        # Sums over 131 rows, in another order than torch's.
        assert_close_by_comparison(actual, rough, exact_gradient, slack=16)


@pytest.mark.parametrize("name", NORMS)
def test_reference_gradients_are_those_of_the_reference(name):
    exact, count = NORMS[name][2:]
    args = [t.double() for t in inputs(5, 6, torch.float64)[:count]]
    grads = torch.randn(2, 5, 6, dtype=torch.float64).unbind()
    want = gradients_of(exact, args, grads)
    moments = getattr(reference, name)(*args, EPS, True)[2:]
    got = getattr(reference, f"{name}_backward")(*grads, *args[:4], *moments)
    torch.testing.assert_close(got[0], want[0])
    for actual, expected in zip(got[1:], want[2:], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", NORMS)
def test_nothing_depends_on_other_rows_or_threads(isa, name):
    kernel, count = NORMS[name][0], NORMS[name][3]
    args = inputs(200, 387, torch.bfloat16)[:count]
    out, total = kernel(*args)
    alone, _ = kernel(args[0][70:71], args[1][70:71], *args[2:])
    assert torch.equal(out[70:71], alone)
    poisoned = args[0].clone()
    poisoned[69] = float("nan")
    clean, _ = kernel(poisoned, *args[1:])
    assert clean[69].isnan().all()
    assert torch.equal(clean[70:], out[70:]) and torch.equal(clean[:69], out[:69])
    grads = (torch.randn_like(out), torch.randn_like(out))
    for many, one in zip(
        gradients_of(kernel, args, grads),
        on_one_thread(gradients_of, kernel, args, grads),
        strict=True,
    ):
        assert torch.equal(many, one)


@pytest.mark.parametrize("name", NORMS)
def test_absent_arguments_and_broadcast_gradients(isa, name):
    """The gradient of sum() is expanded, not contiguous; nothing but x takes part."""
    x = torch.randn(5, 19, requires_grad=True)
    getattr(taut, name)(x, eps=EPS).sum().backward()
    y = x.detach().double().requires_grad_()
    none = [None] * (NORMS[name][3] - 1)
    NORMS[name][2](y, *none)[0].sum().backward()
    torch.testing.assert_close(x.grad, y.grad.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_empty_batch(isa, name):
    kernel, count = NORMS[name][0], NORMS[name][3]
    args = inputs(0, 19, torch.float32)[:count]
    out, total = kernel(*args)
    assert out.shape == total.shape == (0, 19)
    gradients = gradients_of(kernel, args, (out, total))
    assert gradients[0].shape == (0, 19)
    assert all(torch.equal(g, torch.zeros(19)) for g in gradients[2:])


@pytest.mark.parametrize("name", NORMS)
def test_torch_library_and_compile(isa, name):
    kernel, count = NORMS[name][0], NORMS[name][3]
    args = [t.requires_grad_() for t in inputs(6, 19, torch.float32)[:count]]
    torch.library.opcheck(getattr(torch.ops.taut, name).default, (*args, EPS, True))
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args)[0], kernel(*args)[0])


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
def test_layer_norm_layouts(isa, change):
    x, residual, bias, weight, norm_bias = inputs(9, 35, torch.bfloat16)
    want = layer_norm(x, residual, bias, weight, norm_bias)
    got = layer_norm(change(x), change(residual), *map(misaligned, (bias, weight, norm_bias)))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    moments = torch.ops.taut.layer_norm(x, residual, bias, weight, None, EPS, False)[2:]
    backward = torch.ops.taut.layer_norm_backward
    want = backward(x, residual, x, residual, bias, weight, *moments)
    got = backward(*map(change, (x, residual, x, residual)), bias, weight, *moments)
    assert all(map(torch.equal, got, want))


def test_refuses_bad_arguments():
    x, residual = inputs(3, 4, torch.float32)[:2]
    with pytest.raises(ValueError, match=r"layer_norm: weight must be \(4,\).*got \(5,\)"):
        taut.layer_norm(x, torch.ones(5))
    with pytest.raises(ValueError, match=r"layer_norm: residual must be \(3, 4\).*got \(2, 4\)"):
        taut.layer_norm(x, residual=residual[:2])
    with pytest.raises(TypeError, match="layer_norm: x must be a torch.Tensor, got list"):
        taut.layer_norm([1.0])
    with pytest.raises(RuntimeError, match=r"layer_norm: weight must have shape \(4,\)"):
        torch.ops.taut.layer_norm(x, None, None, torch.ones(5), None, 1e-5, False)
    with pytest.raises(ValueError, match="layer_norm: bias must be float32, got bfloat16"):
        taut.layer_norm(x, bias=torch.ones(4).bfloat16())
    with pytest.raises(ValueError, match="rms_norm: x must be float32, bfloat16.* got float64"):
        taut.rms_norm(x.double())
    with pytest.raises(ValueError, match="rms_norm: x must have contiguous rows"):
        taut.rms_norm(torch.randn(4, 4).t())
    with pytest.raises(RuntimeError, match=r"rms_norm_backward: rstd must have shape \(3,\)"):
        torch.ops.taut.rms_norm_backward(x, None, x, None, None, None, torch.ones(2))
