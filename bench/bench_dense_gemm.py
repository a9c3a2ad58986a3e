"""Packed linear layers against torch's linear and oneDNN with a prepacked weight, side by side.

    python bench/bench_dense_gemm.py [--threads 2] [--gflop 60] [--quick] [--json FILE]

All candidates of a row take turns in one process. `onednn` is what torch.compile's inductor calls
for a frozen linear; for a fused row every peer does the same work with the fewest torch calls.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional

import taut
from runner import interleaved, write_json
from taut._native import last_variant

SHAPES = ((384, 1152), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
ROWS = (1, 8, 32, 128, 512, 2048)
FUSIONS = {
    "linear": SHAPES,
    "linear+gelu": ((384, 1536), (768, 3072)),
    "linear+residual+layer_norm": ((384, 384), (1536, 384), (768, 768), (3072, 768)),
}


def candidates(fusion, x, weight, bias, residual, scale):
    out_features = weight.shape[0]
    packed = taut.pack_weight(weight)
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])

    def onednn(post="none", algorithm=""):
        return torch.ops.mkldnn._linear_pointwise(x, reordered, bias, post, [], algorithm)

    def norm(total):
        return functional.layer_norm(total, (out_features,), scale, bias)

    if fusion == "linear":
        return {
            "taut": lambda: taut.packed_linear(x, packed, bias, out_features=out_features),
            "onednn": onednn,
            "torch": lambda: functional.linear(x, weight, bias),
        }
    if fusion == "linear+gelu":
        return {
            "taut": lambda: taut.packed_linear(
                x, packed, bias, out_features=out_features, activation="gelu"
            ),
            "onednn": lambda: functional.gelu(onednn()),
            "onednn fused": lambda: onednn("gelu", "none"),
            "torch": lambda: functional.gelu(functional.linear(x, weight, bias)),
        }
    return {
        "taut": lambda: taut.packed_linear_layer_norm(x, packed, bias, residual, scale, bias),
        "onednn": lambda: norm(onednn() + residual),
        "torch": lambda: norm(functional.linear(x, weight, bias) + residual),
    }


def run(fusion, dtype, rows, in_features, out_features, gflop):
    x = torch.randn(rows, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    bias, scale = torch.randn(2, out_features).to(dtype)
    residual = torch.randn(rows, out_features).to(dtype)
    functions = candidates(fusion, x, weight, bias, residual, scale)
    wide = [t.double() for t in (x, weight, bias, residual, scale)]
    exact = functional.linear(*wide[:3])
    if fusion == "linear+gelu":
        exact = functional.gelu(exact)
    elif fusion != "linear":
        exact = functional.layer_norm(exact + wide[3], (out_features,), wide[4], wide[2])
    errors = {name: (f().double() - exact).abs().max().item() for name, f in functions.items()}
    size = 2e-9 * rows * in_features * out_features
    rounds = min(max(5, round(gflop / size / len(functions))), 1000)
    times = interleaved(functions, rounds)
    op = "packed_linear_layer_norm" if "norm" in fusion else "packed_linear"
    return {
        "fusion": fusion,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "in_features": in_features,
        "out_features": out_features,
        "variant": last_variant(op),
        "rounds": rounds,
        "gflops": {name: size / t.median for name, t in times.items()},
        "max_error": errors,
        **times,
    }


def report(row):
    label = f"{row['dtype']:8} {row['rows']:5} {row['in_features']:5} {row['out_features']:5}"
    rates = "  ".join(f"{name} {rate:6.1f}" for name, rate in row["gflops"].items())
    ours = row["taut"]
    ratios = "  ".join(
        f"{name} {row[name].median / ours.median:.2f} ({row[name].low / ours.low:.2f})"
        for name in row["gflops"]
        if name != "taut"
    )
    error = row["max_error"]["taut"] / row["max_error"]["torch"]
    print(f"{label}  {rates}  | {ratios} | error / torch's {error:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gflop", type=float, default=60, help="work per line, all candidates")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.gflop = (1, 32), 0
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    results = []
    for fusion, shapes in FUSIONS.items():
        print(
            f"\n{fusion}: dtype, rows, in, out; GFLOP/s by median; time of the peer / time of taut"
        )
        print("by medians and (by minima)")
        for dtype in (torch.float32, torch.bfloat16):
            for rows in options.rows:
                for in_features, out_features in shapes:
                    results.append(
                        run(fusion, dtype, rows, in_features, out_features, options.gflop)
                    )
                    report(results[-1])
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
