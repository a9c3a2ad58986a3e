"""Random low-bit weights and rows, and the bit-equality of products of integers."""

import torch

import taut
from taut.formats import LowbitWeight, pack_codes
from taut.reference import lowbit_gemm as reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def weight_of(
    out_features, in_features, bits, group_size=0, zero_point=None, codebook=None, powers=False
):
    """A random weight; zero_point: None, "whole" or "half"; codebook: None, "shared" or "own"."""
    codes = torch.randint(2**bits, (out_features, in_features), dtype=torch.uint8)
    groups = -(-in_features // group_size) if group_size else 1
    shape = (out_features, groups)
    scale = 2.0 ** torch.randint(-3, 3, shape) if powers else 0.5 + torch.rand(shape)
    if zero_point is not None:
        zero_point = torch.randint(2**bits, shape) + (0.5 if zero_point == "half" else 0.0)
    if codebook is not None:
        codebook = torch.randn((2**bits,) if codebook == "shared" else (out_features, 2**bits))
    packed = pack_codes(codes, bits)
    return LowbitWeight(packed, scale, zero_point, codebook, bits, in_features, group_size)


def codes_of(rows, in_features, bits=8):
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, in_features), dtype=torch.int8)


def operands(weight, x, x_scale=None, bias=None, x_bits=8):
    return (
        x, x_scale, weight.packed, weight.scale, weight.zero_point, weight.codebook, bias,
        weight.out_features, weight.bits, weight.group_size, x_bits,
    )  # fmt: skip


def integer_variant(isa, rows):
    """Blocks of rows are as equal as they come, so the last may be too low for tiles."""
    if isa == "amx" and rows >= 17:
        return f"{isa}/tiles"
    return f"{isa}/vnni" if isa.startswith(("avx512_bf16", "amx")) else isa


def check_integers(rows, weight, x_zero_point=0.0, x_groups=1, bias=None, x=None):
    """Bit-equality: scales are powers of two, so that every fp32 operation is exact."""
    x = codes_of(rows, weight.in_features) if x is None else x
    x_scale = 2.0 ** torch.randint(-2, 3, (rows, x_groups))
    options = {"x_zero_point": x_zero_point, "out_dtype": torch.float32}
    got = taut.lowbit_linear(x, weight, bias, x_scale=x_scale, **options)
    want = reference.lowbit_linear(*operands(weight, x, x_scale, bias), **options)
    assert torch.equal(got, want)
