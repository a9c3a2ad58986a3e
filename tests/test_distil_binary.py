"""bench/distil_binary.py: small encoders learn a task, and lose nothing by being packed."""

from dataclasses import replace

import pytest
import torch

from helpers import on_one_thread
from taut.bench import distil_binary
from taut.bench.distil_binary import QUICK, distil


def test_students_learn_from_their_teacher():
    result = on_one_thread(distil, QUICK, seed=0)
    guess = result["models"].pop("largest class")["accuracy"]
    assert set(result["models"]) == {"teacher, fp32", "bibert, packed", "bit, packed"}
    for name, row in result["models"].items():
        assert row["accuracy"] > guess, name
        assert row["losses"][-1] < row["losses"][0], name
    for kind in ("bibert", "bit"):
        row = result["models"][f"{kind}, packed"]
        assert row["accuracy"] == row["accuracy_before_packing"]
        assert row["size_mb"] < result["models"]["teacher, fp32"]["size_mb"] / 15


def test_a_seed_decides_everything():
    tiny = replace(QUICK, texts=60, teacher_epochs=1, student_epochs=1)
    first, again, other = (on_one_thread(distil, tiny, seed, ["bit"]) for seed in (1, 1, 2))
    assert first == again
    assert first["models"] != other["models"]


def test_directions_of_padding_do_not_count():
    """The distance of two models' states is that of each sequence by itself."""
    lengths = [3, 1, 5]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    q = [torch.randn(9, 2, 64) for _ in range(2)]
    both = distil_binary._mismatch(*(distil_binary._similarities(x, cu_seqlens) for x in q))
    alone = []
    for ours, theirs in zip(*(x.split(lengths) for x in q), strict=True):
        matrices = [torch.einsum("ihd,jhd->hij", x, x) / 8 for x in (ours, theirs)]
        a, b = (m / m.flatten(1).norm(dim=1)[:, None, None] for m in matrices)
        alone.append((a - b).flatten(1).norm(dim=1).mean())
    assert both.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)
