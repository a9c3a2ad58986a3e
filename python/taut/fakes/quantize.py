"""Shapes and dtypes of what the quantizing ops give."""

import torch


def _groups(columns, group_size):
    return (columns + group_size - 1) // group_size if group_size else 1


def quantized(x, columns, group_size=0):
    """q and scale of `columns` columns for every row of x."""
    rows = x.shape[0]
    q = x.new_empty((rows, columns), dtype=torch.int8)
    return q, x.new_empty((rows, _groups(columns, group_size)), dtype=torch.float32)


def quantize_per_token(
    x, channel_scale=None, channel_shift=None, bits=8, grid="absmax", hadamard=False, group_size=0
):
    return quantized(x, x.shape[1], group_size)


def layer_norm_quantize(x, *_):
    return (x.new_empty(x.shape), *quantized(x, x.shape[1]))


def kronecker(x, left, right):
    return x.new_empty(x.shape)
