"""Packing signs, and linear layers over 1-bit weights, against torch's on the same values.

The peers get the signs (or codes) as floating-point numbers, so all contenders of a case compute the
same products. What taut takes is packed before anything is timed. Its result must be the reference's
to the last bit, but that a multiply-add may be rounded once or twice.
"""

import torch
from torch.nn import functional

import taut
from taut.registry import OPS

from .cases import Case, Work, against, by_name, guarded, largest_difference, size_of

SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))
ACTIVATIONS = {"W1A1": 1, "W1A1 ternary": 2, "W1A2": 1, "W1A4": 7, "W1A8": 127}  # largest code
BF16 = {"axes": {"bits": 16}, "dtype": "bf16", "roof": "bf16"}
FP32 = {"axes": {"bits": 32}, "dtype": "fp32", "roof": "fp32"}
PEERS = ("torch fp32", "torch bf16", "onednn bf16 prepacked")


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
    exact = functional.linear(x.double(), signs.double()) * scale.double() + bias
    fused = exact.float().bfloat16()
    reference = OPS["binary_linear"].reference(
        operand, options.get("x_scale"), packed, scale, bias, out_features, in_features,
        out_dtype=torch.bfloat16,
    )  # fmt: skip

    def to_the_bit(_, out):
        nearest = torch.where(out == fused, fused, reference)
        return {"error": largest_difference(out, nearest), "allowed_error": 0.0}

    def wide(like, bits):
        moved = size_of(like) + signs.numel() * bits // 8 + 2 * rows * out_features
        return (FP32 if bits == 32 else BF16) | {"bytes": moved}

    return Work(
        runs=runs,
        check=by_name({"taut": to_the_bit, "": against(exact, functional.linear(*half))}),
        tokens=rows,
        flops=2 * rows * signs.numel(),
        bytes=size_of(operand) + signs.numel() // 8 + 2 * rows * out_features,
        own={
            "torch fp32": wide(x, 32),
            "torch bf16": wide(half[0], 16),
            "onednn bf16 prepacked": wide(half[0], 16),
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
            contenders=("taut", *PEERS),
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
            op="pack_bits",
            text=f"{rows} x {columns}",
            dtype="fp32",
            axes={"rows": rows, "in_features": columns, "bits": 1},
            contenders=("taut", "torch"),
            build=build_pack,
            quick=(rows, columns) == (512, 768),
        )
        for rows, columns in ((512, 768), (512, 3072), (2048, 768))
    ),
]  # fmt: skip


def test_binary_gemm(contender, replay):
    replay(contender)
