"""Packed signs, and linear layers over 1-bit weights, for inference."""

import torch

from taut import registry
from taut.formats import PANEL
from taut.ops._call import call
from taut.reference import binary_gemm as reference

_PACK_BITS = registry.OPS["pack_bits"]
_UNPACK_BITS = registry.OPS["unpack_bits"]
_LINEAR = registry.OPS["binary_linear"]
_LINEAR_BITS = registry.OPS["binary_linear_bits"]
_LINEAR_LAYER_NORM = registry.OPS["binary_linear_layer_norm"]


def pack_bits(
    x: torch.Tensor,
    threshold: torch.Tensor | None = None,
    *,
    rails: int = 1,
    tie: str = "strict",
) -> torch.Tensor:
    """The signs of x - threshold, packed.

    Column c of a row is bit c % 64 of word c // 64; bits behind the last column are 0. On one rail
    a set bit is +1 and a clear one -1. On two rails there are three values: rail 0 has the bit
    where the value is +1, rail 1 where it is -1, and where neither has it the value is 0. So the
    values 0 and 1 are two rails of which the second is empty.

    Args:
        x: (rows, columns); fp32, bf16 or fp16; rows may be strided. NaN counts as below on one
            rail, and is 0 on two.
        threshold: (columns,), fp32, what x is compared with; None: 0.
        rails: 1 or 2.
        tie: "strict": x = threshold is -1 on one rail, 0 on two; "geq": it is +1.

    Returns:
        int64 (rows, ceil(columns / 64)), or (rows, 2, ceil(columns / 64)) on two rails.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_PACK_BITS, x, threshold, rails, tie)


def unpack_bits(bits: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of `pack_bits`: signs as int8.

    Args:
        bits: (rows, ceil(columns / 64)) or (rows, 2, ceil(columns / 64)), dtype int64.
        columns: signs per row.

    Returns:
        int8 (rows, columns): -1 and 1, and on two rails 0.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_UNPACK_BITS, bits, columns)


def _check_words(op, name, value, shape, meaning):
    """These two are no ops: no dispatcher looks at the type."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    reference.check_tensor(op, name, value, shape, meaning, (torch.int64,))


def pack_binary_weight(bits: torch.Tensor) -> torch.Tensor:
    """A 1-bit weight in the order the kernels read it: word k of 64 output channels side by side.

    Word k of output channel n goes to [n // 64, k, n % 64]; channels that the weight does not have
    are 0. The layout is the same for every device and instruction set; a panel of 64 channels is a
    word of the bits that `binary_linear_bits` gives.

    Args:
        bits: (out_features, ceil(in_features / 64)), dtype int64, `pack_bits` of a weight.

    Returns:
        int64 (ceil(out_features / 64), ceil(in_features / 64), 64), contiguous.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    op = "pack_binary_weight"
    _check_words(op, "bits", bits, (None, None), "(out_features, words)")
    padded = torch.nn.functional.pad(bits, (0, 0, 0, -bits.shape[0] % PANEL))
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def unpack_binary_weight(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """The exact inverse of `pack_binary_weight`.

    Args:
        packed: (panels, words, 64), dtype int64.
        out_features: rows of the weight.

    Returns:
        int64 (out_features, words).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    op = "unpack_binary_weight"
    shape = (-(-out_features // PANEL), None, PANEL)
    meaning = f"({shape[0]}, words, {PANEL})"
    _check_words(op, "packed", packed, shape, meaning)
    return reference.unpack_binary_weight(packed, out_features)


def binary_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    in_features: int,
    x_scale: torch.Tensor | None = None,
    epilogue: str = "none",
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """epilogue(scale * (x W^T) + bias) + residual, with W of signs; for inference.

    The sums over products are whole numbers, the same to the bit on every backend; what follows is
    taken in fp32 and rounded once.

    Args:
        x: signs, int64 (rows, words) or (rows, 2, words) as `pack_bits` gives them; or codes, int8
            (rows, in_features), as `quantize_per_token` gives them. Codes cost one product of bits
            for each bit that the largest of them needs: 2, 4 or 8 as a rule.
        packed: int64 (panels, words, 64), `pack_binary_weight` of an (out_features, in_features)
            weight.
        scale: (out_features,), fp32; what a sign of the weight stands for, times that of x.
        bias: (out_features,), fp32.
        in_features: columns of x.
        x_scale: (rows, 1), fp32; with codes only.
        epilogue: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "tanh".
        residual: (rows, out_features), out_dtype.
        out_dtype: float32, bfloat16 or float16.

    Returns:
        (rows, out_features) in out_dtype.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Qin et al., "BiBERT", 2022; Liu et al., "BiT", 2022.
    """
    out_features = scale.shape[0] if isinstance(scale, torch.Tensor) and scale.dim() else 0
    return call(
        _LINEAR,
        x, x_scale, packed, scale, bias, out_features, in_features, epilogue, residual, out_dtype,
    )  # fmt: skip


def binary_linear_bits(
    x: torch.Tensor,
    packed: torch.Tensor,
    thresholds: torch.Tensor,
    *,
    in_features: int,
) -> torch.Tensor:
    """The signs of a linear layer over signs, from whole numbers to bits.

    With s = x W^T, thresholds of one row t give one rail, [s > t]; three rows give two rails,
    +1 where s > t[0] and -1 where t[1] < s < t[2].

    Args:
        x: signs, int64 (rows, words) or (rows, 2, words).
        packed: as in `binary_linear`.
        thresholds: int32 (out_features,) or (3, out_features).
        in_features: columns of x.

    Returns:
        int64 (rows, ceil(out_features / 64)), or (rows, 2, ceil(out_features / 64)).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    out_features = (
        thresholds.shape[-1] if isinstance(thresholds, torch.Tensor) and thresholds.dim() else 0
    )
    return call(_LINEAR_BITS, x, packed, thresholds, out_features, in_features)


def binary_linear_layer_norm(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    in_features: int,
    x_scale: torch.Tensor | None = None,
    bit_threshold: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LayerNorm(scale * (x W^T) + bias + residual), and its signs; for inference.

    Args:
        x, packed, scale, bias, in_features, x_scale: as in `binary_linear`.
        residual: (rows, out_features), fp32, bf16 or fp16.
        norm_weight, norm_bias: (out_features,), dtype of residual.
        eps: added to the variance.
        bit_threshold: (out_features,), fp32; what the result is compared with, before it is
            rounded to the dtype of residual; None: 0.

    Returns:
        out like residual; bits int64 (rows, ceil(out_features / 64)), [result > bit_threshold].

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(
        _LINEAR_LAYER_NORM,
        x, x_scale, packed, scale, bias, in_features, residual, norm_weight, norm_bias, eps,
        bit_threshold,
    )  # fmt: skip
