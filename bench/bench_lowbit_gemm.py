"""Linear layers over low-bit weights against bf16 and against torch's integer linears, side by side.

    python bench/bench_lowbit_gemm.py [--threads 2] [--gflop 60] [--quick] [--json FILE]

x is bf16 and quantized per token inside, except w4a16. All candidates of a row take turns in one
process. `onednn` is static int8 with a prepacked weight: its x comes quantized, which costs it
nothing here. `_weight_int8pack_mm` and `_weight_int4pack_mm_for_cpu` keep x in bf16; they and
`_int_mm` (which gives int32) are left out where they take very long or do not apply.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional

import taut
from runner import interleaved, write_json
from taut._native import last_variant
from taut.formats import LowbitWeight, pack_codes

SHAPES = ((384, 1536), (768, 768), (768, 3072), (3072, 768))  # in_features, out_features
ROWS = (1, 16, 512, 2048)
GROUP = 128  # of the int4 peer
FEW_ROWS = 16


def quantized(weight, bits):
    """Per channel; 2 bits are ternary."""
    top = max(1, 2 ** (bits - 1) - 1)
    scale = weight.abs().amax(1, keepdim=True).float() / top
    zero_point = torch.ones_like(scale) if bits == 2 else None
    codes = (weight / scale).round() + (1 if bits == 2 else 2 ** (bits - 1))
    packed = pack_codes(codes.to(torch.uint8), bits)
    return LowbitWeight(packed, scale, zero_point, None, bits, weight.shape[1])


def onednn(x, weight, bias):
    codes = quantized(weight, 8)
    signed = (codes.codes.int() - 128).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(signed, list(x.shape))
    x_scale = x.abs().max().item() / 127
    x_codes = ((x.float() / x_scale).round() + 128).clamp(0, 255).to(torch.uint8)
    scales, zeros = codes.scale[:, 0].contiguous(), torch.zeros(len(weight), dtype=torch.long)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x_codes, x_scale, 128, packed, scales, zeros, bias, 1.0, 0, torch.bfloat16, "none", [], ""
    )


def candidates(x, weight, bias):
    rows, out_features = len(x), len(weight)
    weights = {bits: quantized(weight, bits) for bits in (8, 4, 2)}
    dense = taut.pack_weight(weight.bfloat16())
    bias_bf16 = bias.bfloat16()
    wide_x, wide = x.float(), taut.pack_weight(weight)
    int8 = (weights[8].codes.int() - 128).to(torch.int8)
    scale8 = weights[8].scale[:, 0].bfloat16()
    functions = {
        "w8a8": lambda: taut.lowbit_linear(x, weights[8], bias),
        "w4a8": lambda: taut.lowbit_linear(x, weights[4], bias),
        "w2a8": lambda: taut.lowbit_linear(x, weights[2], bias),
        "w4a16": lambda: taut.lowbit_linear(x, weights[4], bias, activation="none"),
        "bf16": lambda: taut.packed_linear(x, dense, bias_bf16, out_features=out_features),
        "fp32": lambda: taut.packed_linear(wide_x, wide, bias, out_features=out_features),
        "onednn": onednn(x, weight, bias),
    }
    if rows <= FEW_ROWS:
        codes = torch.randint(16, weight.shape, dtype=torch.int32)
        int4 = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        groups = torch.rand(weight.shape[1] // GROUP, out_features, 2).bfloat16()
        functions["int8pack"] = lambda: torch.ops.aten._weight_int8pack_mm(x, int8, scale8)
        functions["int4pack"] = lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, int4, GROUP, groups
        )
    else:
        x_codes = torch.randint(-127, 128, x.shape, dtype=torch.int8)
        transposed = int8.T.contiguous()
        functions["_int_mm"] = lambda: torch._int_mm(x_codes, transposed)
    return functions


def run(rows, in_features, out_features, gflop):
    x = torch.randn(rows, in_features).bfloat16()
    weight = torch.randn(out_features, in_features) / in_features**0.5
    bias = torch.randn(out_features)
    functions = candidates(x, weight, bias)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    errors = {}
    for name in ("w8a8", "w4a8", "w2a8", "w4a16", "bf16", "fp32", "onednn"):
        error = (functions[name]().double() - exact).square().mean() / exact.square().mean()
        errors[name] = error.sqrt().item()
    functions["w8a8"]()
    variant = last_variant("lowbit_linear")
    size = 2e-9 * rows * in_features * out_features
    rounds = min(max(5, round(gflop / size / len(functions))), 1000)
    times = interleaved(functions, rounds)
    return {
        "rows": rows,
        "in_features": in_features,
        "out_features": out_features,
        "variant": variant,
        "rounds": rounds,
        "gops": {name: size / t.low for name, t in times.items()},
        "relative_error": errors,
        **times,
    }


def report(row):
    label = f"{row['rows']:5} {row['in_features']:5} {row['out_features']:5}"
    rates = "  ".join(f"{name} {rate:5.0f}" for name, rate in row["gops"].items())
    ours = row["w8a8"]
    ratios = "  ".join(
        f"{name} {row[name].low / ours.low:.2f} ({row[name].median / ours.median:.2f})"
        for name in row["gops"]
        if name not in ("w8a8", "w4a8", "w2a8", "w4a16")
    )
    errors = "  ".join(f"{name} {error:.1e}" for name, error in row["relative_error"].items())
    print(f"{label}  {rates}\n{'':17}  w8a8 against: {ratios}", flush=True)
    print(f"{'':17}  error: {errors}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gflop", type=float, default=60, help="work per line, all candidates")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.gflop = (1, 16), 0
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    results = []
    print(
        "rows, in, out; GOP/s by minimum; time of the peer / time of w8a8 by minima and (medians)"
    )
    print("error: root mean square of the error over that of the exact result, unquantized weights")
    for rows in options.rows:
        for in_features, out_features in SHAPES:
            results.append(run(rows, in_features, out_features, options.gflop))
            report(results[-1])
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
