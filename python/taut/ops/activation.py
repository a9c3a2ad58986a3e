"""Bias + activation and bias + gated linear unit in one pass."""

import torch

from taut import registry
from taut.ops._call import call

_BIAS_ACTIVATION = registry.OPS["bias_activation"]
_BIAS_GLU = registry.OPS["bias_glu"]


def bias_activation(
    x: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "gelu"
) -> torch.Tensor:
    """activation(x + bias), in one pass.

    Args:
        x: (total_tokens, columns); fp32, bf16 or fp16. Rows may be strided.
        bias: (columns,), dtype of x.
        activation: none, relu, gelu (the erf form), gelu_tanh, silu or tanh.

    Returns:
        (total_tokens, columns) in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    return call(_BIAS_ACTIVATION, x, bias, activation)


def bias_glu(
    x: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "gelu"
) -> torch.Tensor:
    """Gated linear unit: activation(left + its bias) * (right + its bias), in one pass.

    With "gelu" this is GeGLU (as in ModernBERT), with "silu" SwiGLU.

    Args:
        x: (total_tokens, 2 * columns); fp32, bf16 or fp16; the left half of the columns is
            activated, the right half is the gate. Rows may be strided.
        bias: (2 * columns,), dtype of x.
        activation: none, relu, gelu (the erf form), gelu_tanh, silu or tanh.

    Returns:
        (total_tokens, columns) in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, section 2.
    """
    return call(_BIAS_GLU, x, bias, activation)


def _setup(ctx, inputs, output):
    x, bias, ctx.activation = inputs
    ctx.save_for_backward(x, bias)


def _bias_activation_gradient(ctx, grad_out):
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.taut.bias_activation_backward(
        grad_out.contiguous(), x, bias, ctx.activation
    )
    return dx, None if bias is None else dbias, None


def _bias_glu_gradient(ctx, grad_out):
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.taut.bias_glu_backward(grad_out.contiguous(), x, bias, ctx.activation)
    return dx, None if bias is None else dbias, None


registry.register_autograd("bias_activation", _bias_activation_gradient, _setup)
registry.register_autograd("bias_glu", _bias_glu_gradient, _setup)
