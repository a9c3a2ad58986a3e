"""What encoder_layers means: for each layer the references of its parts, one behind the other.

    qkv      = Linear_qkv(hidden)
    context  = attention within each sequence, heads side by side
    middle   = LayerNorm(Linear_out(context) + hidden)
    inner    = activation(Linear_up(middle)), or activation(a) * b of its halves a and b
    out      = LayerNorm(Linear_down(inner) + middle)

A linear layer is (packed, scale, zero_point, codebook, bias) and the numbers (out_features, bits,
group_size, x_bits, x_group_size); bits = 0 is a dense weight, which has packed and bias only. Floats
are quantized in groups of x_group_size columns, 0: in whole rows. A LayerNorm is
(weight, bias, quant_weight, quant_bias); the second pair is of what it quantizes. Layers come as
the numbers of `PreparedLayer` objects.

Source: Vaswani et al., "Attention is all you need", 2017, in the order of BERT ("post-LayerNorm").
"""

import torch

from taut.formats import GROUP_SIZES
from taut.prepared_layers import parts_of
from taut.reference import activation as activations
from taut.reference import attention, dense_gemm, lowbit_gemm
from taut.reference._check import (
    FLOATS,
    check_choice,
    check_cu_seqlens,
    check_optional_tensor,
    check_tensor,
)
from taut.reference.quantize import quantize_per_token

LINEARS = ("qkv", "out", "up", "down")
_OP = "encoder_layers"


def _numbers(formats):
    return [tuple(formats[i : i + 5]) for i in range(0, 20, 5)]


def _check_linear(name, linear, numbers, rows, in_features, dtype):
    if len(linear) != 5 or linear[0] is None:
        wanted = "(packed, scale, zero_point, codebook, bias)"
        raise ValueError(f"{_OP}: {name} must be {wanted}, got {len(linear)} values")
    out_features, bits, group_size, x_bits, x_group_size = numbers
    if x_group_size not in (0, group_size):
        raise ValueError(
            f"{_OP}: {name} must have an x_group_size of 0 or group_size = {group_size}, "
            f"got {x_group_size}"
        )
    x = torch.empty((rows, in_features), dtype=dtype, device="meta")
    op, (packed, scale, zero_point, codebook, bias) = f"{_OP}, {name}", linear
    if bits == 0:
        dense_gemm.check_packed_linear(x, packed, bias, out_features, "none", op=op)
        return
    if scale is None:
        raise ValueError(f"{_OP}: {name} must have a scale with low-bit weights, got None")
    lowbit_gemm.check_operands(
        op, x, None, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip


def _check_norm(name, norm, columns, dtype):
    if len(norm) != 4:
        wanted = "(weight, bias, quant_weight, quant_bias)"
        raise ValueError(f"{_OP}: {name} must be {wanted}, got {len(norm)} values")
    for part, value in zip(("weight", "bias", "quant_weight", "quant_bias"), norm, strict=True):
        check_optional_tensor(f"{_OP}, {name}", part, value, (columns,), f"({columns},)", (dtype,))


def check_encoder_layers(hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, layers):
    for parts in parts_of(_OP, layers):
        for name, tensor in parts.tensors().items():
            if isinstance(hidden, torch.Tensor) and tensor.device != hidden.device:
                wanted = f"on {hidden.device} like hidden"
                raise ValueError(f"{_OP}: {name} must be {wanted}, got {tensor.device}")
        _check_layer(hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, *parts)
        q = scale = None  # of later layers they are made on the way


def _check_layer(
    hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, qkv, out, up, down, formats,
    attention_norm, output_norm, heads, activation, glu, quantize_up, inner_group_size,
    attention_eps, output_eps, quantize,
):  # fmt: skip
    check_tensor(_OP, "hidden", hidden, (None, None), "(total_tokens, hidden_size)", FLOATS)
    (rows, columns), dtype = hidden.shape, hidden.dtype
    check_optional_tensor(_OP, "q", q, (rows, columns), f"{(rows, columns)}", (torch.int8,))
    check_optional_tensor(_OP, "scale", scale, (rows, None), f"({rows}, groups)", (torch.float32,))
    if (q is None) != (scale is None):
        raise ValueError(f"{_OP}: scale must be given with q and without it not, got one of them")
    if q is not None and len(formats) == 20 and formats[1] == 0:
        raise ValueError(f"{_OP}: q must be None with a dense qkv, got a tensor")
    check_cu_seqlens(_OP, "cu_seqlens", cu_seqlens, rows)
    if len(formats) != 20:
        raise ValueError(
            f"{_OP}: formats must be 5 numbers of each of 4 linear layers, got {len(formats)}"
        )
    check_choice(_OP, "activation", activation, tuple(dense_gemm.ACTIVATIONS))
    check_choice(_OP, "inner_group_size", inner_group_size, (-1, *GROUP_SIZES))
    if heads < 1 or columns % heads:
        raise ValueError(f"{_OP}: heads must divide hidden_size = {columns}, got {heads}")
    numbers = _numbers(formats)
    inner = numbers[2][0] // 2 if glu else numbers[2][0]
    wanted = (3 * columns, columns, None, columns)
    depths = (columns, columns, columns, inner)
    linears = (qkv, out, up, down)
    for name, linear, own, width, depth in zip(
        LINEARS, linears, numbers, wanted, depths, strict=True
    ):
        if width is not None and own[0] != width:
            raise ValueError(f"{_OP}: {name} must have {width} out_features, got {own[0]}")
        _check_linear(name, linear, own, rows, depth, dtype)
    if quantize_up and not (numbers[1][1] and numbers[2][1]):
        raise ValueError(
            f"{_OP}: quantize_up must be False unless out and up are low-bit, got True"
        )
    if inner_group_size >= 0 and (glu or not (numbers[2][1] and numbers[3][1])):
        raise ValueError(
            f"{_OP}: inner_group_size must be -1 unless up and down are low-bit without gates, "
            f"got {inner_group_size}"
        )
    _check_norm("attention_norm", attention_norm, columns, dtype)
    _check_norm("output_norm", output_norm, columns, dtype)
    attention.check_varlen_attention_qkvpacked(
        hidden.new_empty((rows, 3, heads, columns // heads), device="meta"), None, cu_seqlens,
        None, alibi_slopes, relative_bias, False, -1, -1, 0.0, None, 0.0, 0, op=_OP,
    )  # fmt: skip


def encoder_layers(hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, layers):
    for parts in parts_of(_OP, layers):
        hidden, q, scale = run_layer(
            hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, *parts
        )
    return hidden


def run_layer(
    hidden, q, scale, cu_seqlens, alibi_slopes, relative_bias, qkv, out, up, down, formats,
    attention_norm, output_norm, heads, activation, glu, quantize_up, inner_group_size,
    attention_eps, output_eps, quantize,
):  # fmt: skip
    dtype, (to_qkv, to_out, to_inner, from_inner) = hidden.dtype, _numbers(formats)

    def given(numbers, x, x_scale):
        if numbers[4] and x_scale is None:
            return quantize_per_token(x, bits=numbers[3], group_size=numbers[4])
        return x, x_scale

    def multiply(linear, numbers, x, x_scale, function):
        if numbers[1] == 0:
            return dense_gemm.packed_linear(x, linear[0], linear[4], numbers[0], function)
        operands = *given(numbers, x, x_scale), *linear, *numbers[:4]
        return lowbit_gemm.lowbit_linear(*operands, function, None, 0.0, dtype)

    def normalize(linear, numbers, x, x_scale, residual, norm, eps, quantized):
        if numbers[1] == 0:
            found = dense_gemm.packed_linear_layer_norm(
                x, linear[0], linear[4], residual, *norm[:2], eps
            )
            return found, None, None
        operands = *given(numbers, x, x_scale), *linear, *numbers[:4]
        found = lowbit_gemm.lowbit_linear_layer_norm(
            *operands, residual, *norm[:2], eps, quantized, *norm[2:]
        )
        return found if quantized else (found[0], None, None)

    rows, columns = hidden.shape
    projected = multiply(qkv, to_qkv, hidden if q is None else q, scale, "none")
    context, _ = attention.varlen_attention_qkvpacked(
        projected.view(rows, 3, heads, columns // heads), None, cu_seqlens, None, alibi_slopes,
        relative_bias, False, -1, -1, 0.0, None, 0.0, 0,
    )  # fmt: skip
    middle, q, scale = normalize(
        out, to_out, context.flatten(1), None, hidden, attention_norm, attention_eps, quantize_up
    )
    x = middle if q is None else q
    if inner_group_size >= 0:
        inner, inner_scale = lowbit_gemm.lowbit_linear_quantize(
            *given(to_inner, x, scale), *up, *to_inner[:4], activation, 8, inner_group_size
        )
    else:
        inner, inner_scale = multiply(up, to_inner, x, scale, "none" if glu else activation), None
        if glu:
            inner = activations.bias_glu(inner, None, activation)
    return normalize(
        down, from_inner, inner, inner_scale, middle, output_norm, output_eps, quantize
    )
