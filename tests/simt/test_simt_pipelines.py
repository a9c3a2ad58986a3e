"""Kernels without bugs, written as the real ones are: right numbers, and no complaint."""

import pytest
import torch

from simt import build


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("hopper", [False, True], ids=["mma", "wgmma"])
def test_matrix_product(hopper, schedule):
    m, n, k = 130, 72, 320
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    c = torch.full((m, n), float("nan"))
    seed = int(torch.randint(1 << 62, ()))
    function = build.load("pipelines").matrix_product
    build.call(function, a, b, c, m, n, k, hopper, schedule, seed)
    torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_the_example_of_the_header(schedule):
    x = torch.randn(100)
    y = torch.full((100,), float("nan"))
    build.call(build.load("scale").scale, x, y, 100, 2.0, schedule, 1)
    mirrored = torch.cat([x, torch.zeros(28)]).view(2, 64).flip(1).flatten()[:100]
    assert torch.equal(y, 2 * mirrored)
