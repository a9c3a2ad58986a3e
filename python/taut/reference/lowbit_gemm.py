"""What the ops over low-bit weights mean.

With integer activations q (scale sa, zero point za) and weight codes c (scale sw, zero point zw),
per group of input features

    C   = sum q c                          whole numbers, exact
    Ra  = sum q,   Rw = sum c              whole numbers, exact
    v   = float(C - floor(zw) Ra) - (zw - floor(zw)) Ra - za (Rw - K zw)
    y   = sum over groups of v (sa sw)     in fp32, group by group

so that only the last line rounds as the backend likes, and not even that where there is one group.
"""

import torch
from torch.nn import functional

from taut.formats import BITS, BLOCK, GROUP_SIZES, PANEL, dequantize_codes, pack_codes, unpack_codes
from taut.reference._check import FLOATS, check_choice, check_optional_tensor, check_tensor
from taut.reference.dense_gemm import ACTIVATIONS
from taut.reference.quantize import quantize_per_token, quantize_rows

MAX_IN_FEATURES = 65536  # 255 * 128 * 65536 < 2^31: sums stay within int32
OUT_DTYPES = (torch.float32, torch.bfloat16)
X_BITS = (0, 4, 8)  # 0: activations stay floating point


def _packed_shape(out_features, in_features, bits):
    panels, blocks = -(-out_features // PANEL), -(-in_features // BLOCK)
    return (panels, blocks, 2 * bits, PANEL, 4)


def check_pack_lowbit(codes, bits, in_features):
    op = "pack_lowbit"
    check_choice(op, "bits", bits, BITS)
    shape = (None, -(-in_features * bits // 8))
    meaning = f"(out_features, {shape[1]}), codes of {bits} bits"
    check_tensor(op, "codes", codes, shape, meaning, (torch.uint8,))
    if codes.numel() == 0:
        raise ValueError(f"{op}: codes must not be empty, got {tuple(codes.shape)}")


def check_unpack_lowbit(packed, bits, out_features, in_features):
    _check_packed("unpack_lowbit", packed, bits, out_features, in_features)


def _check_packed(op, packed, bits, out_features, in_features):
    check_choice(op, "bits", bits, BITS)
    for name, value in (("out_features", out_features), ("in_features", in_features)):
        if value < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {value}")
    shape = _packed_shape(out_features, in_features, bits)
    meaning = f"{shape}, pack_lowbit of a ({out_features}, {in_features}) weight of {bits} bits"
    check_tensor(op, "packed", packed, shape, meaning, (torch.uint8,))


def check_operands(
    op,
    x,
    x_scale,
    packed,
    scale,
    zero_point,
    codebook,
    bias,
    out_features,
    bits,
    group_size,
    x_bits,
):
    integers = isinstance(x, torch.Tensor) and x.dtype == torch.int8
    check_tensor(op, "x", x, (None, None), "(total_tokens, in_features)", (*FLOATS, torch.int8))
    rows, in_features = x.shape
    check_choice(op, "group_size", group_size, GROUP_SIZES)
    check_choice(op, "x_bits", x_bits, X_BITS)
    _check_packed(op, packed, bits, out_features, in_features)
    groups = -(-in_features // group_size) if group_size else 1
    shape = (out_features, groups)
    check_tensor(op, "scale", scale, shape, f"{shape}", (torch.float32,))
    check_optional_tensor(op, "zero_point", zero_point, shape, f"{shape}", (torch.float32,))
    if codebook is not None:
        shape = (2**bits,) if codebook.dim() == 1 else (out_features, 2**bits)
        meaning = f"({2**bits},) or ({out_features}, {2**bits})"
        check_tensor(op, "codebook", codebook, shape, meaning, (torch.float32,))
        if x_bits or integers:
            raise ValueError(f"{op}: x_bits must be 0 with a codebook, got {x_bits}")
    if integers:
        if x_scale is None:
            raise ValueError(f"{op}: x_scale must be given with x of int8, got None")
        accepted = sorted({1, groups})
        if x_scale.dim() == 2 and x_scale.shape[1] not in accepted:
            accepted = " or ".join(map(str, accepted))
            raise ValueError(f"{op}: x_scale must have {accepted} columns, got {x_scale.shape[1]}")
        check_tensor(op, "x_scale", x_scale, (rows, None), f"({rows}, groups)", (torch.float32,))
    elif x_scale is not None:
        raise ValueError(f"{op}: x_scale must be None unless x is int8, got x of {x.dtype}")
    if (integers or x_bits) and in_features > MAX_IN_FEATURES:
        raise ValueError(
            f"{op}: in_features must be at most {MAX_IN_FEATURES} for integer products, "
            f"got {in_features}"
        )
    columns = (out_features,)
    check_optional_tensor(op, "bias", bias, columns, str(columns), (torch.float32, *FLOATS))


def check_lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, out_dtype=None,
):  # fmt: skip
    op = "lowbit_linear"
    check_operands(
        op, x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip
    check_choice(op, "epilogue", epilogue, tuple(ACTIVATIONS))
    if x.dtype == torch.int8 and out_dtype not in FLOATS:
        raise ValueError(
            f"{op}: out_dtype must be float32, bfloat16 or float16 with x of int8, got {out_dtype}"
        )
    shape, like = (x.shape[0], out_features), (_out_dtype(x, out_dtype),)
    check_optional_tensor(op, "residual", residual, shape, f"{shape}", like)


def check_lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", out_bits=8, out_group_size=0,
):  # fmt: skip
    op = "lowbit_linear_quantize"
    check_operands(
        op, x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip
    check_choice(op, "epilogue", epilogue, tuple(ACTIVATIONS))
    check_choice(op, "out_bits", out_bits, (4, 8))
    check_choice(op, "out_group_size", out_group_size, GROUP_SIZES)


def check_lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, norm_weight, norm_bias, eps, quantize=False, quant_weight=None, quant_bias=None,
):  # fmt: skip
    op = "lowbit_linear_layer_norm"
    check_operands(
        op, x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip
    shape = (x.shape[0], out_features)
    check_tensor(op, "residual", residual, shape, f"{shape}", FLOATS)
    affine = {
        "norm_weight": norm_weight, "norm_bias": norm_bias,
        "quant_weight": quant_weight, "quant_bias": quant_bias,
    }  # fmt: skip
    for name, value in affine.items():
        check_optional_tensor(op, name, value, shape[1:], str(shape[1:]), (residual.dtype,))


def _blocks(unpacked, panels, blocks):
    """(panels * 64, blocks * 64) -> (panels, blocks, quad of k, channel, member of the quad)."""
    return unpacked.view(panels, PANEL, blocks, BLOCK // 4, 4).permute(0, 2, 3, 1, 4)


def pack_lowbit(codes, bits, in_features):
    rows = codes.shape[0]
    shape = _packed_shape(rows, in_features, bits)
    padded = codes.new_full((shape[0] * PANEL, shape[1] * BLOCK), 2 ** (bits - 1))
    padded[:rows, :in_features] = unpack_codes(codes, bits, in_features)
    quads = _blocks(padded, *shape[:2])  # 16 quads of k per block
    if bits == 8:
        return quads.contiguous()
    if bits == 4:
        return quads[:, :, 0::2] | (quads[:, :, 1::2] << 4)
    packed = sum((quads[:, :, t::4] & 3) << (2 * t) for t in range(4))
    if bits == 3:
        top = sum((quads[:, :, t::8] >> 2) << t for t in range(8))
        packed = torch.cat((packed, top), 2)
    return packed


def unpack_lowbit(packed, bits, out_features, in_features):
    panels, blocks = packed.shape[:2]
    if bits == 8:
        quads = packed
    elif bits == 4:
        quads = torch.stack((packed & 15, packed >> 4), 3).flatten(2, 3)
    else:
        quads = torch.stack([(packed[:, :, :4] >> (2 * t)) & 3 for t in range(4)], 3).flatten(2, 3)
        if bits == 3:
            top = torch.stack([(packed[:, :, 4:] >> t) & 1 for t in range(8)], 3).flatten(2, 3)
            quads = quads | (top << 2)
    codes = quads.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, blocks * BLOCK)
    return pack_codes(codes[:out_features, :in_features].contiguous(), bits)


def _out_dtype(x, out_dtype):
    return x.dtype if out_dtype is None else out_dtype


def _integer_products(q, x_scale, codes, scale, zero_point, bits, group_size, x_zero_point):
    """The sums of the module's docstring, fp32 (rows, out_features)."""
    in_features = q.shape[1]
    size = group_size or in_features
    if zero_point is None:
        zero_point = torch.full_like(scale, 2.0 ** (bits - 1))
    total = scale.new_zeros((q.shape[0], codes.shape[0]))
    for g, begin in enumerate(range(0, in_features, size)):
        qg, cg = (t[:, begin : begin + size].double() for t in (q, codes))  # exact below 2^53
        whole = zero_point[:, g].floor()
        sums = qg.sum(1, keepdim=True)
        v = (qg @ cg.T - whole.double() * sums).float()
        v = v - (zero_point[:, g] - whole) * sums.float()
        if x_zero_point:
            v = v - x_zero_point * (cg.sum(1) - qg.shape[1] * zero_point[:, g].double()).float()
        total = total + v * (x_scale[:, [min(g, x_scale.shape[1] - 1)]] * scale[:, g])
    return total


def _linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    x_zero_point=0.0,
):  # fmt: skip
    """x W^T + bias, fp32."""
    codes = unpack_lowbit(packed, bits, out_features, x.shape[1])
    codes = unpack_codes(codes, bits, x.shape[1])
    if x.dtype != torch.int8 and x_bits:
        x, x_scale = quantize_per_token(x, bits=x_bits)
    if x.dtype == torch.int8:
        total = _integer_products(
            x, x_scale, codes, scale, zero_point, bits, group_size, x_zero_point
        )
    else:
        weight = dequantize_codes(codes, scale, zero_point, codebook, bits, group_size)
        total = x.to(weight.dtype) @ weight.T
    return total if bias is None else total + bias.float()


def lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, out_dtype=None,
):  # fmt: skip
    total = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits, x_zero_point,
    )  # fmt: skip
    total = ACTIVATIONS[epilogue](total)
    if residual is not None:
        total = total + residual.float()
    return total.to(_out_dtype(x, out_dtype))


def lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", out_bits=8, out_group_size=0,
):  # fmt: skip
    total = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip
    total = ACTIVATIONS[epilogue](total)
    return quantize_per_token(total, bits=out_bits, group_size=out_group_size)


def lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, norm_weight, norm_bias, eps, quantize=False, quant_weight=None, quant_bias=None,
):  # fmt: skip
    total = _linear(
        x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size,
        x_bits,
    )  # fmt: skip
    total = total + residual.float()

    def normalized(*affine):
        affine = (None if t is None else t.to(total.dtype) for t in affine)
        return functional.layer_norm(total, total.shape[1:], *affine, eps)

    out = normalized(norm_weight, norm_bias)
    if quantize:
        migrated = out
        if quant_weight is not None or quant_bias is not None:
            migrated = normalized(quant_weight, quant_bias)
        q, q_scale = quantize_rows(migrated, 8)
        return out.to(residual.dtype), q, q_scale[:, None]
    return out.to(residual.dtype), x.new_empty((0, 0), dtype=torch.int8), scale.new_empty((0, 0))
