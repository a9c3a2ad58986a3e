"""Shapes and dtypes of what the low-bit linear ops give."""

import torch

from taut.fakes.quantize import quantized
from taut.formats import BLOCK, PANEL


def pack_lowbit(codes, bits, in_features):
    panels, blocks = (codes.shape[0] + PANEL - 1) // PANEL, (in_features + BLOCK - 1) // BLOCK
    return codes.new_empty((panels, blocks, 2 * bits, PANEL, 4))


def unpack_lowbit(packed, bits, out_features, in_features):
    return packed.new_empty((out_features, (in_features * bits + 7) // 8))


def lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, out_dtype=None,
):  # fmt: skip
    return x.new_empty((x.shape[0], out_features), dtype=out_dtype or x.dtype)


def lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", out_bits=8, out_group_size=0,
):  # fmt: skip
    return quantized(x, out_features, out_group_size)


def lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, norm_weight, norm_bias, eps, quantize=False, quant_weight=None, quant_bias=None,
):  # fmt: skip
    out = residual.new_empty(residual.shape)
    if quantize:
        return (out, *quantized(x, out_features))
    return out, x.new_empty((0, 0), dtype=torch.int8), scale.new_empty((0, 0))
