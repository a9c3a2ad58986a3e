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
    "blocks_wait": ("runs on without end",),
    "plain_beside_atomic": ("race",),
}


HOPPER_BUGS = {
    "tile_not_aligned": ("a swizzled operand does not begin at a multiple of 1024 bytes",),
    "missing_wgmma_fence": ("wgmma without any wgmma.fence",),
    "accumulators_touched_after_fence": ("accumulators were written and no wgmma.fence",),
    "a_written_after_fence": ("registers of A were written and no wgmma.fence",),
    "missing_async_fence": ("no fence.proxy.async",),
    "accumulators_read_early": ("reads the accumulators of a wgmma",),
    "accumulators_written_early": ("writes the accumulators of a wgmma",),
    "operand_overwritten": ("race",),
    "product_not_waited_for": ("returns while wgmma is under way",),
    "load_not_waited_for": ("still under way", "nobody wrote it", "race"),
    "mbarrier_without_fence": ("no fence.mbarrier_init",),
    "mbarrier_without_barrier": ("race", "no mbarrier was initialized"),
    "too_few_bytes_expected": ("deadlock", "bytes are missing"),
    "wrong_parity": ("deadlock", "parity 1"),
    "load_over_readers": ("race",),
    "store_without_async_fence": ("no fence.proxy.async",),
    "stored_tile_overwritten": ("race",),
    "store_not_waited_for": ("returns while its bulk stores",),
    "mbarrier_memory_reused": ("an mbarrier lies there",),
    "warp_skips_product": ("divergent collective", "deadlock"),
}


def run(name, bug, schedule):
    x = torch.randn(128)
    out = torch.zeros(128)
    seed = int(torch.randint(1 << 62, ()))
    counter = torch.zeros(1, dtype=torch.int32)
    function = build.load("planted_bugs").planted_bug
    build.call(function, name.encode(), bug, x, out, counter, schedule, seed)
    return x, out


def check_found(run, name, bugs, schedule):
    run(name, False, schedule)
    with pytest.raises(build.SimtError) as error:
        run(name, True, schedule)
    message = str(error.value)
    assert message.startswith(f"{name}: block (") and "thread (" in message
    assert any(text in message for text in bugs[name]), message


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("name", BUGS)
def test_found(name, schedule):
    check_found(run, name, BUGS, schedule)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_uninitialized_variables_hold_nonsense(schedule):
    x, out = run("unfinished_sum", False, schedule)
    assert torch.allclose(out[:64], 4 * x[:64])
    _, out = run("unfinished_sum", True, schedule)
    assert (out[:64] < -1e38).all()


def run_hopper(name, bug, schedule):
    x = torch.randn(64, 64).bfloat16()
    out = torch.zeros(64, 64)
    seed = int(torch.randint(1 << 62, ()))
    flag = torch.zeros(1, dtype=torch.int32)
    function = build.load("planted_hopper_bugs").planted_bug
    build.call(function, name.encode(), bug, x, out, flag, schedule, seed)
    # Accumulator i of a thread: row 16 warp + lane / 4 + 8 (i / 2 % 2), ...
    rows = out.view(
        4, 8, 4, 8, 2, 2
    )  # warp, lane / 4, lane % 4, column / 8, row / 8 % 2, column % 2
    return x, rows.permute(0, 4, 1, 3, 2, 5).reshape(64, 64)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("name", HOPPER_BUGS)
def test_found_hopper(name, schedule):
    check_found(run_hopper, name, HOPPER_BUGS, schedule)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_wrong_swizzle_gives_wrong_numbers(schedule):
    """A layout is no error in itself, so results must show it."""
    x, product = run_hopper("wrong_swizzle", False, schedule)
    torch.testing.assert_close(product, x.float() @ x.float().T, rtol=1e-5, atol=1e-4)
    x, product = run_hopper("wrong_swizzle", True, schedule)
    assert (product - x.float() @ x.float().T).abs().max() > 1
