"""What the norm ops mean. Computed in fp32 (fp64 for fp64 input), rounded once at the end."""

import torch

from taut.reference._check import REFERENCE_FLOATS, check_optional_tensor, check_tensor


def _check_norm(op, x, residual, bias, weight, norm_bias):
    check_tensor(op, "x", x, (None, None), "(total_tokens, columns)", REFERENCE_FLOATS)
    like = (x.dtype,)
    shape = tuple(x.shape)
    check_optional_tensor(op, "residual", residual, shape, f"{shape} like x", like)
    columns = shape[1:]
    for name, value in (("bias", bias), ("weight", weight), ("norm_bias", norm_bias)):
        check_optional_tensor(op, name, value, columns, f"{columns}, one per column of x", like)


def check_layer_norm(x, residual, bias, weight, norm_bias, eps, return_sum):
    _check_norm("layer_norm", x, residual, bias, weight, norm_bias)


def check_rms_norm(x, residual, bias, weight, eps, return_sum):
    _check_norm("rms_norm", x, residual, bias, weight, None)


def _wide(t):
    return None if t is None else t.to(torch.promote_types(t.dtype, torch.float32))


def _sum(x, residual, bias):
    total = _wide(x)
    if bias is not None:
        total = total + _wide(bias)
    if residual is not None:
        total = total + _wide(residual)
    return total


def _column_sum(gradient, parameter):
    """The parameter's gradient; zeros where none was given, since nobody asks for it."""
    return gradient.new_zeros(gradient.shape[1]) if parameter is None else gradient.sum(0)


def layer_norm(x, residual, bias, weight, norm_bias, eps, return_sum):
    total = _sum(x, residual, bias)
    mean = total.mean(1)
    centred = total - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    out = centred * rstd[:, None]
    if weight is not None:
        out = out * _wide(weight)
    if norm_bias is not None:
        out = out + _wide(norm_bias)
    kept = total.to(x.dtype) if return_sum else x.new_empty((0,))
    return out.to(x.dtype), kept, mean, rstd


def layer_norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd):
    normalized = (_sum(x, residual, bias) - mean[:, None]) * rstd[:, None]
    grad = _wide(grad_out)
    dnorm = grad if weight is None else grad * _wide(weight)
    dx = rstd[:, None] * (
        dnorm
        - dnorm.mean(1, keepdim=True)
        - normalized * (dnorm * normalized).mean(1, keepdim=True)
    )
    if grad_sum is not None:
        dx = dx + _wide(grad_sum)
    dbias, dweight = _column_sum(dx, bias), _column_sum(grad * normalized, weight)
    return dx.to(x.dtype), dbias.to(x.dtype), dweight.to(x.dtype), grad.sum(0).to(x.dtype)


def rms_norm(x, residual, bias, weight, eps, return_sum):
    total = _sum(x, residual, bias)
    rstd = (total.square().mean(1) + eps).rsqrt()
    out = total * rstd[:, None]
    if weight is not None:
        out = out * _wide(weight)
    kept = total.to(x.dtype) if return_sum else x.new_empty((0,))
    return out.to(x.dtype), kept, rstd


def rms_norm_backward(grad_out, grad_sum, x, residual, bias, weight, rstd):
    normalized = _sum(x, residual, bias) * rstd[:, None]
    grad = _wide(grad_out)
    dnorm = grad if weight is None else grad * _wide(weight)
    dx = rstd[:, None] * (dnorm - normalized * (dnorm * normalized).mean(1, keepdim=True))
    if grad_sum is not None:
        dx = dx + _wide(grad_sum)
    dbias, dweight = _column_sum(dx, bias), _column_sum(grad * normalized, weight)
    return dx.to(x.dtype), dbias.to(x.dtype), dweight.to(x.dtype)
