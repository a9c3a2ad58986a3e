"""Quantization of activations against the same maths in plain torch, side by side.

    python bench/bench_quantize.py [--threads 2] [--quick] [--json FILE]

`torch` composes the fewest torch calls; `torch.ao` is quantized_decomposed's dynamic quantization per
token, which also finds a zero point; `clone` copies x: what reading and writing memory costs.
"""

import argparse
from pathlib import Path

import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers quantized_decomposed)
from torch.nn import functional

import taut
from runner import interleaved, write_json
from taut._native import last_variant

SHAPES = ((64, 384), (512, 384), (512, 768), (512, 3072), (4096, 768))
FACTORS = {384: (16, 24), 768: (24, 32), 3072: (48, 64)}
SECONDS = 0.4  # per row of the table and candidate


def plain_quantize(x):
    x = x.float()
    absmax = x.abs().amax(1, keepdim=True)
    return (x * (127 / absmax)).round().clamp(-127, 127).to(torch.int8), absmax / 127


def decomposed_quantize(x):
    ops = torch.ops.quantized_decomposed
    scale, zero_point = ops._choose_qparams_per_token_asymmetric_impl(x, torch.int8)
    return ops.quantize_per_token(x, scale, zero_point, -128, 127, torch.int8), scale


def cases(x):
    """{op: {candidate: function of no arguments}}"""
    columns = x.shape[1]
    weight, bias = torch.randn(2, columns).to(x.dtype)
    residual = torch.randn_like(x)
    a, b = FACTORS[columns]
    left, right = torch.randn(a, a).to(x.dtype), torch.randn(b, b).to(x.dtype)

    def norm():
        return functional.layer_norm(x + residual, (columns,), weight, bias)

    def kronecker():
        return (left.T @ x.view(-1, a, b) @ right).reshape(x.shape)

    return {
        "quantize_per_token": {
            "taut": lambda: taut.quantize_per_token(x),
            "torch": lambda: plain_quantize(x),
            "torch.ao": lambda: decomposed_quantize(x),
            "clone": x.clone,
        },
        "layer_norm_quantize": {
            "taut": lambda: taut.layer_norm_quantize(x, weight, bias, residual=residual),
            "torch": lambda: plain_quantize(norm()),
            "taut.layer_norm": lambda: taut.layer_norm(x, weight, bias, residual=residual),
        },
        "kronecker": {"taut": lambda: taut.kronecker(x, left, right), "torch": kronecker},
    }


def run(op, functions, x, quick):
    first = interleaved(functions, 3)
    slowest = max(t.median for t in first.values())
    rounds = 2 if quick else max(5, min(300, round(SECONDS / slowest)))
    times = interleaved(functions, rounds)
    return {
        "op": op,
        "dtype": str(x.dtype).removeprefix("torch."),
        "rows": x.shape[0],
        "columns": x.shape[1],
        "variant": last_variant(op),
        "rounds": rounds,
        **times,
    }


def report(row, names):
    label = f"{row['op']:20} {row['dtype']:8} {row['rows']:5} {row['columns']:5}"
    ours = row["taut"]
    ratios = "  ".join(
        f"{name} {row[name].median / ours.median:.1f} ({row[name].low / ours.low:.1f})"
        for name in names
        if name != "taut"
    )
    print(f"{label}  {ours.low * 1e6:8.1f} us  | {ratios}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--quick", action="store_true", help="one shape, few rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    results = []
    print("op, dtype, rows, columns; least time of taut; time of the peer / time of taut")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES[:1] if options.quick else SHAPES:
            x = torch.randn(shape).to(dtype)
            for op, functions in cases(x).items():
                results.append(run(op, functions, x, options.quick))
                report(results[-1], functions)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
