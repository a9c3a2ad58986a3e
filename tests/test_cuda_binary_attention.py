"""The CUDA kernels of attention over packed signs, run in the host executor."""

import pytest
import torch

from binary_cases import (
    BEHIND,
    HEADS,
    MODES,
    assert_int8_attention,
    inputs,
    int8_inputs,
    plain_qk_only,
    qk_inputs,
    random_thresholds,
    scales_of_every_size,
)
from helpers import assert_close_by_comparison, cu_seqlens_of
from simt import attention as cuda_attention
from simt import binary_attention as cuda
from simt import build
from taut.reference import binary_attention as reference


@pytest.mark.parametrize("mode", MODES)
def test_sums(mode):
    args = inputs()
    sums = cuda.binary_attention(*args, **MODES[mode], rails=0)
    assert torch.equal(sums, reference.binary_attention(*args, **MODES[mode], rails=0))
    assert sums.any() or "nothing" in mode


@pytest.mark.parametrize("mode", ("bool", "elastic"))
def test_bits(mode):
    args = inputs((0, 1, 30, 65, 260))
    for rails in (1, 2):
        for thresholds in random_thresholds(rails):
            rest = {**MODES[mode], "rails": rails, "thresholds": thresholds}
            bits = cuda.binary_attention(*args, **rest)
            assert torch.equal(bits, reference.binary_attention(*args, **rest))


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("mode", ("bool", "elastic"))
def test_schedules(mode, schedule):
    args = inputs((5, 300, 20, 64, 0, 130))
    bits = cuda.binary_attention(*args, **MODES[mode], schedule=schedule)
    assert torch.equal(bits, reference.binary_attention(*args, **MODES[mode]))


@pytest.mark.parametrize("mode", ("bool", "elastic"))
def test_long_sequences(mode):
    """More keys than a block holds at once."""
    args = inputs((700, 256, 513), 1)
    sums = cuda.binary_attention(*args, **MODES[mode], rails=0)
    assert torch.equal(sums, reference.binary_attention(*args, **MODES[mode], rails=0))


@pytest.mark.parametrize("heads", (1, 2, 5))
def test_heads_that_do_not_fill_a_block(heads):
    args = inputs((16, 20, 3, 32), heads)
    bits = cuda.binary_attention(*args)
    assert torch.equal(bits, reference.binary_attention(*args))


def test_ties_of_bool():
    """A key whose product with the query is 0 is attended to by tie "geq" only."""
    word = 0x0123456789ABCDEF  # 32 bits set
    q, v, cu = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[-1]]), cu_seqlens_of((1,))
    for key, strict, geq in ((word, 0, 1), (word & (word - 1), 1, 1), (word | 1 << 62, 0, 0)):
        for tie, want in (("strict", strict), ("geq", geq)):
            sums = cuda.binary_attention(q, torch.tensor([[key]]), v, cu, tie=tie, rails=0)
            assert (sums == want).all()


def test_views():
    q, k, v, cu = inputs((70, 20))
    wide = torch.stack((q, k, v), 2)  # q, k, v of a head side by side
    views = wide.unbind(2)
    assert not views[0].is_contiguous()
    assert torch.equal(cuda.binary_attention(*views, cu), reference.binary_attention(q, k, v, cu))


def test_malformed_offsets_give_zeros():
    q, k, v, _ = inputs((70,))
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    assert (cuda.binary_attention(q, k, v, cu) == 0).all()


@pytest.mark.parametrize("offsets", ([0, 50, 40, 70], [-5, 80, 900, 3]))
def test_a_wrong_plan_stays_inside(offsets):
    """Memory is checked: a plan of other offsets, or nonsense, only misses rows."""
    q, k, v, _ = inputs((67,))
    cu, good = torch.tensor(offsets, dtype=torch.int32), cu_seqlens_of((30, 30, 10))
    plan = cuda_attention.plan(good, good, 70, 70)
    cuda.binary_attention(q, k, v, cu, given_plan=plan)
    plan[4:] = cuda_attention.nonsense_items(plan)
    plan[:4] = torch.tensor([[0, 99], [-3, 90], [7, 1 << 30], [0, 0]])
    cuda.binary_attention(q, k, v, good, given_plan=plan)


# ---- binary queries and keys, values of 16 bits


def assert_qk_only(lengths, dtype, scale, slopes, schedule=0):
    q, k, v, cu = qk_inputs(lengths, dtype)
    out = cuda.binary_qk_attention(q, k, v, cu, scale, slopes, schedule=schedule)
    exact = reference.binary_qk_attention(q, k, v.double(), cu, scale, slopes)
    assert_close_by_comparison(out, plain_qk_only(q, k, v, cu, scale, slopes), exact)
    assert (out[-BEHIND:] == 0).all()


@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_qk_only(dtype, alibi):
    slopes = torch.tensor([0.5, 0.02, 0.0]) if alibi else None
    for scale in (0.125, 1.5):
        assert_qk_only((0, 1, 33, 64, 65, 130, 300), dtype, scale, slopes)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_qk_only_in_every_schedule(schedule):
    assert_qk_only((70, 260), torch.bfloat16, 0.125, torch.rand(HEADS), schedule)


def test_qk_only_keeps_nan_in_its_sequence():
    q, k, v, cu = qk_inputs((40, 70, 20), torch.bfloat16)
    clean = cuda.binary_qk_attention(q, k, v, cu, 0.125)
    v[40:110] = v[130:] = float("nan")
    out = cuda.binary_qk_attention(q, k, v, cu, 0.125)
    assert out[40:110].isnan().all() and torch.equal(out[:40], clean[:40])
    assert torch.equal(out[110:], clean[110:])


def test_qk_only_of_malformed_offsets_is_nan():
    q, k, v, _ = qk_inputs((67,), torch.bfloat16)
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    assert cuda.binary_qk_attention(q, k, v, cu, 0.125).isnan().all()


# ---- binary queries and keys, values of int8

HALVES = (torch.bfloat16, torch.float16)


def attend_int8(q, k, v, cu, v_scale, dtype, scale=0.125, slopes=None, schedule=0):
    """Compared with the reference."""
    out = cuda.binary_qk_attention(q, k, v, cu, scale, slopes, v_scale, dtype, schedule=schedule)
    assert_int8_attention(out, q, k, v, cu, v_scale, scale, slopes)
    return out


@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", HALVES)
def test_int8_values(dtype, alibi):
    slopes = torch.tensor([0.5, 0.02, 0.0]) if alibi else None
    args = int8_inputs((0, 1, 63, 64, 65, 255, 256, 257))
    for scale in (0.125, 1.5):
        attend_int8(*args, dtype, scale, slopes)


def test_int8_values_of_a_long_sequence():
    attend_int8(*int8_inputs((1000, 3), 1), torch.bfloat16, 0.125, torch.tensor([0.01]))


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_int8_values_in_every_schedule(schedule):
    for dtype in HALVES:
        attend_int8(*int8_inputs((70, 260)), dtype, 0.125, torch.rand(HEADS), schedule)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_int8_value_is_exact(dtype):
    """Sequences of one token: the weight is 1."""
    q, k = torch.zeros(2, 4, 1, dtype=torch.int64)
    v = torch.arange(-128, 128).to(torch.int8).view(4, 1, 64)
    scales = torch.tensor([[1.0], [0.5], [2.0], [256.0]])
    out = cuda.binary_qk_attention(
        q, k, v, cu_seqlens_of((1,) * 4), v_scale=scales, out_dtype=dtype
    )
    assert torch.equal(out.float(), v * scales[:, :, None])


@pytest.mark.parametrize(
    ("dtype", "smallest", "largest"), ((torch.bfloat16, -37, 33), (torch.float16, -6, 2))
)
def test_scales_of_every_size(dtype, smallest, largest):
    lengths = (70, 64, 5, 260, 33, 130)
    args = int8_inputs(lengths)[:4]
    out = attend_int8(*args, scales_of_every_size(lengths, smallest, largest), dtype)
    assert (out[:70] == 0).all() and out[70:-BEHIND].any()


def test_scales_that_are_nan_stay_in_their_sequence():
    q, k, v, cu, v_scale = int8_inputs((40, 70, 20))
    clean = cuda.binary_qk_attention(q, k, v, cu, v_scale=v_scale, out_dtype=torch.float16)
    v_scale[40:110] = v_scale[130:] = float("nan")
    out = cuda.binary_qk_attention(q, k, v, cu, v_scale=v_scale, out_dtype=torch.float16)
    assert out[40:110].isnan().all() and torch.equal(out[:40], clean[:40])
    assert torch.equal(out[110:], clean[110:])


def test_views_of_int8_values():
    q, k, v, cu, v_scale = int8_inputs((70, 20, 300))
    wide = torch.full((q.shape[0], HEADS + 1, 96), 99, dtype=torch.int8)
    wide[:, 1:, 16:80] = v
    views = v, wide[:, 1:, 16:80]
    both = [
        cuda.binary_qk_attention(q, k, t, cu, v_scale=v_scale, out_dtype=torch.bfloat16)
        for t in views
    ]
    assert not views[1].is_contiguous() and torch.equal(*both)


def test_malformed_offsets_give_nan_with_int8_values():
    q, k, v, _, v_scale = int8_inputs((67,))
    cu = torch.tensor([0, 50, 40, 70], dtype=torch.int32)
    out = cuda.binary_qk_attention(q, k, v, cu, v_scale=v_scale, out_dtype=torch.float16)
    assert out.isnan().all()
