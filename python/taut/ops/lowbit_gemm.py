"""Linear layers over low-bit weights, for inference."""

import torch

from taut import registry
from taut.formats import LowbitWeight
from taut.ops._call import call

_PACK = registry.OPS["pack_lowbit"]
_UNPACK = registry.OPS["unpack_lowbit"]
_LINEAR = registry.OPS["lowbit_linear"]
_LINEAR_QUANTIZE = registry.OPS["lowbit_linear_quantize"]
_LINEAR_LAYER_NORM = registry.OPS["lowbit_linear_layer_norm"]

_X_BITS = {"none": 0, "int4": 4, "int8": 8}


def pack_lowbit(codes: torch.Tensor, bits: int, in_features: int) -> torch.Tensor:
    """Codes of a low-bit weight in the order the kernels read them.

    The layout is the same for every device and instruction set. Output channels are cut into panels
    of 64, input features into blocks of 64. With panel = n // 64, channel = n % 64, block = k // 64,
    quad = k % 64 // 4 and i = k % 4, code (n, k) lies in packed[panel, block, row, channel, i] at

        8 bits  row quad,       all bits
        4 bits  row quad // 2,  bits [4 (quad % 2), 4 (quad % 2) + 4)
        2 bits  row quad // 4,  bits [2 (quad % 4), 2 (quad % 4) + 2)
        3 bits  the low two as with 2 bits, the top one in row 4 + quad // 8, bit quad % 8

    Codes that the weight does not have are 2^(bits - 1).

    Args:
        codes: (out_features, ceil(in_features * bits / 8)), uint8: `taut.formats.pack_codes`.
        bits: 2, 3, 4 or 8.
        in_features: codes per row.

    Returns:
        packed (ceil(out_features / 64), ceil(in_features / 64), 2 * bits, 64, 4), uint8.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_PACK, codes, bits, in_features)


def unpack_lowbit(
    packed: torch.Tensor, bits: int, out_features: int, in_features: int
) -> torch.Tensor:
    """The exact inverse of `pack_lowbit`.

    Args:
        packed: what `pack_lowbit` gave for an (out_features, in_features) weight, uint8.
        bits: 2, 3, 4 or 8.
        out_features, in_features: the shape of that weight.

    Returns:
        codes (out_features, ceil(in_features * bits / 8)), uint8.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_UNPACK, packed, bits, out_features, in_features)


def operands_of(weight: LowbitWeight, bias: torch.Tensor | None, activation: str) -> tuple:
    """What the three ops take between x_scale and their epilogue."""
    return (
        weight.packed, weight.scale, weight.zero_point, weight.codebook, bias,
        weight.out_features, weight.bits, weight.group_size, _X_BITS[activation],
    )  # fmt: skip


def _operands(op, x, weight, bias, x_scale, activation) -> tuple:
    if not isinstance(weight, LowbitWeight):
        raise TypeError(f"{op}: weight must be a LowbitWeight, got {type(weight).__name__}")
    if not isinstance(activation, str):
        raise TypeError(f"{op}: activation must be a str, got {type(activation).__name__}")
    if activation not in _X_BITS:
        accepted = ", ".join(_X_BITS)
        raise ValueError(f"{op}: activation must be one of {accepted}, got {activation!r}")
    return (x, x_scale, *operands_of(weight, bias, activation))


def lowbit_linear(
    x: torch.Tensor,
    weight: LowbitWeight,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "int8",
    epilogue: str = "none",
    residual: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    x_zero_point: float = 0.0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """epilogue(x W^T + bias) + residual over a low-bit weight; for inference.

    With integer activations the products are sums of whole numbers, the same to the bit on every
    backend; a row's result never depends on other rows.

    Args:
        x: (total_tokens, in_features), fp32, fp16 or bf16, quantized per token inside as
            `activation` says; or int8, quantized before (`quantize_per_token`).
        weight: the quantized weight.
        bias: (out_features,), fp32, fp16 or bf16.
        activation: "int8" or "int4": x is quantized per token ("absmax" grid); "none": x stays
            floating point and the weight is expanded, which is faster for few rows only. Ignored
            for x of int8.
        epilogue: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "tanh".
        residual: (total_tokens, out_features), dtype of the result.
        x_scale: (total_tokens, 1), or one column per group of the weight, fp32; with x of int8.
        x_zero_point: of x of int8, in units of its codes: -1/2 for the "midrise" grid.
        out_dtype: of the result; None: that of x, which must not be int8 then.

    Returns:
        (total_tokens, out_features).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    operands = _operands("lowbit_linear", x, weight, bias, x_scale, activation)
    return call(_LINEAR, *operands, epilogue, residual, x_zero_point, out_dtype)


def lowbit_linear_quantize(
    x: torch.Tensor,
    weight: LowbitWeight,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "int8",
    epilogue: str = "none",
    x_scale: torch.Tensor | None = None,
    out_bits: int = 8,
    out_group_size: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """epilogue(x W^T + bias), quantized per token while it is in cache; for inference.

    Args:
        x, weight, bias, activation, epilogue, x_scale: as in `lowbit_linear`.
        out_bits: 4 or 8, of the result, int8 in any case ("absmax" grid).
        out_group_size: columns of the result that share a scale: 32, 64, 128, 256, or 0 for all.

    Returns:
        q (total_tokens, out_features), int8; scale (total_tokens, groups), fp32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    operands = _operands("lowbit_linear_quantize", x, weight, bias, x_scale, activation)
    return call(_LINEAR_QUANTIZE, *operands, epilogue, out_bits, out_group_size)


def lowbit_linear_layer_norm(
    x: torch.Tensor,
    weight: LowbitWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "int8",
    x_scale: torch.Tensor | None = None,
    quantize: bool = False,
    quant_weight: torch.Tensor | None = None,
    quant_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm(x W^T + bias + residual), and the same quantized per token; for inference.

    Args:
        x, weight, bias, activation, x_scale: as in `lowbit_linear`.
        residual: (total_tokens, out_features), fp32, fp16 or bf16.
        norm_weight, norm_bias: (out_features,), dtype of residual.
        eps: added to the variance.
        quantize: whether q and scale are wanted; they are empty otherwise.
        quant_weight, quant_bias: (out_features,), dtype of residual; scale and shift of what is
            quantized, in place of norm_weight and norm_bias as soon as one of them is given.

    Returns:
        out like residual; q (total_tokens, out_features), int8, quantized from the fp32 value
        before it is rounded; scale (total_tokens, 1), fp32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    operands = _operands("lowbit_linear_layer_norm", x, weight, bias, x_scale, activation)
    return call(
        _LINEAR_LAYER_NORM,
        *operands, residual, norm_weight, norm_bias, eps, quantize, quant_weight, quant_bias,
    )  # fmt: skip
