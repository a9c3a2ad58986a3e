"""Packing: from a padding mask or lengths to offsets and indices, and rows there and back, against
the same in plain torch."""

import torch

import taut
from taut.reference import packing as reference

from .cases import DTYPES, Case, Work, against, size_of
from .lengths import of_tokens

TOKENS = {"cpu": 3072, "cuda": 32768}


def _flat(_, out) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in out])


def build_indices(case: Case, device: torch.device) -> Work:
    lengths = torch.tensor(of_tokens(case.axes["lengths"], TOKENS[device.type]), device=device)
    longest = int(lengths.max())
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    if case.op == "pack_mask":
        ours, torchs = (lambda: taut.pack_mask(mask)), (lambda: reference.pack_mask(mask))
    else:
        ours = lambda: taut.pack_lengths(lengths, longest)  # noqa: E731
        torchs = lambda: reference.pack_lengths(lengths, longest)  # noqa: E731
    expected = _flat("", reference.pack_mask(mask))
    return Work(
        runs={"taut": ours, "torch": torchs},
        check=against(expected, expected.long(), _flat),
        tokens=int(lengths.sum()),
        bytes=(mask.numel() * 8 if case.op == "pack_mask" else 0) + size_of(*torchs()),
    )


def build_rows(case: Case, device: torch.device) -> Work:
    lengths = torch.tensor(of_tokens(case.axes["lengths"], TOKENS[device.type]), device=device)
    packing = taut.pack_lengths(lengths, int(lengths.max()))
    indices, rows = packing.indices, len(lengths) * int(lengths.max())
    wide = indices.long()  # torch's indexing wants int64
    tokens, columns = len(indices), case.axes["columns"]
    if case.op == "gather_rows":
        x = torch.randn(rows, columns, device=device).to(DTYPES[case.dtype])
        runs = {"taut": lambda: taut.gather_rows(x, indices), "torch": lambda: x[wide]}
    else:
        x = torch.randn(tokens, columns, device=device).to(DTYPES[case.dtype])
        runs = {
            "taut": lambda: taut.scatter_rows(x, indices, rows),
            "torch": lambda: x.new_zeros(rows, columns).index_copy_(0, wide, x),
        }
    expected = runs["torch"]()
    written = size_of(expected) if case.op == "scatter_rows" else size_of(x[:tokens])
    return Work(
        runs=runs,
        check=against(expected, expected, ulps=0),
        tokens=tokens,
        bytes=size_of(x[:tokens]) + written,
    )


CASES = [
    *(
        Case(op, "natural", "int64", {"lengths": "natural"}, ("taut", "torch"), build_indices,
             quick=True)
        for op in ("pack_mask", "pack_lengths")
    ),
    *(
        Case(op, f"natural, {columns} columns", dtype, {"lengths": "natural", "columns": columns},
             ("taut", "torch"), build_rows, quick=columns == 768)
        for op in ("gather_rows", "scatter_rows")
        for dtype in ("fp32", "bf16")
        for columns in (384, 768)
    ),
]  # fmt: skip


def test_packing(contender, replay):
    replay(contender)
