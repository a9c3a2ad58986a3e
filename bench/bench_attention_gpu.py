"""Varlen attention on a GPU against what else is installed there, over the length distributions that
encoders meet.

Contenders, each left out where it is missing: taut's native and Triton kernels, torch's SDPA padded
and in a loop over sequences, torch.nn.attention.varlen, FlexAttention with a block mask of documents
(masks and compilation are not timed). With --alibi those that can add a symmetric bias.

Useful TFLOP/s count 4 * sum(length^2) * heads * head_dim forward, 2.5 times that backward. Times are
CUDA events around one call, medians of interleaved rounds; inputs are larger than L2 in turns.

    python bench/bench_attention_gpu.py [--output FILE] [--quick]
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

import taut
from taut._native import last_cuda_variant
from taut.registry import GPU_KERNELS, OPS

HEADS = 12
TOKENS = 32768
DISTRIBUTIONS = {
    "U[26,128]": lambda n: torch.randint(26, 129, (n,)),
    "U[103,512]": lambda n: torch.randint(103, 513, (n,)),
    "N(256,64)": lambda n: (256 + 64 * torch.randn(n)).round().clamp(16, 512).long(),
    "sentence pairs": lambda n: (
        (48 * torch.exp(0.55 * torch.randn(n))).round().clamp(4, 512).long()
    ),
    "queries": lambda n: (24 * torch.exp(0.5 * torch.randn(n))).round().clamp(3, 256).long(),
    "2048": lambda n: torch.full((n,), 2048),
    "8192": lambda n: torch.full((n,), 8192),
}


def lengths_of(distribution: str) -> list[int]:
    torch.manual_seed(0)
    lengths = DISTRIBUTIONS[distribution](TOKENS // 16)
    count = int((lengths.cumsum(0) <= TOKENS).sum())
    return lengths[: max(count, 1)].tolist()


def contenders(qkv, lengths, slopes) -> dict:
    """name -> function of qkv giving (total, heads, head_dim)."""
    total, device = sum(lengths), qkv.device
    cu = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    longest = max(lengths)
    mask = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    found = {}
    if GPU_KERNELS["varlen_attention_qkvpacked"] == "native":
        plan = taut.attention_plan(cu, total_q=total)
        found["taut"] = lambda x: taut.varlen_attention_qkvpacked(
            x, cu, alibi_slopes=slopes, plan=plan
        )
    options = OPS["varlen_attention_qkvpacked"].complete((qkv, None, cu, None, slopes))[3:]
    if not qkv.requires_grad:
        found["triton"] = lambda x: OPS["varlen_attention_qkvpacked"].triton_launcher(
            x, None, cu, *options
        )[0]

    distance = torch.arange(longest, device=device)[:, None] - torch.arange(longest, device=device)
    bias = None if slopes is None else -slopes[:, None, None] * distance.abs()

    def loop(x):
        out, begin = [], 0
        for length in lengths:
            q, k, v = x[begin : begin + length].permute(1, 2, 0, 3).unsqueeze(1)
            here = None if bias is None else bias[None, :, :length, :length].to(x.dtype)
            out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=here)[0].transpose(0, 1))
            begin += length
        return torch.cat(out)

    found["sdpa loop"] = loop
    if longest <= 2048:
        hidden = torch.zeros(len(lengths), 1, 1, longest, device=device, dtype=qkv.dtype)
        hidden.masked_fill_(~mask[:, None, None], float("-inf"))

        def padded(x):
            wide = x.new_zeros(len(lengths), longest, *x.shape[1:])
            wide[mask] = x
            q, k, v = wide.permute(2, 0, 3, 1, 4)
            here = hidden if bias is None else hidden + bias.to(x.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=here)
            return out.transpose(1, 2)[mask]

        found["sdpa padded"] = padded

    if slopes is None:
        try:
            from torch.nn.attention.varlen import varlen_attn

            found["torch varlen_attn"] = lambda x: varlen_attn(
                *x.unbind(1), cu, cu, longest, longest
            )
        except ImportError:
            pass
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        owner = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device)
        )
        block_mask = create_block_mask(
            lambda b, h, i, j: owner[i] == owner[j], None, None, total, total, device=device
        )
        flex = torch.compile(flex_attention, dynamic=False)
        score_mod = None
        if slopes is not None:

            def score_mod(score, b, h, i, j):
                return score - slopes[h] * (i - j).abs()

        def flexible(x):
            q, k, v = x.permute(1, 2, 0, 3).unsqueeze(1)
            return flex(q, k, v, score_mod, block_mask)[0].transpose(0, 1)

        found["flex_attention"] = flexible
    except ImportError:
        pass
    return found


def milliseconds(run, copies, rounds) -> list[float]:
    """GPU time of run(copy), the copies in turns."""
    times = []
    for i in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(copies[i % len(copies)])
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def measure(distribution, head_dim, with_alibi, backward, rounds) -> list[dict]:
    lengths = lengths_of(distribution)
    total = sum(lengths)
    shape = (total, 3, HEADS, head_dim)
    copies = [torch.randn(shape, device="cuda").bfloat16() for _ in range(3)]
    for t in copies:
        t.requires_grad_(backward)
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)], device="cuda")
    grad = torch.randn(total, HEADS, head_dim, device="cuda").bfloat16()
    flops = 4 * sum(n * n for n in lengths) * HEADS * head_dim * (2.5 if backward else 1)
    rows, expected = [], None
    for name, forward in contenders(copies[0], lengths, slopes if with_alibi else None).items():
        row = {"lengths": distribution, "mean": total / len(lengths), "head_dim": head_dim,
               "alibi": with_alibi, "backward": backward, "contender": name}  # fmt: skip
        try:
            out = forward(copies[0])
            if expected is None:
                expected = out.detach().float()
            row["difference"] = (out.detach().float() - expected).abs().max().item()
            if backward:
                outs = [forward(t) for t in copies]
                run = dict(zip(map(id, copies), outs, strict=True))

                def once(t, run=run):
                    torch.autograd.grad(run[id(t)], t, grad, retain_graph=True)
            else:
                once = forward
            milliseconds(once, copies, 3)
            times = milliseconds(once, copies, rounds)
            row["milliseconds"] = statistics.median(times)
            row["fastest"], row["slowest"] = min(times), max(times)
            row["useful_tflops"] = flops / row["milliseconds"] / 1e9
        except Exception as error:  # a peer that cannot run this case is a result, too
            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="two distributions, few rounds")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "bench_attention_gpu: needs a GPU that this torch can use\n")
    rows = []
    for distribution in list(DISTRIBUTIONS)[:: 5 if options.quick else 1]:
        for head_dim in (64,) if options.quick else (64, 128):
            for with_alibi in (False, True):
                for backward in (False, True):
                    rounds = 5 if options.quick else 30
                    rows += measure(distribution, head_dim, with_alibi, backward, rounds)
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "taut": taut.__version__,
        "variant": last_cuda_variant("varlen_attention_qkvpacked"),
        "tokens": TOKENS,
        "heads": HEADS,
        "rows": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
