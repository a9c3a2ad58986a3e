"""Varlen attention on the CPU against torch's SDPA: a loop over sequences, and padded with a mask.

The packed (total, 3, 12, head_dim) projection goes in, (total, 12, head_dim) comes out. Lengths are
32 quantiles of a log-normal distribution of natural text. All contenders take turns in one process;
the table gives medians.

    python bench/bench_attention.py [--threads 2] [--rounds 40] [--quick] [--json FILE]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import taut
from runner import interleaved, write_json
from taut._native import last_variant

HEADS = 12
BATCH = 32


def natural_lengths() -> list[int]:
    """Quantiles (b + 1/2) / 32 of exp(N(4.36, 0.62)), within [20, 297]; their mean is 94."""
    normal = torch.distributions.Normal(4.36, 0.62)
    quantiles = (torch.arange(BATCH) + 0.5) / BATCH
    lengths = normal.icdf(quantiles).exp().round().clamp(20, 297).int().tolist()
    return torch.tensor(lengths)[torch.randperm(BATCH)].tolist()


def contenders(lengths: list[int], head_dim: int, dtype: torch.dtype) -> dict:
    """name -> function giving (total, heads, head_dim)."""
    total = sum(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(total, 3, HEADS, head_dim).to(dtype)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = torch.zeros(BATCH, max(lengths), 3, HEADS, head_dim, dtype=dtype)
    padded[mask] = qkv

    def loop():
        out = torch.empty(total, HEADS, head_dim, dtype=dtype)
        begin = 0
        for length in lengths:
            q, k, v = qkv[begin : begin + length].permute(1, 2, 0, 3).unsqueeze(1)
            out[begin : begin + length] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
            begin += length
        return out

    def pad():
        q, k, v = padded.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return out.transpose(1, 2).contiguous()

    return {
        "taut": lambda: taut.varlen_attention_qkvpacked(qkv, cu_seqlens),
        "sdpa_loop": loop,
        "sdpa_padded": pad,
        "exact": lambda: _exact(qkv.double(), lengths),
        "unpad": lambda out: out[mask],
    }


def _exact(qkv, lengths):
    parts = [F.scaled_dot_product_attention(*x.permute(1, 2, 0, 3)) for x in qkv.split(lengths)]
    return torch.cat([p.transpose(0, 1) for p in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lengths = natural_lengths()
    print(f"{BATCH} sequences, {sum(lengths)} tokens, longest {max(lengths)}, {HEADS} heads")
    print(f"{'dtype':9}{'d':>4}{'taut ms':>9}{'loop':>8}{'padded':>8}{'x loop':>8}{'x padded':>9}"
          f"{'error':>10}{'sdpa':>10}")  # fmt: skip
    rows = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for head_dim in (32, 64):
                run = contenders(lengths, head_dim, dtype)
                exact, unpad = run.pop("exact")(), run.pop("unpad")
                error = (run["taut"]().double() - exact).abs().max().item()
                sdpa_error = (run["sdpa_loop"]().double() - exact).abs().max().item()
                assert torch.allclose(unpad(run["sdpa_padded"]()).double(), exact, atol=0.05)
                timings = interleaved(run, rounds)
                ms = {name: 1e3 * timing.median for name, timing in timings.items()}
                rows.append({
                    "dtype": str(dtype).removeprefix("torch."), "head_dim": head_dim,
                    "variant": last_variant("varlen_attention_qkvpacked"), **timings,
                    "error": error, "sdpa_error": sdpa_error,
                })  # fmt: skip
                print(f"{rows[-1]['dtype']:9}{head_dim:4}{ms['taut']:9.2f}{ms['sdpa_loop']:8.2f}"
                      f"{ms['sdpa_padded']:8.2f}{ms['sdpa_loop'] / ms['taut']:8.2f}"
                      f"{ms['sdpa_padded'] / ms['taut']:9.2f}{error:10.1e}{sdpa_error:10.1e}")  # fmt: skip
    print("variant:", rows[0]["variant"])
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
