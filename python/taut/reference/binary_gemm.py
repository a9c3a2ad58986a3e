"""What the ops over packed bits mean.

A row of signs is int64 words: column c is bit c % 64 of word c // 64, bits behind the last column
are 0. On one rail, (rows, words), a set bit is +1 and a clear one -1. On two rails,
(rows, 2, words), rail 0 says where the value is +1 and rail 1 where it is -1; neither is 0.

Sums of products are whole numbers, exact on every backend; scale, bias and what follows are taken
in fp32.
"""

import torch
from torch.nn import functional

from taut.formats import PANEL, WORD, words_of
from taut.reference._check import FLOATS, check_choice, check_optional_tensor, check_tensor
from taut.reference.dense_gemm import ACTIVATIONS

TIES = ("strict", "geq")
MAX_IN_FEATURES = 65536  # 128 * 2^16 < 2^24: sums are exact in fp32 too
INT64, INT32, FP32 = (torch.int64,), (torch.int32,), (torch.float32,)


# ---- argument checks


def _check_rails(op, name, rails, accepted):
    if rails not in accepted:
        words = ", ".join(map(str, accepted))
        raise ValueError(f"{op}: {name} must be one of {words}, got {rails!r}")


def check_pack_bits(x, threshold=None, rails=1, tie="strict"):
    op = "pack_bits"
    check_tensor(op, "x", x, (None, None), "(rows, columns)", FLOATS)
    columns = (x.shape[1],)
    meaning = f"{columns}, one per column of x"
    check_optional_tensor(op, "threshold", threshold, columns, meaning, FP32)
    _check_rails(op, "rails", rails, (1, 2))
    check_choice(op, "tie", tie, TIES)


def _check_bits(op, name, bits, columns):
    """Packed bits of `columns` columns, on either number of rails."""
    words = words_of(columns)
    two = isinstance(bits, torch.Tensor) and bits.dim() == 3
    shape = (None, 2, words) if two else (None, words)
    meaning = f"(rows, {words}) or (rows, 2, {words}), bits of {columns} columns"
    check_tensor(op, name, bits, shape, meaning, INT64)


def check_unpack_bits(bits, columns):
    op = "unpack_bits"
    if columns < 0:
        raise ValueError(f"{op}: columns must be at least 0, got {columns}")
    _check_bits(op, "bits", bits, columns)


def _check_linear(op, x, x_scale, packed, out_features, in_features):
    for name, value in (("out_features", out_features), ("in_features", in_features)):
        if value < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {value}")
    if in_features > MAX_IN_FEATURES:
        raise ValueError(f"{op}: in_features must be at most {MAX_IN_FEATURES}, got {in_features}")
    if isinstance(x, torch.Tensor) and x.dtype == torch.int8:
        meaning = f"(rows, {in_features}) codes or bits of them"
        check_tensor(op, "x", x, (None, in_features), meaning, (torch.int8,))
        if x_scale is None:
            raise ValueError(f"{op}: x_scale must be given with x of int8, got None")
        shape = (x.shape[0], 1)
        check_tensor(op, "x_scale", x_scale, shape, f"{shape}, one per row of x", FP32)
    else:
        _check_bits(op, "x", x, in_features)
        if x_scale is not None:
            raise ValueError(f"{op}: x_scale must be None with x of bits, got a tensor")
    shape = (-(-out_features // PANEL), words_of(in_features), PANEL)
    meaning = f"{shape}, pack_binary_weight of a ({out_features}, {in_features}) weight"
    check_tensor(op, "packed", packed, shape, meaning, INT64)


def _check_scale(op, scale, bias, out_features):
    shape = (out_features,)
    meaning = f"{shape}, one per output channel"
    check_tensor(op, "scale", scale, shape, meaning, FP32)
    check_optional_tensor(op, "bias", bias, shape, meaning, FP32)


def check_binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, epilogue="none", residual=None,
    out_dtype=None,
):  # fmt: skip
    op = "binary_linear"
    _check_linear(op, x, x_scale, packed, out_features, in_features)
    _check_scale(op, scale, bias, out_features)
    check_choice(op, "epilogue", epilogue, tuple(ACTIVATIONS))
    out_dtype = out_dtype or torch.float32
    if out_dtype not in FLOATS:
        raise ValueError(f"{op}: out_dtype must be float32, bfloat16 or float16, got {out_dtype}")
    shape = (x.shape[0], out_features)
    check_optional_tensor(op, "residual", residual, shape, f"{shape}", (out_dtype,))


def check_binary_linear_bits(x, packed, thresholds, out_features, in_features):
    op = "binary_linear_bits"
    if isinstance(x, torch.Tensor) and x.dtype == torch.int8:
        raise ValueError(f"{op}: x must be int64 bits, got int8")
    _check_linear(op, x, None, packed, out_features, in_features)
    check_thresholds(op, thresholds, (out_features,))


def check_thresholds(op, thresholds, shape):
    """One threshold per channel for one rail, three for two."""
    three = isinstance(thresholds, torch.Tensor) and thresholds.dim() > len(shape)
    meaning = f"{shape} or {(3, *shape)}"
    check_tensor(op, "thresholds", thresholds, (3, *shape) if three else shape, meaning, INT32)


def check_binary_linear_layer_norm(
    x, x_scale, packed, scale, bias, in_features, residual, norm_weight, norm_bias, eps,
    bit_threshold=None,
):  # fmt: skip
    op = "binary_linear_layer_norm"
    check_tensor(op, "residual", residual, (None, None), "(rows, out_features)", FLOATS)
    columns = residual.shape[1]
    _check_linear(op, x, x_scale, packed, columns, in_features)
    _check_scale(op, scale, bias, columns)
    if residual.shape[0] != x.shape[0]:
        raise ValueError(
            f"{op}: residual must be ({x.shape[0]}, out_features), got {tuple(residual.shape)}"
        )
    meaning = f"({columns},), one per column of residual"
    for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_optional_tensor(op, name, value, (columns,), meaning, (residual.dtype,))
    check_optional_tensor(op, "bit_threshold", bit_threshold, (columns,), meaning, FP32)


# ---- bits


def pack_flags(flags: torch.Tensor) -> torch.Tensor:
    """bool (..., columns) -> int64 (..., words); int64 wraps, so bit 63 is just the sign."""
    padded = functional.pad(flags.long(), (0, -flags.shape[-1] % WORD))
    shift = torch.arange(WORD, device=flags.device)
    return (padded.unflatten(-1, (-1, WORD)) << shift).sum(-1)


def unpack_flags(bits: torch.Tensor, columns: int) -> torch.Tensor:
    """int64 (..., words) -> 0 or 1, int64 (..., columns)."""
    shift = torch.arange(WORD, device=bits.device)
    return ((bits[..., None] >> shift) & 1).flatten(-2)[..., :columns]


def pack_bits(x, threshold=None, rails=1, tie="strict"):
    limit = 0.0 if threshold is None else threshold
    positive = x > limit if tie == "strict" else x >= limit
    if rails == 1:
        return pack_flags(positive)
    return torch.stack((pack_flags(positive), pack_flags(x < limit)), 1)


def unpack_bits(bits, columns):
    if bits.dim() == 2:
        return (2 * unpack_flags(bits, columns) - 1).to(torch.int8)
    rails = unpack_flags(bits, columns)
    return (rails[:, 0] - rails[:, 1]).to(torch.int8)


def compare(sums: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Whole numbers (rows, *shape) against thresholds (*shape) or (3, *shape) -> packed bits."""
    if thresholds.dim() < sums.dim():
        return pack_flags((sums > thresholds).flatten(1))
    above, low, high = thresholds
    positive, negative = sums > above, (sums > low) & (sums < high)
    return torch.stack([pack_flags(flags.flatten(1)) for flags in (positive, negative)], 1)


# ---- linear layers


def unpack_binary_weight(packed, out_features):
    """Packed weight -> bits (out_features, words)."""
    return packed.transpose(1, 2).flatten(0, 1)[:out_features].contiguous()


def _sums(x, packed, out_features, in_features):
    """x W^T, whole numbers, fp64 (rows, out_features): exact below 2^53."""
    weight = unpack_bits(unpack_binary_weight(packed, out_features), in_features)
    values = x if x.dtype == torch.int8 else unpack_bits(x, in_features)
    return values.double() @ weight.double().T


def _linear(x, x_scale, packed, scale, bias, out_features, in_features):
    total = _sums(x, packed, out_features, in_features).float()
    total = total * (scale if x_scale is None else x_scale * scale)
    return total if bias is None else total + bias


def binary_linear(
    x, x_scale, packed, scale, bias, out_features, in_features, epilogue="none", residual=None,
    out_dtype=None,
):  # fmt: skip
    total = _linear(x, x_scale, packed, scale, bias, out_features, in_features)
    total = ACTIVATIONS[epilogue](total)
    if residual is not None:
        total = total + residual.float()
    return total.to(out_dtype or torch.float32)


def binary_linear_bits(x, packed, thresholds, out_features, in_features):
    return compare(_sums(x, packed, out_features, in_features), thresholds)


def binary_linear_layer_norm(
    x, x_scale, packed, scale, bias, in_features, residual, norm_weight, norm_bias, eps,
    bit_threshold=None,
):  # fmt: skip
    columns = residual.shape[1]
    total = _linear(x, x_scale, packed, scale, bias, columns, in_features) + residual.float()
    affine = (None if t is None else t.float() for t in (norm_weight, norm_bias))
    out = functional.layer_norm(total, (columns,), *affine, eps)
    return out.to(residual.dtype), pack_bits(out, bit_threshold)
