"""Word, position and type rows, summed and normalised in one pass, against torch's calls."""

import torch
from torch.nn import functional

import taut

from .cases import DTYPES, Case, Work, against, compiled, size_of
from .lengths import of_tokens

TOKENS = {"cpu": 3072, "cuda": 32768}
VOCABULARY, POSITIONS, EPS = 30522, 512, 1e-12
QUICK = 768  # without what takes seconds to compile


def build(case: Case, device: torch.device) -> Work:
    columns = case.axes["columns"]
    lengths = of_tokens(case.axes["lengths"], TOKENS[device.type])
    positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
    ids = torch.randint(VOCABULARY, positions.shape, device=device)
    types = torch.zeros_like(ids)
    word, position, token_type, norm = (
        torch.randn(rows, columns, device=device).to(DTYPES[case.dtype])
        for rows in (VOCABULARY, POSITIONS, 2, 2)
    )

    codes, scale = taut.quantize_per_token(word.float())
    low = case.op == "lowbit_embed_layer_norm"

    def plain(word, position, token_type, norm):
        if low:
            words = codes[ids].to(norm.dtype) * scale[ids].to(norm.dtype)
        else:
            words = functional.embedding(ids, word)
        total = words + functional.embedding(positions, position)
        total = total + functional.embedding(types, token_type)
        return functional.layer_norm(total, (columns,), norm[0], norm[1], EPS)

    tables = (word, position, token_type, norm)
    out = plain(*tables)
    fused = compiled(plain)
    rest = {
        "positions": positions, "position": position, "token_type_ids": types,
        "token_type": token_type, "weight": norm[0], "norm_bias": norm[1], "eps": EPS,
    }  # fmt: skip

    def ours():
        if low:
            return taut.lowbit_embed_layer_norm(ids, codes, scale, **rest)
        return taut.embed_layer_norm(ids, word, **rest)

    words = len(ids) * columns if low else size_of(out)
    return Work(
        runs={
            "taut": ours,
            "torch": lambda: plain(*tables),
            "torch compiled": lambda: fused(*tables),
        },
        check=against(plain(*(t.double() for t in tables)), out),
        tokens=len(ids),
        bytes=3 * size_of(ids) + words + 3 * size_of(out),
    )


CASES = [
    Case(
        op=op,
        text=f"natural, {columns} columns",
        dtype=dtype,
        axes={"lengths": "natural", "columns": columns},
        contenders=("taut", "torch", *(() if columns == QUICK else ("torch compiled",))),
        build=build,
        quick=columns == QUICK,
    )
    for op in ("embed_layer_norm", "lowbit_embed_layer_norm")
    for dtype in ("fp32", "bf16")
    for columns in (384, 768)
]


def test_embedding(contender, replay):
    replay(contender)
