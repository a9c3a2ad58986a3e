"""What a call of each public op costs before any work: microseconds on tiny inputs, beside
torch.add. Every round times all ops once, so that a noisy moment meets them all; the least counts.

    python bench/bench_overhead.py [--quick] [--json FILE]
"""

import argparse
import time
from pathlib import Path

import torch

import taut
from runner import write_json

CALLS = 200
ROUNDS = 40
QUICK_ROUNDS = 2


def cases():
    """{name: function of no arguments}: torch.add first, then the public ops."""
    x, residual = torch.randn(2, 4, 16)
    vector = torch.ones(16)
    ids = torch.tensor([3, 1, 2, 0])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    lengths = torch.tensor([2, 3])
    cu_seqlens = torch.tensor([0, 1, 4], dtype=torch.int32)
    qkv = torch.randn(4, 3, 1, 16)
    q, k, v = qkv.unbind(1)
    packed = taut.pack_weight(torch.randn(16, 16))
    square = torch.eye(4)
    return {
        "torch.add": lambda: torch.add(x, residual),
        "torch layer_norm": lambda: torch.nn.functional.layer_norm(x, (16,), vector, vector),
        "layer_norm": lambda: taut.layer_norm(x, vector, vector),
        "layer_norm, residual": lambda: taut.layer_norm(x, vector, vector, residual=residual),
        "rms_norm": lambda: taut.rms_norm(x, vector),
        "bias_activation": lambda: taut.bias_activation(x, vector),
        "bias_glu": lambda: taut.bias_glu(x, vector),
        "embed_layer_norm": lambda: taut.embed_layer_norm(
            ids, x, positions=ids, position=residual, weight=vector, norm_bias=vector
        ),
        "varlen_attention": lambda: taut.varlen_attention(q, k, v, cu_seqlens),
        "varlen_attention_qkvpacked": lambda: taut.varlen_attention_qkvpacked(qkv, cu_seqlens),
        "packed_linear": lambda: taut.packed_linear(x, packed, vector, out_features=16),
        "packed_linear_layer_norm": lambda: taut.packed_linear_layer_norm(
            x, packed, vector, residual, vector, vector
        ),
        "quantize_per_token": lambda: taut.quantize_per_token(x),
        "layer_norm_quantize": lambda: taut.layer_norm_quantize(x, vector, vector),
        "kronecker": lambda: taut.kronecker(x, square, square),
        "pool": lambda: taut.pool(x, cu_seqlens),
        "pack_mask": lambda: taut.pack_mask(mask),
        "pack_lengths": lambda: taut.pack_lengths(lengths, 3),
        "gather_rows": lambda: taut.gather_rows(x, ids),
        "scatter_rows": lambda: taut.scatter_rows(x, ids, 5),
    }


def microseconds_per_call(functions, rounds):
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                function()
            best[name] = min(best[name], (time.perf_counter() - begin) / CALLS * 1e6)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    results = {"grad mode": microseconds_per_call(cases(), rounds)}
    with torch.inference_mode():
        results["inference mode"] = microseconds_per_call(cases(), rounds)
    print(f"{'us per call':28s}" + "".join(f"{mode:>16s}" for mode in results))
    for name in results["grad mode"]:
        print(f"{name:28s}" + "".join(f"{figures[name]:16.2f}" for figures in results.values()))
    if options.json:
        rows = [{"op": name, **{mode: figures[name] for mode, figures in results.items()}}
                for name in results["grad mode"]]  # fmt: skip
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
