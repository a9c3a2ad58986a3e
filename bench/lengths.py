"""Distributions of sequence lengths that encoders meet, as data."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

LONGEST = 512


def _lognormal(median: float, sigma: float) -> Callable[[torch.Generator, int], torch.Tensor]:
    return lambda g, n: median * torch.exp(sigma * torch.randn(n, generator=g))


@cache
def natural_lengths() -> tuple[int, ...]:
    """Tokens that all-MiniLM-L6-v2 makes of 4096 docstrings of CPython 3.11's standard library, in
    the order they are found: `token_counts` of `every_nth(stdlib_docstrings(), 4096)`."""
    return tuple(json.loads((Path(__file__).parent / "natural_lengths.json").read_text()))


# (generator, count) -> lengths, not yet whole numbers
_DRAWS: dict[str, Callable[[torch.Generator, int], torch.Tensor]] = {
    # ByteTransformer (Zhai et al. 2023, section IV): uniform, 0.6 of the longest on average
    "uniform 128": lambda g, n: 128 * (0.2 + 0.8 * torch.rand(n, generator=g)),
    "uniform 512": lambda g, n: 512 * (0.2 + 0.8 * torch.rand(n, generator=g)),
    # ModernBERT (Warner et al. 2024, section 4.2)
    "normal 256": lambda g, n: 256 + 64 * torch.randn(n, generator=g),
    "sentence pairs": _lognormal(48, 0.55),
    "queries": _lognormal(24, 0.5),
}


def draw(distribution: str, count: int, seed: int = 0) -> list[int]:
    """`count` lengths in order of arrival.

    distribution: natural, a name of `_DRAWS`, or a number: all are that long.
    """
    if distribution.isdigit():
        return [int(distribution)] * count
    generator = torch.Generator().manual_seed(seed)
    if distribution == "natural":
        known = torch.tensor(natural_lengths())
        return known[torch.randint(len(known), (count,), generator=generator)].tolist()
    lengths = _DRAWS[distribution](generator, count)
    return lengths.round().clamp(3, LONGEST).int().tolist()


def of_tokens(distribution: str, tokens: int, order: str = "arrival") -> list[int]:
    """As many lengths as fit into `tokens`, one at least; order: arrival or sorted."""
    lengths = torch.tensor(draw(distribution, max(1, tokens // 3)))
    count = max(1, int((lengths.cumsum(0) <= tokens).sum()))
    return sorted(lengths[:count].tolist()) if order == "sorted" else lengths[:count].tolist()
