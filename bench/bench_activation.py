"""Bias and activation in one pass, plain and gated, against torch's calls one after the other."""

import torch
from torch.nn import functional

import taut

from .cases import DTYPES, Case, Work, against, compiled, size_of

QUICK = (512, 3072)  # without what takes seconds to compile


def build(case: Case, device: torch.device) -> Work:
    rows, columns = case.axes["rows"], case.axes["columns"]
    x = torch.randn(rows, columns, device=device).to(DTYPES[case.dtype])
    bias = torch.randn(columns, device=device).to(DTYPES[case.dtype])
    if case.op == "bias_activation":

        def plain(x, bias):
            return functional.gelu(x + bias)

        def ours():
            return taut.bias_activation(x, bias)
    else:

        def plain(x, bias):
            inner, gate = (x + bias).chunk(2, 1)
            return functional.silu(inner) * gate

        def ours():
            return taut.bias_glu(x, bias, "silu")

    out = plain(x, bias)
    fused = compiled(plain)
    return Work(
        runs={
            "taut": ours,
            "torch": lambda: plain(x, bias),
            "torch compiled": lambda: fused(x, bias),
        },
        check=against(plain(x.double(), bias.double()), out),
        tokens=rows,
        bytes=size_of(x, bias, out),
    )


CASES = [
    Case(
        op=op,
        text=f"{activation}, {rows} x {columns}",
        dtype=dtype,
        axes={"rows": rows, "columns": columns, "activation": activation},
        contenders=("taut", "torch", *(() if (rows, columns) == QUICK else ("torch compiled",))),
        build=build,
        quick=(rows, columns) == QUICK,
    )
    for op, activation in (("bias_activation", "gelu"), ("bias_glu", "silu"))
    for dtype in ("fp32", "bf16")
    for rows, columns in ((64, 1536), (512, 1536), (512, 3072), (4096, 3072))
]


def test_activation(contender, replay):
    replay(contender)
