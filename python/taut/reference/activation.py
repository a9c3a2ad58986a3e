"""What the activation ops mean. Computed in fp32 (fp64 for fp64 input), rounded once at the end."""

import math

import torch
from torch.nn import functional

from taut.reference._check import (
    REFERENCE_FLOATS,
    check_choice,
    check_optional_tensor,
    check_tensor,
)

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh")


def _check_activation(op, x, bias, activation):
    check_tensor(op, "x", x, (None, None), "(total_tokens, columns)", REFERENCE_FLOATS)
    columns = tuple(x.shape[1:])
    check_optional_tensor(op, "bias", bias, columns, f"{columns}, one per column of x", (x.dtype,))
    check_choice(op, "activation", activation, ACTIVATIONS)


def check_bias_activation(x, bias, activation):
    _check_activation("bias_activation", x, bias, activation)


def check_bias_glu(x, bias, activation):
    _check_activation("bias_glu", x, bias, activation)
    if x.shape[1] % 2:
        shape = tuple(x.shape)
        raise ValueError(f"bias_glu: x must have an even number of columns, got {shape}")


def activate(x, activation):
    """The activation itself, at the dtype of x."""
    if activation == "none":
        return x
    if activation == "gelu":
        return functional.gelu(x)
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    return {"relu": functional.relu, "silu": functional.silu, "tanh": torch.tanh}[activation](x)


def activation_derivative(x, activation):
    if activation == "none":
        return torch.ones_like(x)
    if activation == "relu":
        return (x > 0).to(x.dtype)
    if activation == "gelu":
        cdf = 0.5 * torch.erfc(-x / math.sqrt(2))
        return cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    if activation == "gelu_tanh":  # x * sigmoid(2u)
        twice_u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        s = torch.sigmoid(twice_u)
        return s + x * s * (1 - s) * slope
    if activation == "silu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    return 1 - torch.tanh(x).square()


def _wide_sum(x, bias):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide if bias is None else wide + bias


def _bias_gradient(dx, bias):
    """The column sums; zeros where no bias was given, since nobody asks for them."""
    return dx.new_zeros(dx.shape[1]) if bias is None else dx.sum(0)


def bias_activation(x, bias, activation):
    return activate(_wide_sum(x, bias), activation).to(x.dtype)


def bias_activation_backward(grad_out, x, bias, activation):
    dx = grad_out * activation_derivative(_wide_sum(x, bias), activation)
    return dx.to(x.dtype), _bias_gradient(dx, bias).to(x.dtype)


def bias_glu(x, bias, activation):
    inner, gate = _wide_sum(x, bias).chunk(2, 1)
    return (activate(inner, activation) * gate).to(x.dtype)


def bias_glu_backward(grad_out, x, bias, activation):
    inner, gate = _wide_sum(x, bias).chunk(2, 1)
    dinner = grad_out * gate * activation_derivative(inner, activation)
    dgate = grad_out * activate(inner, activation)
    dx = torch.cat((dinner, dgate), 1)
    return dx.to(x.dtype), _bias_gradient(dx, bias).to(x.dtype)
