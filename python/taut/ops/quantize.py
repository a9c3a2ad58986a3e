"""Activations to integers, row by row: an embedding never depends on its batch mates."""

import torch

from taut import registry
from taut.ops._call import call

_QUANTIZE = registry.OPS["quantize_per_token"]
_LAYER_NORM_QUANTIZE = registry.OPS["layer_norm_quantize"]
_KRONECKER = registry.OPS["kronecker"]


def quantize_per_token(
    x: torch.Tensor,
    bits: int = 8,
    *,
    grid: str = "absmax",
    channel_scale: torch.Tensor | None = None,
    channel_shift: torch.Tensor | None = None,
    hadamard: bool = False,
    group_size: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row, or each group of columns of a row, with a scale of its own.

    With h = (x - channel_shift) * channel_scale, rotated by the Hadamard matrix if asked, and
    top = 2^(bits - 1) - 1, the grids are

        "absmax"      scale = max|h| / top,           q = round(h / scale) in [-top, top]
        "full_range"  scale = max|h| / 2^(bits - 1),  q = round(h / scale) in [-2^(bits - 1), top]
        "midrise"     scale = 2 c rms(h) / (2^bits - 1) + 1e-8, q = floor(h / scale), clamped;
                      the value is (q + 1/2) scale

    Rounding is half to even. A row of zeros has scale 0; a row that is not finite has scale NaN.

    Args:
        x: (total_tokens, columns), fp32, fp16 or bf16; rows may be strided.
        bits: 2, 3, 4 or 8.
        grid: "absmax", "full_range" (BitNet b1.58 Reloaded) or "midrise" (QuEST).
        channel_scale, channel_shift: (columns,), fp32.
        hadamard: multiply each block of 128 columns by the Hadamard matrix over sqrt(128).
        group_size: columns that share a scale; 0: the whole row.

    Returns:
        q (total_tokens, columns), int8 whatever bits is; scale (total_tokens, groups), fp32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Panferov et al., "QuEST", 2025 (midrise, Hadamard); Nielsen and Schneider-Kamp,
    "BitNet b1.58 Reloaded", 2024; Wei et al., "Outlier Suppression+", 2023 (shift and scale).
    """
    return call(_QUANTIZE, x, channel_scale, channel_shift, bits, grid, hadamard, group_size)


def layer_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_weight: torch.Tensor | None = None,
    quant_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    bits: int = 8,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm(x + bias + residual), and the same quantized per row ("absmax" grid).

    What is quantized is the fp32 value before it is rounded to the dtype of x. With quant_weight or
    quant_bias the integers come from a second affine map of the normalised value, as Outlier
    Suppression+ needs where the residual must stay unmigrated.

    Args:
        x: (total_tokens, columns), fp32, fp16 or bf16.
        weight, norm_bias: (columns,), dtype of x; scale and shift of out.
        residual: (total_tokens, columns), dtype of x.
        bias: (columns,), dtype of x.
        quant_weight, quant_bias: (columns,), dtype of x; scale and shift of what is quantized,
            in place of weight and norm_bias as soon as one of them is given.
        eps: added to the variance.
        bits: 2, 3, 4 or 8.

    Returns:
        out like x; q (total_tokens, columns), int8; scale (total_tokens, 1), fp32.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Ba et al., "Layer Normalization", 2016; Wei et al., "Outlier Suppression+", 2023.
    """
    return call(
        _LAYER_NORM_QUANTIZE,
        x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits,
    )  # fmt: skip


def kronecker(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """x (left kron right), without forming the product: left^T X right for each row's matrix X.

    Args:
        x: (total_tokens, a * b), fp32, fp16 or bf16; a row is the matrix X (a, b), row-major.
        left: (a, a), dtype of x.
        right: (b, b), dtype of x.

    Returns:
        (total_tokens, a * b), dtype of x; summed in fp32 and rounded once.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Sun et al., "FlatQuant", 2024, section 3.1.
    """
    return call(_KRONECKER, x, left, right)
