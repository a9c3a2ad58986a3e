"""Shapes and dtypes of what encoder_layer gives."""

import torch


def encoder_layer(
    hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, qkv, out, up, down, formats,
    attention_norm, output_norm, heads, activation, glu, quantize_up, inner_group_size,
    attention_eps, output_eps, quantize,
):  # fmt: skip
    quantized = quantize and formats[16]  # bits of `down`
    rows, columns = hidden.shape if quantized else (0, 0)
    return (
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        hidden.new_empty((rows, columns), dtype=torch.int8),
        hidden.new_empty((rows, 1 if quantized else 0), dtype=torch.float32),
    )
