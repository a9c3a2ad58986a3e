"""Packed linear layers against torch's linear and oneDNN with a prepacked weight, side by side.

    python bench/bench_dense_gemm.py [--threads 2] [--seconds 0.5] [--json FILE]

All candidates of a row take turns in one process. `onednn` is what torch.compile's inductor calls
for a frozen linear; for a fused row every peer does the same work with the fewest torch calls.
"""

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional

import taut
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


def measure(functions, seconds):
    """Turns of every function until the time is used, at least 5: {name: seconds of each turn}."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["taut"]) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def run(fusion, dtype, rows, in_features, out_features, seconds):
    x = torch.randn(rows, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    bias, scale = torch.randn(2, out_features).to(dtype)
    residual = torch.randn(rows, out_features).to(dtype)
    functions = candidates(fusion, x, weight, bias, residual, scale)
    wide = [t.double() for t in (x, weight, bias, residual, scale)]
    with torch.no_grad():
        exact = functional.linear(*wide[:3])
        if fusion == "linear+gelu":
            exact = functional.gelu(exact)
        elif fusion != "linear":
            exact = functional.layer_norm(exact + wide[3], (out_features,), wide[4], wide[2])
    errors = {name: (f().double() - exact).abs().max().item() for name, f in functions.items()}
    times = measure(functions, seconds)
    flops = 2 * rows * in_features * out_features
    return {
        "fusion": fusion,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "in_features": in_features,
        "out_features": out_features,
        "variant": last_variant("packed_linear" if "norm" not in fusion else
                                "packed_linear_layer_norm"),
        "median_s": {name: statistics.median(t) for name, t in times.items()},
        "min_s": {name: min(t) for name, t in times.items()},
        "gflops": {name: flops / statistics.median(t) / 1e9 for name, t in times.items()},
        "max_error": errors,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="per row of the table")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", help="write every number to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    results = []
    for fusion, shapes in FUSIONS.items():
        print(f"\n{fusion}: GFLOP/s by median; ratios of medians and (minima): taut is faster > 1")
        for dtype in (torch.float32, torch.bfloat16):
            for rows in options.rows:
                for in_features, out_features in shapes:
                    row = run(fusion, dtype, rows, in_features, out_features, options.seconds)
                    results.append(row)
                    rates = "  ".join(f"{n} {g:6.1f}" for n, g in row["gflops"].items())
                    ratios = "  ".join(
                        f"{name} {row['median_s'][name] / row['median_s']['taut']:.2f}"
                        f" ({row['min_s'][name] / row['min_s']['taut']:.2f})"
                        for name in row["gflops"]
                        if name != "taut"
                    )
                    label = f"{row['dtype']:8} {rows:5} {in_features:5} {out_features:5}"
                    error = row["max_error"]["taut"] / max(row["max_error"]["torch"], 1e-30)
                    print(f"{label}  {rates}  | {ratios} | error / torch's {error:.2f}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "threads": options.threads, "rows": results},
                      file, indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
