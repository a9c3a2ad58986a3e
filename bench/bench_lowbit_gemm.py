"""Linear layers over low-bit weights, alone and fused with what follows them, against bf16 and
against torch's integer linears.

x is bf16; ours quantize it per token inside, but for w4a16. What an integer peer needs of x is given
to it, at no cost: codes for `onednn static int8` and `_int_mm` (which stops at int32). Errors are
against the product of what was quantized, and a contender is allowed twice what bf16 makes of it;
`quantization_error` is the difference to the product that nothing quantizes.
"""

import functools

import torch
from torch.nn import functional

import taut
from taut.formats import LowbitWeight, pack_codes
from taut.registry import OPS

from .cases import Case, Work, against, by_name, guarded, largest_difference, size_of

SHAPES = ((384, 1536), (768, 768), (768, 3072), (3072, 768))  # in_features, out_features
ROWS = (1, 16, 128, 512, 2048)
FEW_ROWS = 16  # those that keep x in bf16 take very long for more
GROUP = 128  # of the int4 peer
BITS = {"taut w8a8": 8, "taut w4a8": 4, "taut ternary": 2, "taut w4a16": 4}
BF16 = {"axes": {"bits": 16}, "dtype": "bf16", "roof": "bf16"}
WIDE_X = ("taut w4a16", "_weight_int8pack_mm", "_weight_int4pack_mm")  # products in bf16
WITHOUT_BIAS = ("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm")


def quantized(weight, bits, device):
    """Per channel, packed, and the values its codes stand for; 2 bits are ternary."""
    top = max(1, 2 ** (bits - 1) - 1)
    scale = weight.abs().amax(1, keepdim=True).float() / top
    zero_point = torch.ones_like(scale) if bits == 2 else None
    codes = (weight / scale).round() + (1 if bits == 2 else 2 ** (bits - 1))
    made = LowbitWeight(
        pack_codes(codes.to(torch.uint8), bits), scale, zero_point, None, bits, weight.shape[1]
    )
    there = [None if t is None else t.to(device) for t in (made.codes, scale, zero_point)]
    moved = LowbitWeight(*there, None, bits, weight.shape[1], _packed=made.packed.to(device))
    return moved, made.dequantize().to(device)


def per_token(x, bits=8):
    """Codes and scales (rows, 1)."""
    scale = x.float().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (x.float() / scale).round().to(torch.int8), scale


def onednn(x, int8, scales, bias, post="none", out_scale=None):
    """Static int8 with a prepacked weight, and the x that its codes stand for. The output is bf16;
    with out_scale unsigned codes around 128."""
    packed = torch.ops.onednn.qlinear_prepack(int8, list(x.shape))
    scale = x.abs().max().item() / 127
    codes = ((x.float() / scale).round() + 128).clamp(0, 255).to(torch.uint8)
    zeros = torch.zeros(len(int8), dtype=torch.long)
    out = (1.0, 0, torch.bfloat16) if out_scale is None else (out_scale, 128, torch.uint8)
    run = lambda: torch.ops.onednn.qlinear_pointwise(  # noqa: E731
        codes,
        scale,
        128,
        packed,
        scales,
        zeros,
        bias,
        *out,
        post,
        [],
        "none" if post == "gelu" else "",
    )
    return run, (codes.double() - 128) * scale


def int4_linear(x, weight):
    """Weight-only int4 in groups, and the weight that its codes stand for."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    middle = (low + 8 * scale).bfloat16().float()  # what code 8 stands for
    codes = ((groups - middle) / scale + 8).round().clamp(0, 15)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int().flatten(1), 1)
    both = torch.stack([scale[..., 0], middle[..., 0]], 2).transpose(0, 1).contiguous().bfloat16()
    run = lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, both)  # noqa: E731
    return run, ((codes - 8) * scale + middle).flatten(1).double()


def build(case: Case, device: torch.device) -> Work:
    rows, in_features = case.axes["rows"], case.axes["in_features"]
    out_features = case.axes["out_features"]
    x = torch.randn(rows, in_features, device=device).bfloat16()
    weight = torch.randn(out_features, in_features) / in_features**0.5
    weights, values = {}, {}
    for bits in (8, 4, 2):  # packed on the CPU, whatever the device
        weights[bits], values[bits] = quantized(weight, bits, device)
    weight, bias = weight.to(device), torch.randn(out_features, device=device)
    codes, x_scale = per_token(x)
    rounded_x = codes.double() * x_scale
    bf16_weight, bf16_bias = weight.bfloat16(), bias.bfloat16()
    dense = taut.pack_weight(bf16_weight)
    int8 = (weights[8].codes.int() - 128).to(torch.int8)
    scales = weights[8].scale[:, 0].contiguous()
    transposed = int8.T if device.type == "cuda" else int8.T.contiguous()

    def ours(name):
        activation = "none" if name == "taut w4a16" else "int8"
        return lambda: taut.lowbit_linear(x, weights[BITS[name]], bias, activation=activation)

    runs = {
        **{name: ours(name) for name in BITS},
        "taut bf16": lambda: taut.packed_linear(x, dense, bf16_bias, out_features=out_features),
        "torch bf16": lambda: functional.linear(x, bf16_weight, bf16_bias),
        "_int_mm": lambda: torch._int_mm(codes, transposed),
    }
    # The operands of what each contender computes, if it makes no other error.
    meant = {
        **{name: (rounded_x, values[bits]) for name, bits in BITS.items()},
        "taut w4a16": (x, values[4]),
        "_int_mm": (rounded_x, values[8]),
        "": (x, bf16_weight),
    }

    def static_int8():
        run, static_x = onednn(x, int8, scales, bias)
        meant["onednn static int8"] = (static_x, values[8])
        return run

    def int8pack():
        half = scales.bfloat16()
        meant["_weight_int8pack_mm"] = (x, int8 * half[:, None].double())
        return lambda: torch.ops.aten._weight_int8pack_mm(x, int8, half)

    def int4pack():
        run, int4 = int4_linear(x, weight)
        meant["_weight_int4pack_mm"] = (x, int4)
        return run

    if device.type == "cpu":
        setups = {
            "onednn static int8": static_int8,
            "_weight_int8pack_mm": int8pack,
            "_weight_int4pack_mm": int4pack,
        }
        runs |= {name: guarded(setups[name]) for name in case.contenders if name in setups}

    def result(name, out):
        if name == "_int_mm":
            out = out * x_scale * scales
        return out.double() + bias if name in WITHOUT_BIAS else out

    def product(x, weight):
        return functional.linear(x.double(), weight.double(), bias.double())

    unquantized = functools.cache(lambda: product(x, weight))

    def check(name, out):
        operands, out = meant.get(name, meant[""]), result(name, out)
        plain = functional.linear(*(t.bfloat16() for t in operands), bf16_bias)
        lost = largest_difference(out, unquantized())
        return against(product(*operands), plain, ulps=1)(name, out) | {"quantization_error": lost}

    own = {name: {"axes": {"bits": bits}} for name, bits in BITS.items()}
    own |= {name: dict(BF16) for name in ("taut bf16", "torch bf16")}
    own |= {"_weight_int4pack_mm": {"axes": {"bits": 4}}, "_weight_int8pack_mm": {}}
    for name in WIDE_X:
        own[name]["roof"] = "bf16"
    besides = size_of(x) + 2 * rows * out_features
    for facts in own.values():
        bits = facts.get("axes", case.axes)["bits"]
        facts["bytes"] = besides + weight.numel() * bits / 8
    return Work(
        runs=runs,
        check=check,
        tokens=rows,
        flops=2 * rows * weight.numel(),
        bytes=besides + weight.numel(),
        ops={"taut bf16": "packed_linear"},
        own=own,
    )


def build_fused(case: Case, device: torch.device) -> Work:
    """W8A8 with GELU and int8 out, or with residual, LayerNorm, and both bf16 and int8 out."""
    axes = case.axes
    rows, in_features, out_features = axes["rows"], axes["in_features"], axes["out_features"]
    to_codes = case.op == "lowbit_linear_quantize"
    x, residual = torch.randn(rows, in_features).bfloat16(), torch.randn(rows, out_features)
    weight, values = quantized(
        torch.randn(out_features, in_features) / in_features**0.5, 8, torch.device("cpu")
    )
    bias, norm_weight = torch.randn(2, out_features)
    residual, half = residual.bfloat16(), [t.bfloat16() for t in (values, bias, norm_weight)]
    dense = taut.pack_weight(half[0])
    codes, x_scale = per_token(x)

    def finish(y, dtype=torch.bfloat16):
        if to_codes:
            return functional.gelu(y)
        norm = half[2].to(dtype), half[1].to(dtype)
        return functional.layer_norm(y + residual.to(dtype), (out_features,), *norm)

    def exact(x):
        return finish(functional.linear(x.double(), values.double(), bias.double()), torch.double)

    def torch_bf16():
        return finish(functional.linear(x, half[0], half[1]))

    expected, static_x = exact(codes.double() * x_scale), None
    reach = expected.abs().max().item() / 127
    if to_codes:
        runs = {
            "taut": lambda: taut.lowbit_linear_quantize(x, weight, bias, epilogue="gelu"),
            "taut unfused": lambda: taut.quantize_per_token(
                taut.lowbit_linear(x, weight, bias, epilogue="gelu")
            ),
        }
    else:
        norm = half[2], half[1]
        runs = {
            "taut": lambda: taut.lowbit_linear_layer_norm(
                x, weight, bias, residual, *norm, quantize=True
            ),
            "taut unfused": lambda: taut.layer_norm_quantize(
                taut.lowbit_linear(x, weight, bias), *norm, residual=residual
            ),
            "taut bf16": lambda: taut.packed_linear_layer_norm(x, dense, half[1], residual, *norm),
        }
    runs["torch bf16"] = torch_bf16

    def static_int8():
        nonlocal static_x
        int8 = (weight.codes.int() - 128).to(torch.int8)
        options = {"post": "gelu", "out_scale": reach} if to_codes else {}
        run, static_x = onednn(x, int8, weight.scale[:, 0].contiguous(), bias, **options)
        return run if to_codes else lambda: finish(run())

    runs["onednn static int8"] = guarded(static_int8)

    def rounded(_, out):  # a step of its own grid, half of it for the rounding
        q, scale = out
        return {
            "error": largest_difference(q.double() * scale, expected),
            "allowed_error": scale.max().item(),
        }

    def static(name, out):
        meant = exact(static_x)
        if not to_codes:
            return against(meant, torch_bf16(), ulps=1)(name, out)
        error = largest_difference((out.double() - 128) * reach, meant)
        return {"error": error, "allowed_error": reach}

    def normalized(name, out):
        return against(expected, torch_bf16())(name, out[0])

    ours = rounded if to_codes else normalized
    wide = {**BF16, "bytes": 2 * values.numel() + size_of(x) + 4 * rows * out_features}
    return Work(
        runs=runs,
        check=by_name(
            {
                "taut": ours,
                "taut unfused": ours,
                "onednn static int8": static,
                "": against(exact(x), torch_bf16()),
            }
        ),
        tokens=rows,
        flops=2 * rows * values.numel(),
        bytes=size_of(x) + values.numel() + (1 if to_codes else 5) * rows * out_features,
        ops={"taut bf16": "packed_linear_layer_norm"},
        own={"taut bf16": wide, "torch bf16": wide},
    )


def build_packing(case: Case, device: torch.device) -> Work:
    """Codes to the order that kernels read, and back."""
    bits = case.axes["bits"]
    out_features, in_features = case.axes["out_features"], case.axes["in_features"]
    codes = pack_codes(torch.randint(0, 1 << bits, (out_features, in_features)).byte(), bits)
    packed = taut.pack_lowbit(codes, bits, in_features)
    given, result = (codes, packed) if case.op == "pack_lowbit" else (packed, codes)
    sizes = (bits, in_features) if case.op == "pack_lowbit" else (bits, out_features, in_features)
    return Work(
        runs={
            "taut": lambda: getattr(taut, case.op)(given, *sizes),
            "torch": lambda: OPS[case.op].reference(given, *sizes),
        },
        check=against(result, result),
        tokens=out_features,
        bytes=size_of(given, result),
    )


def _contenders(rows):
    if rows <= FEW_ROWS:
        return ("_weight_int8pack_mm", "_weight_int4pack_mm")
    return ("onednn static int8", "_int_mm")


FUSED = {
    "lowbit_linear_quantize": ("linear + gelu + quantize", ((384, 1536), (768, 3072))),
    "lowbit_linear_layer_norm": (
        "linear + residual + layer_norm + quantize", ((384, 384), (768, 768), (3072, 768)),
    ),
}  # fmt: skip
CASES = [
    Case(
        op="lowbit_linear",
        text=f"{rows} x {in_features} to {out_features}",
        dtype="int8",
        axes={"rows": rows, "in_features": in_features, "out_features": out_features, "bits": 8},
        contenders=(*BITS, "taut bf16", "torch bf16", *_contenders(rows)),
        build=build,
        roof="int8",
        quick=(rows, in_features, out_features) in ((1, 768, 768), (512, 768, 3072)),
    )
    for rows in ROWS
    for in_features, out_features in SHAPES
]
CASES += [
    Case(
        op=op,
        text=f"{fusion}, {rows} x {in_features} to {out_features}",
        dtype="int8",
        axes={"rows": rows, "in_features": in_features, "out_features": out_features, "bits": 8},
        contenders=(
            "taut", "taut unfused", *(("taut bf16",) if "norm" in fusion else ()), "torch bf16",
            "onednn static int8",
        ),
        build=build_fused,
        roof="int8",
        devices=("cpu",),
    )
    for op, (fusion, shapes) in FUSED.items()
    for rows in (32, 512)
    for in_features, out_features in shapes
]  # fmt: skip
CASES += [
    Case(
        op=op,
        text=f"{bits} bits, 3072 x 768",
        dtype="codes",
        axes={"out_features": 3072, "in_features": 768, "bits": bits},
        contenders=("taut", "torch"),
        build=build_packing,
        devices=("cpu",),
    )
    for op in ("pack_lowbit", "unpack_lowbit")
    for bits in (8, 4, 3)
]


def test_lowbit_gemm(contender, replay):
    replay(contender)
