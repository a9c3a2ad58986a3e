"""Calls the CUDA kernels of quantize and lowbit_gemm in the host executor: the launchers' part in
Python. Outputs start as a sentinel."""

import torch

from simt import build
from taut.reference.dense_gemm import ACTIVATIONS
from taut.reference.quantize import GRIDS

TYPES = (torch.float32, torch.bfloat16, torch.float16)
X_TYPES = (*TYPES, torch.int8)
TILES = (0, 1, 2)  # LowbitTiles: 16, 64 and 128 rows
WGMMA = 3
KERNELS = (*TILES, WGMMA)
TILE_COLUMNS = (64, 64, 128, 128)


def _call(name, *arguments, schedule):
    build.call(getattr(build.load("lowbit"), name), *arguments, schedule, 1)


def _filled(shape, dtype):
    return torch.full(shape, 77, dtype=dtype)


def quantize_per_token(
    x, channel_scale=None, channel_shift=None, bits=8, grid="absmax", hadamard=False, group_size=0,
    schedule=0,
):  # fmt: skip
    rows, columns = x.shape
    group_size = min(group_size or columns, columns)
    q = _filled((rows, columns), torch.int8)
    scale = _filled((rows, -(-columns // group_size)), torch.float32)
    _call(
        "quantize", x, TYPES.index(x.dtype), channel_scale, channel_shift, q, scale, rows, columns,
        x.stride(0), group_size, bits, GRIDS.index(grid), int(hadamard), schedule=schedule,
    )  # fmt: skip
    return q, scale


def layer_norm_quantize(
    x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits=8, dtype=None,
    wanted=True, schedule=0,
):  # fmt: skip
    dtype = dtype or x.dtype
    rows, columns = x.shape
    out, q = _filled((rows, columns), dtype), _filled((rows, columns), torch.int8)
    scale = _filled((rows, 1), torch.float32)
    _call(
        "norm_quantize", x, TYPES.index(x.dtype), TYPES.index(dtype), residual, bias, weight,
        norm_bias, quant_weight, quant_bias, out, q if wanted else None, scale, rows, columns,
        x.stride(0), residual.stride(0) if residual is not None else 0, eps, bits,
        schedule=schedule,
    )  # fmt: skip
    return out, q, scale


def _aligned(x):
    """x with rows of whole 16 bytes; what is behind a row's end is never read."""
    rows, columns = x.shape
    wide = x.new_full((rows, -(-columns // 16) * 16), 99)
    wide[:, :columns] = x
    return wide


def _linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue, residual, x_zero_point, out_dtype, q_bits, q_group_size, tiles, schedule,
):  # fmt: skip
    dtype = out_dtype or x.dtype
    if x_bits and x.dtype != torch.int8:
        x, x_scale = quantize_per_token(x, bits=x_bits)
    rows, in_features = x.shape
    aligned, packed = _aligned(x), packed.contiguous()
    out = q = q_scale = None
    if q_group_size:
        q = _filled((rows, out_features), torch.int8)
        q_scale = _filled((rows, -(-out_features // q_group_size)), torch.float32)
    else:
        out = _filled((rows, out_features), dtype)
    bias_type = 0 if bias is None else TYPES.index(bias.dtype)
    _call(
        "linear", aligned, X_TYPES.index(x.dtype), x_scale, packed, scale, zero_point, codebook,
        0 if codebook is None else codebook.numel() >> bits, bias, residual, out, q, q_scale, rows,
        in_features, out_features, aligned.stride(0), bits, group_size,
        0 if x_scale is None else x_scale.shape[1], x_zero_point, bias_type, TYPES.index(dtype), list(ACTIVATIONS).index(epilogue), q_bits,
        q_group_size, tiles, schedule=schedule,
    )  # fmt: skip
    return (q, q_scale) if q_group_size else out


def chosen_tiles(rows, out_features, processors, least_columns=1, hopper=False):
    choose = build.load("lowbit").chosen_tiles
    return choose(rows, out_features, processors, least_columns, hopper)


def lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, out_dtype=None, tiles=1, schedule=0,
):  # fmt: skip
    return _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, epilogue, residual, x_zero_point, out_dtype, 8, 0, tiles, schedule,
    )  # fmt: skip


def lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", out_bits=8, out_group_size=0, tiles=1, schedule=0,
):  # fmt: skip
    """Groups that a tile holds are quantized by it; others afterwards."""
    operands = (
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, epilogue, None, 0.0, torch.float32, out_bits,
    )  # fmt: skip
    integers = x_bits or x.dtype == torch.int8
    if integers and 0 < out_group_size <= TILE_COLUMNS[tiles]:
        return _linear(*operands, out_group_size, tiles, schedule)
    total = _linear(*operands, 0, tiles, schedule)
    return quantize_per_token(total, bits=out_bits, group_size=out_group_size, schedule=schedule)


def lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, norm_weight, norm_bias, eps, quantize=False, quant_weight=None, quant_bias=None,
    tiles=1, schedule=0,
):  # fmt: skip
    total = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, "none", None, 0.0, torch.float32, 8, 0, tiles, schedule,
    )  # fmt: skip
    return layer_norm_quantize(
        total, residual, None, norm_weight, norm_bias, quant_weight, quant_bias, eps,
        dtype=residual.dtype, wanted=quantize, schedule=schedule,
    )  # fmt: skip
