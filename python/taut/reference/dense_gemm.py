"""What the ops over packed dense weights mean. Sums are taken in fp32 (fp64 for fp64 input) and the
result is rounded once at the end."""

import torch
from torch.nn import functional

from taut.formats import PANEL
from taut.reference._check import check_choice, check_optional_tensor, check_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def _packed_shape(out_features, in_features, dtype):
    panels = (out_features + PANEL - 1) // PANEL
    if dtype == torch.bfloat16:
        return (panels, (in_features + 1) // 2, PANEL, 2)
    return (panels, in_features, PANEL)


def _check_packed(op, packed, out_features, in_features, dtypes):
    for name, value in (("out_features", out_features), ("in_features", in_features)):
        if value < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {value}")
    dtype = dtypes[0] if len(dtypes) == 1 else packed.dtype
    shape = _packed_shape(out_features, in_features, dtype)
    meaning = f"{shape}, pack_weight of a ({out_features}, {in_features}) weight"
    check_tensor(op, "packed", packed, shape, meaning, dtypes)


def check_pack_weight(weight):
    op = "pack_weight"
    check_tensor(op, "weight", weight, (None, None), "(out_features, in_features)", DTYPES)
    if weight.numel() == 0:
        raise ValueError(
            f"{op}: weight must have at least one row and column, got {tuple(weight.shape)}"
        )


def check_unpack_weight(packed, out_features, in_features):
    _check_packed("unpack_weight", packed, out_features, in_features, DTYPES)


def check_packed_linear(x, packed, bias, out_features, activation, op="packed_linear"):
    check_tensor(op, "x", x, (None, None), "(total_tokens, in_features)", DTYPES)
    _check_packed(op, packed, out_features, x.shape[1], (x.dtype,))
    shape = (out_features,)
    check_optional_tensor(op, "bias", bias, shape, str(shape), (x.dtype, torch.float32))
    check_choice(op, "activation", activation, tuple(ACTIVATIONS))


def check_packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    op = "packed_linear_layer_norm"
    check_tensor(op, "x", x, (None, None), "(total_tokens, in_features)", DTYPES)
    shape, meaning = (x.shape[0], None), f"({x.shape[0]}, out_features)"
    check_tensor(op, "residual", residual, shape, meaning, (x.dtype,))
    columns = tuple(residual.shape[1:])
    _check_packed(op, packed, columns[0], x.shape[1], (x.dtype,))
    check_optional_tensor(op, "bias", bias, columns, str(columns), (x.dtype, torch.float32))
    for name, value in (("weight", weight), ("norm_bias", norm_bias)):
        check_optional_tensor(op, name, value, columns, str(columns), (x.dtype,))


def _wide(t):
    return t.to(torch.promote_types(t.dtype, torch.float32))


def pack_weight(weight):
    rows, columns = weight.shape
    shape = _packed_shape(rows, columns, weight.dtype)
    if len(shape) == 4:  # (panel, k-pair, output channel, member of the pair)
        padded = weight.new_zeros((shape[0] * PANEL, shape[1] * 2))
        padded[:rows, :columns] = weight
        return padded.view(shape[0], PANEL, shape[1], 2).permute(0, 2, 1, 3).contiguous()
    padded = weight.new_zeros((shape[0] * PANEL, columns))
    padded[:rows] = weight
    return padded.view(shape[0], PANEL, columns).permute(0, 2, 1).contiguous()


def unpack_weight(packed, out_features, in_features):
    by_channel = packed.permute(0, 2, 1, 3) if packed.dim() == 4 else packed.permute(0, 2, 1)
    rows = packed.shape[0] * PANEL
    return by_channel.reshape(rows, -1)[:out_features, :in_features].contiguous()


def _linear(x, packed, bias, out_features):
    weight = unpack_weight(packed, out_features, x.shape[1])
    total = _wide(x) @ _wide(weight).T
    return total if bias is None else total + _wide(bias)


def packed_linear(x, packed, bias, out_features, activation):
    return ACTIVATIONS[activation](_linear(x, packed, bias, out_features)).to(x.dtype)


def packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    total = _linear(x, packed, bias, residual.shape[1]) + _wide(residual)
    scale, shift = (None if t is None else t.to(total.dtype) for t in (weight, norm_bias))
    return functional.layer_norm(total, total.shape[1:], scale, shift, eps).to(x.dtype)
