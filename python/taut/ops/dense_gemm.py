"""Linear layers over a packed weight, for inference; the bias, activation, residual and LayerNorm
that follow are done while the sums are in cache."""

import torch

from taut import registry
from taut.ops._call import call

_PACK = registry.OPS["pack_weight"]
_UNPACK = registry.OPS["unpack_weight"]
_LINEAR = registry.OPS["packed_linear"]
_LINEAR_LAYER_NORM = registry.OPS["packed_linear_layer_norm"]


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a linear layer in the order the CPU kernels read it.

    The layout is the same for every instruction set. Output channels are cut into panels of 64.
    With panel = n // 64 and channel = n % 64, element weight[n, k] is

        fp32, fp16  packed[panel, k, channel]             shape (ceil(out / 64), in, 64)
        bf16        packed[panel, k // 2, channel, k % 2]  shape (ceil(out / 64), ceil(in / 2), 64, 2)

    contiguous, with zeros for channels and k that the weight does not have. So 64 channels of one
    k or of a pair of k (bf16, the two side by side, even k first) lie in a row.

    Args:
        weight: (out_features, in_features), fp32, bf16 or fp16, any strides, as in torch.nn.Linear.

    Returns:
        packed, in the dtype of weight; its data is aligned to 64 bytes.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; also for a
            weight that requires grad while gradients are enabled.
    """
    return call(_PACK, weight)


def unpack_weight(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The exact inverse of `pack_weight`.

    Args:
        packed: what `pack_weight` gave for an (out_features, in_features) weight; fp32, bf16 or fp16.
        out_features, in_features: the shape of that weight.

    Returns:
        weight (out_features, in_features) in the dtype of packed.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_UNPACK, packed, out_features, in_features)


def packed_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
) -> torch.Tensor:
    """activation(x W^T + bias) over a weight packed by `pack_weight`; for inference.

    Sums are taken in fp32 over all of in_features in an order that depends on in_features only, so
    a row's result is bit-identical whatever other rows x holds. The result is rounded once.

    Args:
        x: (total_tokens, in_features), fp32, bf16 or fp16; rows may be strided.
        packed: `pack_weight` of the (out_features, in_features) weight, dtype of x.
        bias: (out_features,), dtype of x or fp32.
        out_features: rows of the weight (packed holds a multiple of 64).
        activation: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "tanh".

    Returns:
        out (total_tokens, out_features) in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; also for
            inputs that require grad while gradients are enabled.
    """
    if activation == "none":  # an argument less: see registry.py
        return call(_LINEAR, x, packed, bias, out_features)
    return call(_LINEAR, x, packed, bias, out_features, activation)


def packed_linear_layer_norm(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """LayerNorm(x W^T + bias + residual) over a weight packed by `pack_weight`; for inference.

    The sum stays in fp32 until it is normalised, and is bit-identical whatever other rows x holds.

    Args:
        x: (total_tokens, in_features), fp32, bf16 or fp16; rows may be strided.
        packed: `pack_weight` of the (out_features, in_features) weight, dtype of x.
        bias: (out_features,), dtype of x or fp32.
        residual: (total_tokens, out_features), dtype of x; rows may be strided.
        weight, norm_bias: (out_features,), dtype of x; scale and shift after normalisation.
        eps: added to the variance.

    Returns:
        out (total_tokens, out_features) in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; also for
            inputs that require grad while gradients are enabled.

    Source: Ba et al., "Layer Normalization", 2016.
    """
    return call(_LINEAR_LAYER_NORM, x, packed, bias, residual, weight, norm_bias, eps)
