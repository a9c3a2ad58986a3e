"""Every wrapper of csrc/cuda/ptx, as the executor runs it, against the PTX ISA's lane maps."""

import pytest
import torch

from simt import build

CASES = {
    "warp_wrappers": (
        "ldmatrix",
        "stmatrix",
        "mma_16_bit",
        "mma_tf32",
        "mma_s8",
        "mma_b1",
    ),
    "register_wrappers": ("builtins", "conversions", "functions", "shuffles_and_votes"),
    "hopper_wrappers": (
        "cp_async_sizes",
        "tensor_copies",
        "bulk_copies_and_mbarriers",
        "named_barriers",
    ),
    "wgmma_wrappers": ("wgmma_16_bit", "wgmma_along_mn", "wgmma_8_bit", "wgmma_1_bit"),
}


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize(
    ("library", "case"), [(library, case) for library, cases in CASES.items() for case in cases]
)
def test_wrapper(library, case, schedule):
    for _ in range(3):
        seed = int(torch.randint(1 << 62, ()))
        build.call(getattr(build.load(library), case), schedule, seed)
