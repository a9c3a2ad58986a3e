"""Bugs the executor must find, whatever the schedule; the same kernels without them must pass."""

import pytest
import torch

from simt import build

# What the message must say, beside the kernel's name, a block and a thread.
BUGS = {
    "missing_syncthreads": ("race", "nobody wrote it"),
    "missing_syncwarp": ("race", "nobody wrote it"),
    "overwritten_early": ("race",),
    "missing_copy_wait": ("still under way",),
    "copy_wait_too_small": ("still under way",),
    "copy_without_barrier": ("race", "still under way", "nobody wrote it"),
    "copy_over_readers": ("race",),
    "global_out_of_bounds": ("writes 4 bytes", "out of bounds"),
    "shared_out_of_bounds": ("writes 4 bytes at shared offset 512: out of bounds",),
    "copy_out_of_bounds": ("cp.async reads 16 bytes",),
    "misaligned": ("misaligned",),
    "misaligned_row": ("ldmatrix.x1: misaligned",),
    "read_only": ("read-only",),
    "never_written": ("nobody wrote it",),
    "divergent_shuffle": ("divergent collective: __shfl_xor_sync",),
    "divergent_barrier": ("divergent collective",),
    "warp_misses_barrier": ("deadlock", "__syncthreads"),
    "crossed_barriers": ("deadlock", "bar.sync 1"),
    "other_count": ("expects",),
    "blocks_collide": ("race", "another block"),
    "last_block": ("race", "another block"),
    "plain_beside_atomic": ("race",),
}


def run(name, bug, schedule):
    x = torch.randn(128)
    out = torch.zeros(128)
    seed = int(torch.randint(1 << 62, ()))
    counter = torch.zeros(1, dtype=torch.int32)
    function = build.load("planted_bugs").planted_bug
    build.call(function, name.encode(), bug, x, out, counter, schedule, seed)
    return x, out


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("name", BUGS)
def test_found(name, schedule):
    run(name, False, schedule)
    with pytest.raises(build.SimtError) as error:
        run(name, True, schedule)
    message = str(error.value)
    assert message.startswith(f"{name}: block (") and "thread (" in message
    assert any(text in message for text in BUGS[name]), message


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_uninitialized_variables_hold_nonsense(schedule):
    x, out = run("unfinished_sum", False, schedule)
    assert torch.allclose(out[:64], 4 * x[:64])
    _, out = run("unfinished_sum", True, schedule)
    assert (out[:64] < -1e38).all()
