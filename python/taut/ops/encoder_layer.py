"""A whole encoder layer in one call, for inference on the CPU."""

from typing import NamedTuple

import torch

from taut import registry
from taut.ops._call import call

_ENCODER_LAYER = registry.OPS["encoder_layer"]


class LayerParts(NamedTuple):
    """What stays the same from call to call, laid out as `reference/encoder_layer.py` says.

    Args:
        qkv, out, up, down: (packed, scale, zero_point, codebook, bias), the linear layers.
        formats: 20 ints: out_features, bits, group_size, x_bits and x_group_size of each.
        attention_norm, output_norm: (weight, bias, quant_weight, quant_bias).
        heads: of hidden_size / heads channels each.
        activation: of the feed-forward network.
        glu: `up` gives values and gates.
        quantize_up: `up` takes the integers that attention_norm gives it.
        inner_group_size: columns of what `up` hands to `down` as integers that share a scale; 0:
            all; -1: it hands on floats.
        attention_eps, output_eps: of the norms.
    """

    qkv: tuple
    out: tuple
    up: tuple
    down: tuple
    formats: tuple
    attention_norm: tuple
    output_norm: tuple
    heads: int
    activation: str
    glu: bool
    quantize_up: bool
    inner_group_size: int
    attention_eps: float
    output_eps: float


def encoder_layer(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    parts: LayerParts,
    *,
    q: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    relative_bias: torch.Tensor | None = None,
    quantize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention and feed-forward network, each with residual and LayerNorm behind it.

    To the bit what the ops that it is made of give one by one; it saves the time from Python to
    each of them, which is most of the time of a short text.

    Args:
        hidden: (total_tokens, hidden_size), fp32, fp16 or bf16.
        cu_seqlens: (batch + 1,) int32; sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
        parts: weights and settings.
        q, scale: hidden as `qkv` takes it, int8 and fp32, or None.
        alibi_slopes, relative_bias: as in `taut.varlen_attention`.
        quantize: whether q and scale are wanted of the result, where `down` is a low-bit weight;
            they are empty otherwise.

    Returns:
        hidden like hidden; q (total_tokens, hidden_size), int8; scale (total_tokens, 1), fp32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(
        _ENCODER_LAYER, hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, *parts, quantize
    )
