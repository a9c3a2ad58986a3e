"""bias_activation and bias_glu against their reference, on every instruction set."""

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
from taut.reference import activation as reference
from taut.reference.activation import ACTIVATIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("bias_activation", "bias_glu")


def inputs(rows, columns, dtype):
    """x and bias, with large values, zeros and both signs."""
    x = 4 * torch.randn(rows, columns)
    x[:, ::7] *= 8
    x[::5, ::3] = 0
    bias = torch.randn(columns)
    bias[::2] = 0
    return [x.to(dtype), bias.to(dtype)]


def plain(name, activation):
    """The same maths in plain torch, rounded to the dtype at every step."""

    def bias_activation(x, bias):
        return reference.activate(x + bias, activation)

    def bias_glu(x, bias):
        inner, gate = (x + bias).chunk(2, 1)
        return reference.activate(inner, activation) * gate

    return bias_activation if name == "bias_activation" else bias_glu


def kernel(name, activation):
    return lambda x, bias: getattr(taut, name)(x, bias, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (2, 14, 32, 386))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OPS)
def test_forward(isa, name, activation, columns, dtype):
    args = inputs(37, columns, dtype)
    out = kernel(name, activation)(*args)
    assert last_variant(name) == isa
    exact = getattr(reference, name)(*(t.double() for t in args), activation)
    assert_close_by_comparison(out, plain(name, activation)(*args), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OPS)
def test_gradients(isa, name, activation, dtype):
    args = inputs(131, 38, dtype)
    out = plain(name, activation)(*args)
    grad = torch.randn_like(out)
    got = gradients_of(kernel(name, activation), args, grad)
    assert last_variant(f"{name}_backward") == isa
    by_torch = gradients_of(plain(name, activation), args, grad)
    wide = [t.double() for t in args]
    exact = gradients_of(plain(name, activation), wide, grad.double())
    for actual, rough, true in zip(got, by_torch, exact, strict=True):
        assert_close_by_comparison(actual, rough, true, slack=8.0)  # 1 in 1000 had 5 ulp, of tanh


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OPS)
def test_reference_gradients_are_those_of_the_reference(name, activation):
    args = [t.double() for t in inputs(5, 6, torch.float64)]
    out = getattr(reference, name)(*args, activation)
    want = gradients_of(lambda x, b: getattr(reference, name)(x, b, activation), args, out)
    got = getattr(reference, f"{name}_backward")(out, *args, activation)
    for actual, expected in zip(got, want, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values(isa, activation):
    """Far from 0 an activation is its limit, and so is its derivative; NaN stays NaN."""
    inf = float("inf")
    x = torch.tensor([[-inf, -3e38, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 3e38, inf]])
    wide = x.double().nan_to_num(posinf=1e39, neginf=-1e39)  # where no limit is inf - inf
    out = taut.bias_activation(x, None, activation)
    exact = reference.bias_activation(wide, None, activation).float()
    torch.testing.assert_close(out, exact, atol=1e-7, rtol=1e-6)
    ones = torch.ones_like(x)
    dx, dbias = torch.ops.taut.bias_activation_backward(ones, x, None, activation)
    exact = reference.activation_derivative(wide.clamp(-100, 100), activation).float()
    torch.testing.assert_close(dx, exact, atol=1e-7, rtol=1e-6)
    assert torch.equal(dbias, torch.zeros(11))
    nan = torch.full((1, 3), float("nan"))
    assert taut.bias_activation(nan, None, activation).isnan().all()


@pytest.mark.parametrize("name", OPS)
def test_nothing_depends_on_other_rows_or_threads(isa, name):
    args = inputs(300, 386, torch.bfloat16)
    function = kernel(name, "gelu")
    out = function(*args)
    assert torch.equal(out[70:71], function(args[0][70:71], args[1]))
    poisoned = args[0].clone()
    poisoned[69] = float("nan")
    clean = function(poisoned, args[1])
    assert clean[69].isnan().all()
    assert torch.equal(clean[70:], out[70:]) and torch.equal(clean[:69], out[:69])
    many = gradients_of(function, args, out)
    one = on_one_thread(gradients_of, function, args, out)
    assert all(map(torch.equal, many, one))


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
@pytest.mark.parametrize("name", OPS)
def test_layouts(isa, name, change):
    x, bias = inputs(9, 36, torch.bfloat16)
    want = getattr(taut, name)(x, bias)
    assert torch.equal(getattr(taut, name)(change(x), misaligned(bias)), want)
    backward = getattr(torch.ops.taut, f"{name}_backward")
    for got, expected in zip(
        backward(change(want), change(x), bias, "gelu"),
        backward(want, x, bias, "gelu"),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_empty_batch_and_absent_bias(isa, name):
    out = getattr(taut, name)(torch.empty(0, 8))
    assert out.shape == (0, 4 if name == "bias_glu" else 8)
    gradients = gradients_of(kernel(name, "silu"), inputs(0, 8, torch.float32), out)
    assert gradients[0].shape == (0, 8) and torch.equal(gradients[1], torch.zeros(8))
    x = torch.randn(5, 8, requires_grad=True)
    getattr(taut, name)(x).sum().backward()  # an expanded gradient
    exact = getattr(reference, f"{name}_backward")(
        torch.ones(5, out.shape[1]).double(), x.detach().double(), None, "gelu"
    )[0]
    torch.testing.assert_close(x.grad.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_torch_library_and_compile(isa, name):
    args = [t.requires_grad_() for t in inputs(6, 18, torch.float32)]
    torch.library.opcheck(getattr(torch.ops.taut, name).default, (*args, "gelu"))
    compiled = torch.compile(getattr(taut, name), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), getattr(taut, name)(*args))


def test_refuses_bad_arguments():
    x, bias = inputs(3, 5, torch.float32)
    with pytest.raises(ValueError, match=r"activation: activation must be one of none.*'swish'"):
        taut.bias_activation(x, bias, "swish")
    with pytest.raises(ValueError, match=r"bias_activation: bias must be \(5,\).*got \(4,\)"):
        taut.bias_activation(x, bias[:4])
    with pytest.raises(ValueError, match=r"bias_glu: x must have an even.*got \(3, 5\)"):
        taut.bias_glu(x)
    with pytest.raises(TypeError, match="bias_glu: x must be a torch.Tensor, got int"):
        taut.bias_glu(3)
    with pytest.raises(ValueError, match="bias_activation: x must be float32.*got float64"):
        taut.bias_activation(x.double())
    with pytest.raises(RuntimeError, match=r"grad_out must have shape \(3, 2\), got \(3, 4\)"):
        torch.ops.taut.bias_glu_backward(x[:, :4], x[:, :4], None, "gelu")
