"""Quantization of activations against the same maths in plain torch.

`torch.ao` is quantized_decomposed's dynamic quantization per token, which also finds a zero point.
"""

import torch
from torch.nn import functional

import taut

from .cases import DTYPES, Case, Work, against, size_of

SHAPES = ((64, 384), (512, 384), (512, 768), (512, 3072), (4096, 768))
CLOSE = 1.01  # codes are the same but for ties
FACTORS = {384: (16, 24), 768: (24, 32), 3072: (48, 64)}


def plain_quantize(x):
    x = x.float()
    absmax = x.abs().amax(1, keepdim=True)
    return (x * (127 / absmax)).round().clamp(-127, 127).to(torch.int8), absmax / 127


def decomposed_quantize(x):
    import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers quantized_decomposed)

    ops = torch.ops.quantized_decomposed
    scale, zero_point = ops._choose_qparams_per_token_asymmetric_impl(x, torch.int8)
    q = ops.quantize_per_token(x, scale, zero_point, -128, 127, torch.int8)
    return q, scale, zero_point


def _values(name, out) -> torch.Tensor:
    """What codes and scales stand for; layer_norm_quantize gives its float output first."""
    if name == "torch.ao":
        q, scale, zero_point = out
        return (q.double() - zero_point) * scale
    q, scale = out[-2:]
    return q.double() * scale.double().view(len(q), -1)


def build(case: Case, device: torch.device) -> Work:
    rows, columns = case.axes["rows"], case.axes["columns"]
    x, residual = torch.randn(2, rows, columns, device=device).to(DTYPES[case.dtype])
    weight, bias = torch.randn(2, columns, device=device).to(DTYPES[case.dtype])
    if case.op == "quantize_per_token":

        def check(name, out):
            plain = decomposed_quantize if name == "torch.ao" else plain_quantize
            expected = _values(name, plain(x))
            return against(x.double(), expected, _values, factor=CLOSE)(name, out)

        return Work(
            runs={
                "taut": lambda: taut.quantize_per_token(x),
                "torch": lambda: plain_quantize(x),
                "torch.ao": lambda: decomposed_quantize(x),
            },
            check=check,
            tokens=rows,
            bytes=size_of(x) + x.numel() + 4 * rows,
        )

    def norm(x, residual, weight, bias):
        return functional.layer_norm(x + residual, (columns,), weight, bias)

    operands = (x, residual, weight, bias)
    return Work(
        runs={
            "taut": lambda: taut.layer_norm_quantize(x, weight, bias, residual=residual),
            "torch": lambda: plain_quantize(norm(*operands)),
        },
        check=against(
            norm(*(t.double() for t in operands)),
            _values("torch", plain_quantize(norm(*operands))),
            _values,
            factor=CLOSE,
        ),
        tokens=rows,
        bytes=size_of(x, residual, x) + x.numel() + 4 * rows,
    )


def build_kronecker(case: Case, device: torch.device) -> Work:
    rows, columns = case.axes["rows"], case.axes["columns"]
    a, b = FACTORS[columns]
    x, left, right = (
        torch.randn(shape, device=device).to(DTYPES[case.dtype])
        for shape in ((rows, columns), (a, a), (b, b))
    )

    def plain(x, left, right):
        return (left.T @ x.view(-1, a, b) @ right).reshape(x.shape)

    out = plain(x, left, right)
    return Work(
        runs={
            "taut": lambda: taut.kronecker(x, left, right),
            "torch": lambda: plain(x, left, right),
        },
        check=against(plain(x.double(), left.double(), right.double()), out),
        tokens=rows,
        flops=2 * rows * columns * (a + b),
        bytes=size_of(x, left, right, out),
    )


CONTENDERS = {
    "quantize_per_token": ("taut", "torch", "torch.ao"),
    "layer_norm_quantize": ("taut", "torch"),
    "kronecker": ("taut", "torch"),
}
CASES = [
    Case(
        op=op,
        text=f"{rows} x {columns}",
        dtype=dtype,
        axes={"rows": rows, "columns": columns},
        contenders=contenders,
        build=build_kronecker if op == "kronecker" else build,
        roof=dtype if op == "kronecker" else None,
        quick=(rows, columns) == (512, 768),
    )
    for op, contenders in CONTENDERS.items()
    for dtype in ("fp32", "bf16")
    for rows, columns in SHAPES
]


def test_quantize(contender, replay):
    replay(contender)
