"""Encoder layers in one call, for inference on the CPU."""

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from taut import registry
from taut.ops._call import call
from taut.prepared_layers import LayerParts as LayerParts
from taut.prepared_layers import PreparedLayer

_ENCODER_LAYERS = registry.OPS["encoder_layers"]
_is_grad_enabled = torch.is_grad_enabled


def encoder_layers(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    layers: Sequence[PreparedLayer],
    *,
    q: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    relative_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layers one behind the other, each of attention and feed-forward network with residual and
    LayerNorm behind it.

    To the bit what the ops that they are made of give one by one; it saves the time from Python to
    each of them, which is most of the time of a short text.

    Args:
        hidden: (total_tokens, hidden_size), fp32, fp16 or bf16.
        cu_seqlens: (batch + 1,) int32; sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
        layers: at least one; the same one may come several times.
        q, scale: hidden as `qkv` of the first layer takes it, int8 and fp32, or None.
        alibi_slopes, relative_bias: as in `taut.varlen_attention`.

    Returns:
        hidden states like hidden.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if _is_grad_enabled() or forward_ad._current_level >= 0:
        _refuse_derivatives(layers)
    numbers = [layer.number for layer in layers]
    return call(_ENCODER_LAYERS, hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, numbers)


def _refuse_derivatives(layers: Sequence[PreparedLayer]) -> None:
    """The dispatcher sees the layers' numbers only, and could not."""
    for i, layer in enumerate(layers):
        for name, tensor in layer.parts.tensors().items():
            place = f"{_ENCODER_LAYERS.name}: {name} of layer {i} must"
            if _is_grad_enabled() and tensor.requires_grad:
                raise ValueError(
                    f"{place} be a tensor without gradient, got one that requires grad; "
                    f"{_ENCODER_LAYERS.refuses_grad}"
                )
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError(
                    f"{place} have no tangent, got one; "
                    "forward-mode differentiation is not supported"
                )
