"""Packed linear layers against torch's linear and oneDNN with a prepacked weight.

`onednn prepacked` is what torch.compile's inductor calls for a frozen linear; for a fused case every
peer does the same work with the fewest calls.
"""

import torch
from torch.nn import functional

import taut

from .cases import DTYPES, Case, Work, against, guarded, size_of

ROWS = (1, 8, 32, 128, 512, 2048)
SHAPES = {  # in_features, out_features
    "linear": ((384, 1152), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768)),
    "linear + gelu": ((384, 1536), (768, 3072)),
    "linear + residual + layer_norm": ((384, 384), (1536, 384), (768, 768), (3072, 768)),
}
FUSED_ROWS = (32, 512)
QUICK = {("linear", 512, 768, 3072), ("linear", 1, 768, 768), ("linear + gelu", 512, 768, 3072),
         ("linear + residual + layer_norm", 512, 3072, 768)}  # fmt: skip
PEERS = {
    "linear": ("onednn prepacked", "torch"),
    "linear + gelu": ("onednn prepacked", "onednn prepacked, fused", "torch"),
    "linear + residual + layer_norm": ("onednn prepacked", "torch"),
}


def build(case: Case, device: torch.device) -> Work:
    dtype, axes = DTYPES[case.dtype], case.axes
    rows, in_features, out_features = axes["rows"], axes["in_features"], axes["out_features"]
    x = torch.randn(rows, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    bias, scale = torch.randn(2, out_features).to(dtype)
    residual = torch.randn(rows, out_features).to(dtype)
    packed = taut.pack_weight(weight)
    runs = {}
    if torch.backends.mkldnn.is_available():

        def prepack():  # there is no bf16 without AVX-512 or AVX-NE-CONVERT
            prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            return lambda post="none", algorithm="": torch.ops.mkldnn._linear_pointwise(
                x, prepacked, bias, post, [], algorithm
            )

        onednn = guarded(prepack)
        runs["onednn prepacked"] = lambda: finish(onednn(), residual, scale, bias)
        runs["onednn prepacked, fused"] = lambda: onednn("gelu", "none")

    if axes["fusion"] == "linear":
        runs["taut"] = lambda: taut.packed_linear(x, packed, bias, out_features=out_features)

        def finish(y, residual, scale, bias):
            return y
    elif axes["fusion"] == "linear + gelu":
        runs["taut"] = lambda: taut.packed_linear(
            x, packed, bias, out_features=out_features, activation="gelu"
        )

        def finish(y, residual, scale, bias):
            return functional.gelu(y)
    else:
        runs["taut"] = lambda: taut.packed_linear_layer_norm(x, packed, bias, residual, scale, bias)

        def finish(y, residual, scale, bias):
            return functional.layer_norm(y + residual, (out_features,), scale, bias)

    def plain(x, weight, bias, residual, scale):
        return finish(functional.linear(x, weight, bias), residual, scale, bias)

    operands = (x, weight, bias, residual, scale)
    runs["torch"] = lambda: plain(*operands)
    out = runs["torch"]()
    return Work(
        runs=runs,
        check=against(plain(*(t.double() for t in operands)), out),
        tokens=rows,
        flops=2 * rows * weight.numel(),
        bytes=size_of(x, weight, out),
    )


CASES = [
    Case(
        op="packed_linear_layer_norm" if "norm" in fusion else "packed_linear",
        text=f"{fusion}, {rows} x {in_features} to {out_features}",
        dtype=dtype,
        axes={
            "fusion": fusion,
            "rows": rows,
            "in_features": in_features,
            "out_features": out_features,
        },
        contenders=("taut", *PEERS[fusion]),
        build=build,
        roof=dtype,
        quick=(fusion, rows, in_features, out_features) in QUICK,
        devices=("cpu",),
    )
    for fusion, shapes in SHAPES.items()
    for dtype in ("fp32", "bf16")
    for rows in (ROWS if fusion == "linear" else FUSED_ROWS)
    for in_features, out_features in shapes
]


def test_dense_gemm(contender, replay):
    replay(contender)
