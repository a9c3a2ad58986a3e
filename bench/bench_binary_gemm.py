"""Packing signs, and linear layers over 1-bit weights, against torch's on the same values.

The peers get the signs (or codes) as floating-point numbers, or as int8, so all contenders of a case
compute the same products; int8 takes no part in W1A4, whose codes its own steps would round. What
taut takes is packed before anything is timed. Its result must be the reference's to the last bit, but
that a multiply-add may be rounded once or twice.
"""

import torch
from torch.nn import functional

import taut
from taut.registry import OPS

from .bench_lowbit_gemm import onednn as static_int8
from .cases import Case, Work, against, by_name, guarded, largest_difference, size_of

SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))
ACTIVATIONS = {"W1A1": 1, "W1A1 ternary": 2, "W1A2": 1, "W1A4": 7, "W1A8": 127}  # largest code
BF16 = {"axes": {"bits": 16}, "dtype": "bf16", "roof": "bf16"}
FP32 = {"axes": {"bits": 32}, "dtype": "fp32", "roof": "fp32"}
INT8 = {"axes": {"bits": 8}, "dtype": "int8", "roof": "int8"}
PEERS = ("torch fp32", "torch bf16", "onednn bf16 prepacked", "onednn static int8")


def _activations(kind, x):
    """What binary_linear takes for x, and the numbers it stands for."""
    top = ACTIVATIONS[kind]
    if kind == "W1A1":
        return taut.pack_bits(x), torch.where(x > 0, 1.0, -1.0)
    if kind == "W1A1 ternary":
        bits = taut.pack_bits(x, rails=2)
        return bits, taut.unpack_bits(bits, x.shape[1]).float()
    codes = (x * (top / x.abs().amax(1, keepdim=True))).round().to(torch.int8)
    return codes, codes.float()


def build(case: Case, device: torch.device) -> Work:
    axes = case.axes
    rows, in_features, out_features = axes["rows"], axes["in_features"], axes["out_features"]
    operand, x = _activations(axes["activation"], torch.randn(rows, in_features, device=device))
    signs = torch.where(torch.randn(out_features, in_features, device=device) > 0, 1.0, -1.0)
    scale, bias = torch.rand(2, out_features, device=device)
    packed = taut.pack_binary_weight(taut.pack_bits(signs))
    weight = signs * scale[:, None]
    half = [t.bfloat16() for t in (x, weight, bias)]
    options = {"in_features": in_features, "out_dtype": torch.bfloat16}
    if operand.dtype == torch.int8:
        options["x_scale"] = torch.ones(rows, 1, device=device)
    runs = {
        "taut": lambda: taut.binary_linear(operand, packed, scale, bias, **options),
        "torch fp32": lambda: functional.linear(x, weight, bias),
        "torch bf16": lambda: functional.linear(*half),
    }
    if device.type == "cpu" and torch.backends.mkldnn.is_available():

        def onednn():
            prepacked = torch.ops.mkldnn._reorder_linear_weight(half[1], rows)
            return lambda: torch.ops.mkldnn._linear_pointwise(
                half[0], prepacked, half[2], "none", [], ""
            )

        runs["onednn bf16 prepacked"] = guarded(onednn)
        if "onednn static int8" in case.contenders:
            runs["onednn static int8"] = guarded(
                lambda: static_int8(x, signs.to(torch.int8), scale, bias)[0]
            )
    exact = functional.linear(x.double(), signs.double()) * scale.double() + bias
    fused = exact.float().bfloat16()
    reference = OPS["binary_linear"].reference(
        operand, options.get("x_scale"), packed, scale, bias, out_features, in_features,
        out_dtype=torch.bfloat16,
    )  # fmt: skip

    def to_the_bit(_, out):
        nearest = torch.where(out == fused, fused, reference)
        return {"error": largest_difference(out, nearest), "allowed_error": 0.0}

    def wide(facts):
        operands = (x.numel() + signs.numel()) * facts["axes"]["bits"] // 8
        return facts | {"bytes": operands + 2 * rows * out_features}

    return Work(
        runs=runs,
        check=by_name({"taut": to_the_bit, "": against(exact, functional.linear(*half))}),
        tokens=rows,
        flops=2 * rows * signs.numel(),
        bytes=size_of(operand) + signs.numel() // 8 + 2 * rows * out_features,
        own={
            "torch fp32": wide(FP32),
            "torch bf16": wide(BF16),
            "onednn bf16 prepacked": wide(BF16),
            "onednn static int8": wide(INT8),
        },
    )


def build_pack(case: Case, device: torch.device) -> Work:
    x = torch.randn(case.axes["rows"], case.axes["in_features"], device=device)
    weights = 1 << torch.arange(64, device=device)

    def pack():
        return ((x > 0).view(len(x), -1, 64) * weights).sum(2)

    expected = pack()
    return Work(
        runs={"taut": lambda: taut.pack_bits(x), "torch": pack},
        check=against(expected, expected, lambda _, out: out.view(expected.shape)),
        tokens=len(x),
        bytes=size_of(x, expected),
    )


def build_unpack(case: Case, device: torch.device) -> Work:
    rows, columns = case.axes["rows"], case.axes["in_features"]
    bits = taut.pack_bits(torch.randn(rows, columns, device=device))
    places = torch.arange(64, device=device)

    def unpack():
        signs = (bits[..., None] >> places).bitwise_and_(1).to(torch.int8)
        return signs.view(rows, columns).mul_(2).sub_(1)

    expected = unpack()
    return Work(
        runs={"taut": lambda: taut.unpack_bits(bits, columns), "torch": unpack},
        check=against(expected, expected),
        tokens=rows,
        bytes=size_of(bits, expected),
    )


def build_chained(case: Case, device: torch.device) -> Work:
    """What stands between the layers of a binarized encoder: bits out by thresholds, or residual +
    LayerNorm with bf16 and bits out."""
    axes = case.axes
    rows, in_features, out_features = axes["rows"], axes["in_features"], axes["out_features"]
    bits, x = _activations("W1A1", torch.randn(rows, in_features, device=device))
    signs = torch.where(torch.randn(out_features, in_features, device=device) > 0, 1.0, -1.0)
    packed = taut.pack_binary_weight(taut.pack_bits(signs))
    sums = functional.linear(x, signs)
    moved = size_of(bits) + signs.numel() // 8 + rows * out_features // 8
    if case.op == "binary_linear_bits":
        thresholds = torch.randint(-20, 20, (out_features,), device=device, dtype=torch.int32)
        limits = thresholds.float()
        ones = torch.ones(out_features, device=device)
        expected = (sums > limits).float()
        runs = {
            "taut": lambda: taut.binary_linear_bits(
                bits, packed, thresholds, in_features=in_features
            ),
            "taut unfused": lambda: taut.pack_bits(
                taut.binary_linear(bits, packed, ones, in_features=in_features), limits
            ),
            "torch fp32": lambda: functional.linear(x, signs) > limits,
        }

        def as_bits(_, out):
            return (
                out.float()
                if out.dtype == torch.bool
                else (taut.unpack_bits(out, out_features).float().add(1).div(2))
            )

        check = against(expected, expected, as_bits)
    else:
        scale, bias = torch.rand(2, out_features, device=device)
        residual = torch.randn(rows, out_features, device=device)
        norm = torch.rand(2, out_features, device=device)
        half = [t.bfloat16() for t in (x, signs * scale[:, None], bias, residual, *norm)]
        wide = [t.float() for t in half]

        def plain(x, weight, bias, residual, *norm):
            y = functional.linear(x, weight, bias) + residual
            return functional.layer_norm(y, (out_features,), *norm)

        runs = {
            "taut": lambda: taut.binary_linear_layer_norm(
                bits, packed, scale, bias, half[3], *half[4:], in_features=in_features
            )[0],
            "torch fp32": lambda: plain(*wide),
            "torch bf16": lambda: plain(*half),
        }
        double = [t.double() for t in (x, signs * scale[:, None], bias, *half[3:])]
        check = against(plain(*double), plain(*half))
        moved += 4 * rows * out_features
    own = {
        name: (FP32 if name == "torch fp32" else BF16) | {"bytes": size_of(x, sums)}
        for name in PEERS
        if name in runs
    }
    return Work(
        runs=runs,
        check=check,
        tokens=rows,
        flops=2 * rows * signs.numel(),
        bytes=moved,
        own=own,
    )


CHAINED = {
    "binary_linear_bits": (("taut", "taut unfused", "torch fp32"), ((768, 2304), (768, 3072))),
    "binary_linear_layer_norm": (("taut", "torch fp32", "torch bf16"), ((768, 768), (3072, 768))),
}
CASES = [
    *(
        Case(
            op="binary_linear",
            text=f"{kind}, {rows} x {in_features} to {out_features}",
            dtype=kind.split()[0].lower(),
            axes={
                "activation": kind, "rows": rows, "in_features": in_features,
                "out_features": out_features, "bits": 1,
            },
            contenders=("taut", *(PEERS[:-1] if kind == "W1A4" else PEERS)),
            build=build,
            roof="popcount",
            quick=(kind, rows, in_features, out_features) == ("W1A1", 512, 768, 3072),
        )
        for rows in (1, 128, 512, 2048)
        for in_features, out_features in SHAPES
        for kind in (ACTIVATIONS if (in_features, out_features) == (768, 3072) else ("W1A1",))
    ),
    *(
        Case(
            op=op,
            text=f"{rows} x {columns}",
            dtype=dtype,
            axes={"rows": rows, "in_features": columns, "bits": 1},
            contenders=("taut", "torch"),
            build=build,
            quick=(op, rows, columns) == ("pack_bits", 512, 768),
        )
        for op, dtype, build in (("pack_bits", "fp32", build_pack), ("unpack_bits", "bits", build_unpack))
        for rows, columns in ((512, 768), (512, 3072), (2048, 768))
    ),
    *(
        Case(
            op=op,
            text=f"W1A1, {rows} x {in_features} to {out_features}",
            dtype="w1a1",
            axes={
                "activation": "W1A1", "rows": rows, "in_features": in_features,
                "out_features": out_features, "bits": 1,
            },
            contenders=contenders,
            build=build_chained,
            roof="popcount",
        )
        for op, (contenders, shapes) in CHAINED.items()
        for rows in (32, 512)
        for in_features, out_features in shapes
    ),
]  # fmt: skip


def test_binary_gemm(contender, replay):
    replay(contender)
