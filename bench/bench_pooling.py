"""One vector per sequence from packed rows, against torch's: a loop, segment_reduce, padded."""

import torch
from torch.nn import functional

import taut

from .attention_peers import cu_seqlens_of
from .cases import DTYPES, Case, Work, against, size_of
from .lengths import of_tokens

TOKENS = {"cpu": 3072, "cuda": 32768}


def build(case: Case, device: torch.device) -> Work:
    lengths = of_tokens(case.axes["lengths"], TOKENS[device.type])
    mode, columns = case.axes["mode"], case.axes["columns"]
    x = torch.randn(sum(lengths), columns, device=device).to(DTYPES[case.dtype])
    cu_seqlens = cu_seqlens_of(lengths, device)
    counts = torch.tensor(lengths, device=device)
    mask = torch.arange(max(lengths), device=device) < counts[:, None]
    padded = x.new_zeros(*mask.shape, columns)
    padded[mask] = x

    def loop(x):
        parts = x.split(lengths)
        rows = [part.mean(0) if mode == "mean" else part[0] for part in parts]
        return functional.normalize(torch.stack(rows), dim=1)

    def segments():
        return functional.normalize(torch.segment_reduce(x, mode, lengths=counts), dim=1)

    def masked():
        if mode == "cls":
            return functional.normalize(padded[:, 0], dim=1)
        total = (padded * mask[..., None]).sum(1) / counts[:, None]
        return functional.normalize(total, dim=1)

    out = loop(x)
    read = size_of(x) if mode == "mean" else size_of(out)
    return Work(
        runs={
            "taut": lambda: taut.pool(x, cu_seqlens, mode=mode, normalize=True),
            "torch loop": lambda: loop(x),
            "torch segment_reduce": segments,
            "torch padded": masked,
        },
        check=against(loop(x.double()), out),
        tokens=len(x),
        bytes=read + size_of(out),
    )


CASES = [
    Case(
        op="pool",
        text=f"{mode}, natural, {columns} columns",
        dtype=dtype,
        axes={"lengths": "natural", "columns": columns, "mode": mode},
        contenders=("taut", "torch loop", "torch padded")
        + (("torch segment_reduce",) if mode == "mean" else ()),
        build=build,
        quick=(mode, columns) == ("mean", 768),
    )
    for mode, sizes in (("mean", (384, 768)), ("cls", (768,)))
    for dtype in ("fp32", "bf16")
    for columns in sizes
]


def test_pooling(contender, replay):
    replay(contender)
