"""Binary attention and 1-bit linears on the CPU against torch's SDPA and linear, side by side.

Attention: 12 heads of 64 channels; SDPA runs in a loop over the sequences. Lengths 128, 512, 2048,
and 32 quantiles of a log-normal distribution of natural text. Linears: BERT-base shapes; `onednn`
has its weight prepacked. All contenders of a row take turns in one process; ratios of medians and,
in brackets, of minima.

    python bench/bench_binary.py [--threads 2] [--seconds 6] [--isa avx2] [--quick] [--json FILE]
    python bench/bench_binary.py --cpu-time    # one thread's CPU time, for a busy machine
"""

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional

import taut
from bench_attention import HEADS, natural_lengths
from runner import interleaved, write_json
from taut._native import last_variant, libraries

LENGTHS = {
    "128": lambda: [128] * 8,
    "512": lambda: [512] * 2,
    "2048": lambda: [2048],
    "natural": natural_lengths,
}
SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))


def attention_contenders(lengths):
    total = sum(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(total, 3, HEADS, 64)
    half = qkv.bfloat16()
    q, k, v = taut.pack_bits(qkv.flatten(1)).view(total, 3, HEADS).unbind(1)

    def loop(qkv):
        out = torch.empty_like(qkv[:, 0])
        begin = 0
        for length in lengths:
            q, k, v = qkv[begin : begin + length].permute(1, 2, 0, 3).unsqueeze(1)
            part = functional.scaled_dot_product_attention(q, k, v)[0]
            out[begin : begin + length] = part.transpose(0, 1)
            begin += length
        return out

    def binary(mode, v=v, **options):
        return lambda: taut.binary_attention(q, k, v, cu_seqlens, mode=mode, **options)

    return {
        "bool": binary("bool"),
        "elastic": binary("elastic", alpha=0.05),
        "qk_only": binary("qk_only", half[:, 2]),
        "sdpa fp32": lambda: loop(qkv),
        "sdpa bf16": lambda: loop(half),
        "taut bf16": lambda: taut.varlen_attention_qkvpacked(half, cu_seqlens),
    }


def linear_contenders(rows, in_features, out_features):
    x, weight = torch.randn(rows, in_features), torch.randn(out_features, in_features)
    scale, bias = torch.rand(2, out_features)
    half = [t.bfloat16() for t in (x, weight, bias)]
    packed = taut.pack_binary_weight(taut.pack_bits(weight))
    bits, ternary = taut.pack_bits(x), taut.pack_bits(x, rails=2)
    thresholds = torch.zeros(out_features, dtype=torch.int32)
    options = {"in_features": in_features, "out_dtype": torch.bfloat16}

    def codes(top):
        q = (x * (top / x.abs().amax(1, keepdim=True))).round().to(torch.int8)
        return lambda: taut.binary_linear(
            q, packed, scale, bias, x_scale=torch.ones(rows, 1), **options
        )

    def onednn(x, weight, bias):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")

    return {
        "bits": lambda: taut.binary_linear_bits(bits, packed, thresholds, in_features=in_features),
        "W1A1": lambda: taut.binary_linear(bits, packed, scale, bias, **options),
        "ternary": lambda: taut.binary_linear(ternary, packed, scale, bias, **options),
        "W1A2": codes(1),
        "W1A4": codes(7),
        "W1A8": codes(127),
        "torch fp32": lambda: functional.linear(x, weight, bias),
        "onednn bf16": onednn(*half),
    }


def measure(label, contenders, ours, peers, op, seconds, clock):
    once = interleaved(contenders, 1, clock=clock)
    rounds = max(3, round(seconds / sum(t.median for t in once.values())))
    times = interleaved(contenders, min(rounds, 400), clock=clock)
    print(f"{label:12}" + "  ".join(f"{n} {1e3 * t.median:.3f}" for n, t in times.items()) + " ms")
    for name in ours:
        ratios = "  ".join(
            f"{peer} {times[peer].median / times[name].median:.1f} "
            f"({times[peer].low / times[name].low:.1f})"
            for peer in peers
        )
        print(f"{'':12}{name:8} against {ratios}", flush=True)
    return {"label": label, "rounds": rounds, "variant": last_variant(op), **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=2048, help="of the linears")
    parser.add_argument("--seconds", type=float, default=6, help="per line")
    parser.add_argument("--isa", help="instruction set of taut's kernels (TAUT_CPU_ISA)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, and its CPU time instead of wall time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="three rounds, few rows")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rows = 0, 64
    if arguments.isa:
        libraries.module.set_active_isa(arguments.isa)
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(1 if arguments.cpu_time else arguments.threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        print(f"attention, {HEADS} heads of 64: medians; time of the peer / time of ours")
        for name, lengths in LENGTHS.items():
            rows.append(measure(
                name, attention_contenders(lengths()), ("bool", "elastic", "qk_only"),
                ("sdpa fp32", "sdpa bf16", "taut bf16"), "binary_attention", arguments.seconds, clock,
            ))  # fmt: skip
        print(f"linears, {arguments.rows} rows")
        for shape in SHAPES:
            contenders = linear_contenders(arguments.rows, *shape)
            rows.append(measure(
                f"{shape[0]}x{shape[1]}", contenders, list(contenders)[:-2],
                ("torch fp32", "onednn bf16"), "binary_linear", arguments.seconds, clock,
            ))  # fmt: skip
    print("variant:", rows[0]["variant"])
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
