"""Varlen attention against torch's, over the length distributions that encoders meet.

The packed (total_tokens, 3, 12, head_dim) projection goes in, (total_tokens, 12, head_dim) comes
out; on a GPU taut's plan is made before anything is timed. Useful operations are 4 length^2 heads head_dim per sequence, 2.5 times that backward.
"""

import functools

import torch

import taut
from taut.registry import GPU_KERNELS, OPS

from . import attention_peers as peers
from .cases import DTYPES, Case, Work, against, guarded, size_of
from .lengths import of_tokens

HEADS = 12
TOKENS = {"cpu": 3072, "cuda": 32768}
FORWARD, BACKWARD = "varlen_attention_qkvpacked", "varlen_attention_qkvpacked_backward"


def _ours(qkv, lengths, slopes) -> dict[str, peers.Forward]:
    """taut's kernels on the device of qkv: on a GPU the native and the Triton one."""
    cu_seqlens = peers.cu_seqlens_of(lengths, qkv.device)
    runs = {"taut": lambda t: taut.varlen_attention_qkvpacked(t, cu_seqlens, alibi_slopes=slopes)}
    if qkv.device.type == "cuda":
        if GPU_KERNELS[FORWARD] == "native":
            plan = taut.attention_plan(cu_seqlens, total_q=len(qkv))
            runs["taut"] = lambda t: taut.varlen_attention_qkvpacked(
                t, cu_seqlens, alibi_slopes=slopes, plan=plan
            )
        options = OPS[FORWARD].complete((qkv, None, cu_seqlens, None, slopes))[3:]
        launch = OPS[FORWARD].triton_launcher
        runs["taut triton"] = lambda t: launch(t, None, cu_seqlens, *options)[0]
    return runs


def _forwards(case, qkv, lengths, slopes) -> dict[str, peers.Forward]:
    """Of the case's contenders."""
    device = qkv.device
    setups = {
        "sdpa loop": lambda: peers.loop(lengths, slopes),
        "nested_tensor": lambda: peers.nested(lengths, device),
        "flex_attention compiled": lambda: peers.flex(lengths, device, slopes),
        "torch varlen_attn": lambda: peers.varlen_attn(lengths, device),
        "flash_attn": lambda: peers.flash_attn(lengths, device, slopes),
    }
    chosen = {name: guarded(setups[name]) for name in case.contenders if name in setups}
    return _ours(qkv, lengths, slopes) | chosen


def build(case: Case, device: torch.device) -> Work:
    axes = case.axes
    lengths = of_tokens(axes["lengths"], TOKENS[device.type])
    qkv = torch.randn(sum(lengths), 3, HEADS, axes["head_dim"], device=device)
    qkv = qkv.to(DTYPES[case.dtype]).requires_grad_(axes["backward"])
    slopes = None
    if axes["alibi"]:
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)], device=device)
    forwards = _forwards(case, qkv, lengths, slopes)
    flops = 4 * sum(n * n for n in lengths) * HEADS * axes["head_dim"]
    exact, plain = peers.exact(lengths, slopes), peers.loop(lengths, slopes)
    if axes["backward"]:
        grad = torch.randn_like(qkv[:, 0])

        def gradient(out, of=qkv, grad=grad):
            return torch.autograd.grad(out, of, grad.to(out.dtype), retain_graph=True)[0]

        def backward(forward):
            out = functools.cache(lambda: forward(qkv))
            return lambda: gradient(out())

        wide = qkv.detach().double().requires_grad_()
        return Work(
            runs={name: backward(forward) for name, forward in forwards.items()},
            check=against(gradient(exact(wide), wide), gradient(plain(qkv))),
            tokens=len(qkv),
            flops=2.5 * flops,
            bytes=2 * size_of(qkv) + 2 * size_of(grad),
        )
    runs = {name: lambda forward=forward: forward(qkv) for name, forward in forwards.items()}
    padded = functools.cache(lambda: peers.Padded(lengths, device, slopes))

    def over_padded():
        attend, wide = padded(), padded().pad(qkv)
        return lambda: attend(wide)

    if "sdpa padded" in case.contenders:
        runs["sdpa padded"] = guarded(over_padded)
    out = plain(qkv)
    return Work(
        runs=runs,
        check=against(
            exact(qkv), out, lambda name, out: padded().unpad(out) if name == "sdpa padded" else out
        ),
        tokens=len(qkv),
        flops=flops,
        bytes=size_of(qkv, out),
    )


def build_plan(case: Case, device: torch.device) -> Work:
    """The order in which the native GPU kernels take the work of a batch."""
    cu_seqlens = peers.cu_seqlens_of(of_tokens(case.axes["lengths"], TOKENS[device.type]), device)
    total = int(cu_seqlens[-1])
    reference = OPS["attention_plan"].reference
    expected = reference(cu_seqlens, None, total, total)
    return Work(
        runs={
            "taut": lambda: taut.attention_plan(cu_seqlens, total_q=total),
            "torch": lambda: reference(cu_seqlens, None, total, total),
        },
        check=against(expected, expected),
        tokens=total,
        bytes=size_of(cu_seqlens, expected),
    )


def _case(device, lengths, head_dim, dtype, contenders, alibi=False, backward=False, quick=False,
          once=False):  # fmt: skip
    return Case(
        op=BACKWARD if backward else FORWARD,
        text=f"{lengths}{', alibi' if alibi else ''}, {HEADS} heads of {head_dim}",
        dtype=dtype,
        axes={
            "lengths": lengths,
            "heads": HEADS,
            "head_dim": head_dim,
            "alibi": alibi,
            "backward": backward,
            **({"length": int(lengths)} if lengths.isdigit() else {}),
        },
        contenders=contenders,
        build=build,
        roof=dtype,
        quick=quick,
        devices=(device,),
        mode="grad mode" if backward else "no grad mode",
        once=once,
    )


_CPU = ("taut", "sdpa loop", "sdpa padded")
_GPU = ("taut", "taut triton", "sdpa loop", "sdpa padded", "torch varlen_attn",
        "flex_attention compiled", "flash_attn")  # fmt: skip
_CPU_LENGTHS = ("natural", "uniform 128", "uniform 512", "normal 256", "sentence pairs", "queries",
                "64", "128", "256", "512", "1024", "2048")  # fmt: skip
_GPU_LENGTHS = ("natural", "uniform 128", "uniform 512", "normal 256", "sentence pairs", "queries",
                "512", "2048", "8192")  # fmt: skip
_FLEX = ("natural", "uniform 512", "2048")
CASES = [
    *(
        _case("cpu", lengths, head_dim, dtype, _CPU, quick=(lengths, head_dim) == ("natural", 64))
        for lengths in _CPU_LENGTHS
        for head_dim in ((32, 64) if lengths == "natural" else (64,))
        for dtype in ("fp32", "bf16")
    ),
    # Compiled in ten seconds or more, or that slow: once is enough.
    *(
        _case("cpu", "sentence pairs", 32, dtype,
              (*_CPU, "nested_tensor", "flex_attention compiled"), once=True)
        for dtype in ("fp32", "bf16")
    ),
    *(
        _case("cpu", "natural", 64, dtype, ("taut", "sdpa loop"), backward=True)
        for dtype in ("fp32", "bf16")
    ),
    _case("cpu", "natural", 64, "bf16", ("taut", "sdpa loop"), alibi=True),
    *(
        _case(
            "cuda", lengths, head_dim, "bf16",
            # A padded bias would not fit; varlen_attn has none, Triton's launcher no gradient, and
            # flex_attention is compiled anew for every case.
            tuple(
                name
                for name in _GPU
                if not (name == "sdpa padded" and (backward or lengths == "8192"))
                and not (name == "torch varlen_attn" and alibi)
                and not (name == "taut triton" and backward)
                and not (name.startswith("flex") and (head_dim != 64 or lengths not in _FLEX))
            ),
            alibi, backward, quick=(lengths, head_dim) == ("uniform 512", 64),
        )
        for lengths in _GPU_LENGTHS
        for head_dim in (64, 128)
        for alibi in (False, True)
        for backward in (False, True)
    ),
    *(
        Case(
            op="attention_plan",
            text=lengths,
            dtype="int32",
            axes={"lengths": lengths},
            contenders=("taut", "torch"),
            build=build_plan,
            quick=lengths == "natural",
        )
        for lengths in ("natural", "queries", "2048")
    ),
]  # fmt: skip


def test_attention(contender, replay):
    replay(contender)
