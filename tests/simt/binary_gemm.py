"""Calls the CUDA kernels of packed signs in the host executor: the launchers' part in Python."""

import torch

from simt import build
from simt.memory import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    POINTER,
    call,
    fields,
    memory_of,
    pointer_of,
    structure,
)
from taut.formats import words_of
from taut.reference.dense_gemm import ACTIVATIONS

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ONE_RAIL, TWO_RAILS, CODES = range(3)
SENTINEL = 0x5A5A5A5A
KERNELS = ("binary_linear", "binary_linear_xor", "binary_wgmma")

PackBitsParams = structure(
    "PackBitsParams",
    *fields(POINTER, "x threshold out"),
    *fields(INT64, "rows x_stride"),
    *fields(INT32, "columns rails"),
    ("at_least", BOOL),
)
UnpackBitsParams = structure(
    "UnpackBitsParams",
    *fields(POINTER, "bits out"),
    *fields(INT64, "rows bits_stride rail_stride"),
    *fields(INT32, "columns rails"),
)
CodePlanesParams = structure(
    "CodePlanesParams",
    *fields(POINTER, "codes planes highest"),
    *fields(INT64, "rows codes_stride"),
    ("columns", INT32),
)
BinaryLinearParams = structure(
    "BinaryLinearParams",
    ("input", INT32),
    *fields(POINTER, "x highest x_scale"),
    *fields(INT64, "rows x_stride plane_stride"),
    ("packed", POINTER),
    *fields(INT32, "in_features out_features"),
    ("thresholds", POINTER),
    ("rails", INT32),
    *fields(POINTER, "bits scale bias"),
    *fields(INT32, "activation residual_type out_type"),
    ("residual", POINTER),
    ("residual_stride", INT64),
    ("out", POINTER),
    ("vectors", BOOL),
)
BinaryNormParams = structure(
    "BinaryNormParams",
    ("x", POINTER),
    ("type", INT32),
    *fields(POINTER, "weight bias threshold"),
    ("eps", FLOAT),
    *fields(POINTER, "out bits"),
    ("rows", INT64),
    ("columns", INT32),
)


def chosen_tiles(rows, out_features):
    return build.load("binary_gemm").chosen_tiles(rows, out_features)


def _call(name, *arguments, schedule):
    call("binary_gemm", name, *arguments, schedule=schedule)


def _empty_bits(rows, columns, rails):
    words = words_of(columns)
    return torch.full((rows, words) if rails == 1 else (rows, rails, words), SENTINEL)


def pack_bits(x, threshold=None, rails=1, tie="strict", schedule=0):
    out = _empty_bits(*x.shape, rails)
    p = PackBitsParams(x.data_ptr(), pointer_of(threshold), out.data_ptr())
    p.rows, p.columns, p.x_stride = *x.shape, x.stride(0)
    p.rails, p.at_least = rails, tie == "geq"
    memory = memory_of((x, threshold), (out,))
    _call("pack_bits", p, memory, TYPES[x.dtype], schedule=schedule)
    return out


def unpack_bits(bits, columns, schedule=0):
    out = torch.full((bits.shape[0], columns), 77, dtype=torch.int8)
    rails = bits.dim() - 1
    p = UnpackBitsParams(bits.data_ptr(), out.data_ptr(), bits.shape[0], bits.stride(0))
    p.rail_stride, p.columns, p.rails = bits.stride(1) if rails == 2 else 0, columns, rails
    _call("unpack_bits", p, memory_of((bits,), (out,)), schedule=schedule)
    return out


def _code_planes(codes, schedule):
    rows, columns = codes.shape
    planes = torch.full((rows, 8, words_of(columns)), SENTINEL)
    highest = torch.full((rows,), -1, dtype=torch.int32)
    p = CodePlanesParams(codes.data_ptr(), planes.data_ptr(), highest.data_ptr())
    p.rows, p.columns, p.codes_stride = rows, columns, codes.stride(0)
    _call("code_planes", p, memory_of((codes,), (planes, highest)), schedule=schedule)
    return planes, highest


def _multiply(x, x_scale, packed, in_features, out_features, out, schedule, kernel, **given):
    """`given`: thresholds, or scale, bias, activation, residual."""
    p = BinaryLinearParams(rows=x.shape[0], packed=packed.data_ptr())
    p.in_features, p.out_features, p.x_scale = in_features, out_features, pointer_of(x_scale)
    highest = None
    if x.dtype == torch.int8:
        x, highest = _code_planes(x, schedule)
        p.input = CODES
    else:
        p.input = TWO_RAILS if x.dim() == 3 else ONE_RAIL
    p.x, p.x_stride, p.highest = x.data_ptr(), x.stride(0), pointer_of(highest)
    p.plane_stride = x.stride(1) if x.dim() == 3 else 0
    thresholds, residual = given.get("thresholds"), given.get("residual")
    if thresholds is not None:
        p.thresholds, p.rails, p.bits = thresholds.data_ptr(), thresholds.dim(), out.data_ptr()
    else:
        p.out, p.out_type = out.data_ptr(), TYPES[out.dtype]
        p.scale, p.bias = pointer_of(given["scale"]), pointer_of(given["bias"])
        p.activation = list(ACTIVATIONS).index(given.get("activation", "none"))
    if residual is not None:
        p.residual, p.residual_stride = residual.data_ptr(), residual.stride(0)
        p.residual_type = TYPES[residual.dtype]
    p.vectors = out_features % 4 == 0 and (residual is None or residual.stride(0) % 4 == 0)
    reads = (x, highest, x_scale, packed, thresholds, given.get("scale"), given.get("bias"))
    _call(kernel, p, memory_of((*reads, residual), (out,)), schedule=schedule)
    return out


def binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, activation="none", residual=None,
    out_dtype=None, schedule=0, kernel=KERNELS[0],
):  # fmt: skip
    out = torch.full((x.shape[0], out_features), 77.0, dtype=out_dtype or torch.float32)
    return _multiply(
        x, x_scale, packed, in_features, out_features, out, schedule, kernel,
        scale=scale, bias=bias, activation=activation, residual=residual,
    )  # fmt: skip


def binary_linear_bits(
    x, packed, thresholds, out_features, in_features, schedule=0, kernel=KERNELS[0]
):
    out = _empty_bits(x.shape[0], out_features, thresholds.dim())
    return _multiply(
        x, None, packed, in_features, out_features, out, schedule, kernel, thresholds=thresholds
    )


def binary_linear_layer_norm(
    x, x_scale, packed, scale, bias, in_features, residual, norm_weight, norm_bias, eps,
    bit_threshold=None, schedule=0, kernel=KERNELS[0],
):  # fmt: skip
    rows, columns = residual.shape
    total = torch.full((rows, columns), 77.0)
    _multiply(
        x, x_scale, packed, in_features, columns, total, schedule, kernel,
        scale=scale, bias=bias, residual=residual,
    )  # fmt: skip
    out = torch.full((rows, columns), 77.0, dtype=residual.dtype)
    bits = _empty_bits(rows, columns, 1)
    p = BinaryNormParams(total.data_ptr(), TYPES[out.dtype], pointer_of(norm_weight))
    p.bias, p.threshold, p.eps = pointer_of(norm_bias), pointer_of(bit_threshold), eps
    p.out, p.bits, p.rows, p.columns = out.data_ptr(), bits.data_ptr(), rows, columns
    reads = (total, norm_weight, norm_bias, bit_threshold)
    _call("binary_norm", p, memory_of(reads, (out, bits)), schedule=schedule)
    return out, bits
