"""Bias + residual + LayerNorm or RMSNorm in one pass."""

import torch

from taut import registry
from taut.ops._call import call

_LAYER_NORM = registry.OPS["layer_norm"]
_RMS_NORM = registry.OPS["rms_norm"]


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    return_sum: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm over the last dimension of `x + bias + residual`, in one pass.

    Args:
        x: (total_tokens, columns); fp32, bf16 or fp16. Rows may be strided.
        weight, norm_bias: (columns,), dtype of x; scale and shift after normalisation.
        residual: (total_tokens, columns), dtype of x.
        bias: (columns,), dtype of x; the bias of the linear layer that made x.
        eps: added to the variance.
        return_sum: also return `x + bias + residual` (pre-norm encoders carry it on).

    Returns:
        out (total_tokens, columns) in the dtype of x, or (out, sum).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Ba et al., "Layer Normalization", 2016.
    """
    out, total, _, _ = call(_LAYER_NORM, x, residual, bias, weight, norm_bias, eps, return_sum)
    return (out, total) if return_sum else out


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    return_sum: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm over the last dimension of `x + bias + residual`, in one pass.

    Args:
        x: (total_tokens, columns); fp32, bf16 or fp16. Rows may be strided.
        weight: (columns,), dtype of x; scale after normalisation.
        residual: (total_tokens, columns), dtype of x.
        bias: (columns,), dtype of x; the bias of the linear layer that made x.
        eps: added to the mean square.
        return_sum: also return `x + bias + residual` (pre-norm encoders carry it on).

    Returns:
        out (total_tokens, columns) in the dtype of x, or (out, sum).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    out, total, _ = call(_RMS_NORM, x, residual, bias, weight, eps, return_sum)
    return (out, total) if return_sum else out


def _setup_layer_norm(ctx, inputs, output):
    x, residual, bias, weight, norm_bias, _eps, ctx.return_sum = inputs
    ctx.has_norm_bias = norm_bias is not None
    ctx.save_for_backward(x, residual, bias, weight, output[2], output[3])
    ctx.mark_non_differentiable(output[2], output[3])


def _setup_rms_norm(ctx, inputs, output):
    x, residual, bias, weight, _eps, ctx.return_sum = inputs
    ctx.save_for_backward(x, residual, bias, weight, output[2])
    ctx.mark_non_differentiable(output[2])


def _layer_norm_gradient(ctx, grad_out, grad_sum, _grad_mean, _grad_rstd):
    x, residual, bias, weight, mean, rstd = ctx.saved_tensors
    dx, dbias, dweight, dnorm_bias = torch.ops.taut.layer_norm_backward(
        grad_out.contiguous(),
        grad_sum.contiguous() if ctx.return_sum else None,
        x, residual, bias, weight, mean, rstd,
    )  # fmt: skip
    return (
        dx,
        None if residual is None else dx,
        None if bias is None else dbias,
        None if weight is None else dweight,
        dnorm_bias if ctx.has_norm_bias else None,
        None,
        None,
    )


def _rms_norm_gradient(ctx, grad_out, grad_sum, _grad_rstd):
    x, residual, bias, weight, rstd = ctx.saved_tensors
    dx, dbias, dweight = torch.ops.taut.rms_norm_backward(
        grad_out.contiguous(),
        grad_sum.contiguous() if ctx.return_sum else None,
        x, residual, bias, weight, rstd,
    )  # fmt: skip
    return (
        dx,
        None if residual is None else dx,
        None if bias is None else dbias,
        None if weight is None else dweight,
        None,
        None,
    )


registry.register_autograd("layer_norm", _layer_norm_gradient, _setup_layer_norm)
registry.register_autograd("rms_norm", _rms_norm_gradient, _setup_rms_norm)
