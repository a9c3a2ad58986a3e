"""What a call costs before any work: each public op on tiny inputs, beside torch's call for the same.

`add` is torch's cheapest op: what no call can go below. Modes: grad mode, and inference mode.
"""

import torch
from torch.nn import functional

import taut

from .attention_peers import loop
from .bench_quantize import plain_quantize
from .cases import Case, Work, largest_difference

ROWS, COLUMNS = 4, 16
ULPS = 16  # of the largest value: torch's result, in fp32 as well, stands for the exact one


def _calls() -> dict[str, dict]:
    """{op: {contender: a call of it}}; the results of an op's contenders agree."""
    x, residual = torch.randn(2, ROWS, COLUMNS)
    vector = torch.ones(COLUMNS)
    ids = torch.tensor([3, 1, 2, 0])
    lengths = [1, 3]
    cu_seqlens = torch.tensor([0, 1, 4], dtype=torch.int32)
    qkv = torch.randn(ROWS, 3, 1, COLUMNS)
    q, k, v = qkv.unbind(1)
    weight = torch.randn(COLUMNS, COLUMNS) / 4
    packed = taut.pack_weight(weight)
    square = torch.eye(4)
    padded = torch.tensor([[1, 0, 0], [1, 1, 1]])
    wide = torch.randn(6, COLUMNS)
    indices = torch.tensor([0, 3, 4, 5])

    def norm(t):
        return functional.layer_norm(t, (COLUMNS,), vector, vector)

    def embed(word, position):
        return norm(functional.embedding(ids, word) + functional.embedding(ids, position))

    def glu(t):
        inner, gate = (t + vector).chunk(2, 1)
        return functional.gelu(inner) * gate

    return {
        "add": {"torch": lambda: torch.add(x, residual)},
        "layer_norm": {
            "taut": lambda: taut.layer_norm(x, vector, vector),
            "torch": lambda: norm(x),
        },
        "layer_norm, residual": {
            "taut": lambda: taut.layer_norm(x, vector, vector, residual=residual),
            "torch": lambda: norm(x + residual),
        },
        "rms_norm": {
            "taut": lambda: taut.rms_norm(x, vector, eps=1e-6),
            "torch": lambda: functional.rms_norm(x, (COLUMNS,), vector, 1e-6),
        },
        "bias_activation": {
            "taut": lambda: taut.bias_activation(x, vector),
            "torch": lambda: functional.gelu(x + vector),
        },
        "bias_glu": {"taut": lambda: taut.bias_glu(x, vector), "torch": lambda: glu(x)},
        "embed_layer_norm": {
            "taut": lambda: taut.embed_layer_norm(
                ids, x, positions=ids, position=residual, weight=vector, norm_bias=vector, eps=1e-5
            ),
            "torch": lambda: embed(x, residual),
        },
        "varlen_attention": {
            "taut": lambda: taut.varlen_attention(q, k, v, cu_seqlens),
            "torch": lambda: loop(lengths)(qkv),
        },
        "varlen_attention_qkvpacked": {
            "taut": lambda: taut.varlen_attention_qkvpacked(qkv, cu_seqlens),
            "torch": lambda: loop(lengths)(qkv),
        },
        "packed_linear": {
            "taut": lambda: taut.packed_linear(x, packed, vector, out_features=COLUMNS),
            "torch": lambda: functional.linear(x, weight, vector),
        },
        "packed_linear_layer_norm": {
            "taut": lambda: taut.packed_linear_layer_norm(
                x, packed, vector, residual, vector, vector
            ),
            "torch": lambda: norm(functional.linear(x, weight, vector) + residual),
        },
        "quantize_per_token": {
            "taut": lambda: taut.quantize_per_token(x)[0],
            "torch": lambda: plain_quantize(x)[0],
        },
        "kronecker": {
            "taut": lambda: taut.kronecker(x, square, square),
            "torch": lambda: (square.T @ x.view(-1, 4, 4) @ square).view(x.shape),
        },
        "pool": {
            "taut": lambda: taut.pool(x, cu_seqlens),
            "torch": lambda: torch.stack([part.mean(0) for part in x.split(lengths)]),
        },
        "pack_mask": {
            "taut": lambda: taut.pack_mask(padded)[1],
            "torch": lambda: padded.flatten().nonzero().flatten().int(),
        },
        "gather_rows": {
            "taut": lambda: taut.gather_rows(wide, indices),
            "torch": lambda: wide[indices],
        },
        "scatter_rows": {
            "taut": lambda: taut.scatter_rows(x, indices, 6),
            "torch": lambda: x.new_zeros(6, COLUMNS).index_copy_(0, indices, x),
        },
    }


def build(case: Case, device: torch.device) -> Work:
    runs = _calls()[case.axes["call"]]
    expected = runs["torch"]()
    floats = expected.is_floating_point()
    allowed = ULPS * torch.finfo(expected.dtype).eps * expected.abs().max().item() if floats else 0

    def check(_, out):
        return {"error": largest_difference(out, expected), "allowed_error": allowed}

    return Work(runs=runs, check=check, tokens=ROWS)


CASES = [
    Case(
        op=name.split(",")[0],
        text=f"{name}, {mode}",
        dtype="fp32",
        axes={"call": name, "mode": mode},
        contenders=("torch",) if name == "add" else ("taut", "torch"),
        build=build,
        quick=mode == "grad mode",
        devices=("cpu",),
        mode=mode,
    )
    for mode in ("grad mode", "inference mode")
    for name in _calls()
]


def test_overhead(contender, replay):
    replay(contender)
