"""Attention over signs against SDPA on the same signs as floating-point numbers.

`bool` and `elastic` attend to whole sets of keys, so SDPA computes something else there and is held
against its own exact result; `qk_only` is softmax attention over products of signs, as SDPA's.
What taut takes is packed before anything is timed.
"""

import torch

import taut
from taut.registry import OPS

from . import attention_peers as peers
from .cases import Case, Work, against, by_name, size_of
from .lengths import of_tokens

HEADS, HEAD_DIM = 12, 64
TOKENS = {"cpu": 3072, "cuda": 32768}
ALPHA = 0.05
BF16 = {"axes": {"bits": 16}, "dtype": "bf16", "roof": "bf16"}
FP32 = {"axes": {"bits": 32}, "dtype": "fp32", "roof": "fp32"}
MODES = ("bool", "elastic", "qk_only")


def build(case: Case, device: torch.device) -> Work:
    mode = case.axes["mode"]
    lengths = of_tokens(case.axes["lengths"], TOKENS[device.type])
    cu_seqlens = peers.cu_seqlens_of(lengths, device)
    qkv = torch.randn(sum(lengths), 3, HEADS, HEAD_DIM, device=device)
    q, k, v = taut.pack_bits(qkv.flatten(1)).view(-1, 3, HEADS).unbind(1)
    signs = torch.where(qkv > 0, 1.0, -1.0)
    if mode == "qk_only":
        signs[:, 2] = qkv[:, 2].bfloat16()
        v = signs[:, 2].bfloat16()
    half = signs.bfloat16()
    options = {"mode": mode, "alpha": ALPHA if mode == "elastic" else 0.0}
    loop = peers.loop(lengths)
    exact = peers.exact(lengths)(half)
    soft = {
        "sdpa loop fp32": against(exact, loop(signs)),
        "": against(exact, loop(half)),
    }
    if mode == "qk_only":
        ours = soft[""]
    else:
        op = OPS["binary_attention"]
        counts = op.reference(
            *op.complete((q, k, v, cu_seqlens, mode, "strict", 0.125, options["alpha"]))
        )
        ours = against(counts, counts)
    return Work(
        runs={
            "taut": lambda: taut.binary_attention(q, k, v, cu_seqlens, **options),
            "taut bf16": lambda: taut.varlen_attention_qkvpacked(half, cu_seqlens),
            "sdpa loop fp32": lambda: loop(signs),
            "sdpa loop bf16": lambda: loop(half),
        },
        check=by_name({**soft, "taut": ours}),
        tokens=len(qkv),
        flops=4 * sum(n * n for n in lengths) * HEADS * HEAD_DIM,
        bytes=size_of(q, k, v) + 2 * qkv[:, 0].numel(),
        ops={"taut bf16": "varlen_attention_qkvpacked", "taut": case.op},
        own={name: BF16 for name in ("taut bf16", "sdpa loop bf16")} | {"sdpa loop fp32": FP32},
    )


CASES = [
    Case(
        op="binary_qk_attention" if mode == "qk_only" else "binary_attention",
        text=f"{mode}, {lengths}, {HEADS} heads of {HEAD_DIM}",
        dtype="signs",
        axes={
            "mode": mode,
            "lengths": lengths,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "bits": 1,
            **({"length": int(lengths)} if lengths.isdigit() else {}),
        },
        contenders=("taut", "taut bf16", "sdpa loop fp32", "sdpa loop bf16"),
        build=build,
        roof="popcount",
        quick=lengths == "natural",
    )
    for mode in MODES
    for lengths in ("natural", "128", "512", "2048")
]


def test_binary_attention(contender, replay):
    replay(contender)
