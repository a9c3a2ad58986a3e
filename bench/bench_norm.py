"""LayerNorm and RMSNorm, with the residual before them, against torch's."""

import torch
from torch.nn import functional

import taut
from taut.reference import norm as reference

from .cases import DTYPES, Case, Work, against, compiled, size_of

EPS = 1e-5
QUICK = (512, 768)  # without what takes seconds to compile


def build(case: Case, device: torch.device) -> Work:
    rows, columns = case.axes["rows"], case.axes["columns"]
    x, residual = torch.randn(2, rows, columns, device=device).to(DTYPES[case.dtype])
    weight, bias = torch.randn(2, columns, device=device).to(DTYPES[case.dtype])
    wide = [t.double() for t in (x, residual, weight, bias)]
    if case.op == "layer_norm":

        def plain(x, residual, weight, bias):
            return functional.layer_norm(x + residual, (columns,), weight, bias, EPS)

        def ours():
            return taut.layer_norm(x, weight, bias, residual=residual, eps=EPS)

        exact = reference.layer_norm(wide[0], wide[1], None, *wide[2:], EPS, False)[0]
    else:

        def plain(x, residual, weight, bias):
            return functional.rms_norm(x + residual, (columns,), weight, EPS)

        def ours():
            return taut.rms_norm(x, weight, residual=residual, eps=EPS)

        exact = reference.rms_norm(wide[0], wide[1], None, wide[2], EPS, False)[0]
    torch_out = plain(x, residual, weight, bias)
    fused = compiled(plain)
    return Work(
        runs={
            "taut": ours,
            "torch": lambda: plain(x, residual, weight, bias),
            "torch compiled": lambda: fused(x, residual, weight, bias),
        },
        check=against(exact, torch_out),
        tokens=rows,
        flops=8 * x.numel(),
        bytes=size_of(x, residual, torch_out),
    )


CASES = [
    Case(
        op=op,
        text=f"{rows} x {columns}, residual",
        dtype=dtype,
        axes={"rows": rows, "columns": columns},
        contenders=("taut", "torch", *(() if (rows, columns) == QUICK else ("torch compiled",))),
        build=build,
        quick=(rows, columns) == QUICK,
    )
    for op in ("layer_norm", "rms_norm")
    for dtype in ("fp32", "bf16")
    for rows, columns in ((64, 384), (512, 384), (512, 768), (4096, 768))
]


def test_norm(contender, replay):
    replay(contender)
