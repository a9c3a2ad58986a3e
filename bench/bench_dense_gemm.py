"""Packed linear layers against torch's linear and oneDNN with a prepacked weight.

`onednn prepacked` is what torch.compile's inductor calls for a frozen linear; for a fused case every
peer does the same work with the fewest calls.
"""

import torch
from torch.nn import functional

import taut
from taut.registry import OPS

from .cases import DTYPES, Case, Work, against, by_name, guarded, size_of

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
        # Peers may add long rows in one chain.
        check=against(plain(*(t.double() for t in operands)), out, ulps=8),
        tokens=rows,
        flops=2 * rows * weight.numel(),
        bytes=size_of(x, weight, out),
    )


def build_packing(case: Case, device: torch.device) -> Work:
    """A weight to the order that kernels read, and back."""
    out_features, in_features = case.axes["out_features"], case.axes["in_features"]
    weight = torch.randn(out_features, in_features).to(DTYPES[case.dtype])
    packed = taut.pack_weight(weight)
    if case.op == "pack_weight":
        expected = OPS["pack_weight"].reference(weight)
        run = lambda: taut.pack_weight(weight)  # noqa: E731
        onednn = lambda: torch.ops.mkldnn._reorder_linear_weight(weight, 512)  # noqa: E731
    else:
        expected = weight
        run = lambda: taut.unpack_weight(packed, out_features, in_features)  # noqa: E731

        def prepack():
            prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, 512)
            return lambda: prepacked.to_dense()

        onednn = guarded(prepack)

    def dense(name, out):
        return against(weight, weight)(name, out.to_dense() if out.is_mkldnn else out)

    return Work(
        runs={"taut": run, "onednn prepacked": onednn},
        check=by_name({"taut": against(expected, expected), "": dense}),
        tokens=out_features,
        bytes=2 * size_of(weight),
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

CASES += [
    Case(
        op=op,
        text="3072 x 768",
        dtype=dtype,
        axes={"out_features": 3072, "in_features": 768},
        contenders=("taut", "onednn prepacked"),
        build=build_packing,
        devices=("cpu",),
    )
    for op in ("pack_weight", "unpack_weight")
    for dtype in ("fp32", "bf16")
]


def test_dense_gemm(contender, replay):
    replay(contender)
