"""Shapes and dtypes of what the packed linear ops give."""

import torch

from taut.formats import PANEL


def pack_weight(weight):
    rows, columns = weight.shape
    panels = (rows + PANEL - 1) // PANEL
    if weight.dtype == torch.bfloat16:
        return weight.new_empty((panels, (columns + 1) // 2, PANEL, 2))
    return weight.new_empty((panels, columns, PANEL))


def unpack_weight(packed, out_features, in_features):
    return packed.new_empty((out_features, in_features))


def packed_linear(x, packed, bias, out_features, activation):
    return x.new_empty((x.shape[0], out_features))


def packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    return residual.new_empty(residual.shape)
