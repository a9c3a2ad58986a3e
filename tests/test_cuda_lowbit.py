"""The CUDA kernels of quantize and lowbit_gemm, run in the host executor, against the reference."""

import pytest
import torch

import lowbit_cases as cases
from lowbit_cases import DTYPES, EXACT_GRIDS, GROUPED
from simt import build, lowbit
from taut.formats import BITS

HALVES = (torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (65, 70, 33), (3, 130, 200))
ENCODER_WIDTHS = (384, 768, 1024, 1536, 3072, 4096)


def runner(tiles=1, schedule=0):
    """`run` of lowbit_cases: products by one kind of tiles, in one schedule."""

    def run(op, *args):
        options = {"tiles": tiles} if op.startswith("lowbit") else {}
        result = getattr(lowbit, op)(*args, **options, schedule=schedule)
        return (result,) if isinstance(result, torch.Tensor) else result

    return run


@pytest.mark.parametrize("grid", EXACT_GRIDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 33, 256))
def test_bits_are_those_of_the_reference(grid, dtype, columns):
    cases.check_grid(runner(), grid, dtype, columns)


@pytest.mark.parametrize("bits", (2, 8))
@pytest.mark.parametrize("hadamard", (False, True))
def test_midrise(bits, hadamard):
    cases.check_midrise(runner(), bits, hadamard)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_affine", (False, True))
def test_layer_norm_quantize(dtype, own_affine):
    cases.check_layer_norm_quantize(runner(), dtype, own_affine)


def test_rows_without_elements_and_with_gaps():
    cases.check_no_rows_and_layouts(runner())


@pytest.mark.parametrize("dtype", DTYPES)
def test_places_of_rows(dtype):
    cases.check_places_of_rows(runner(), dtype)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tiles", lowbit.KERNELS)
def test_integer_products(bits, tiles):
    cases.check_products(runner(tiles), bits, SHAPES)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_hopper_products(bits, schedule):
    for rows, channels, features in ((1, 1, 1), (130, 70, 33), (3, 130, 530)):
        weight = cases.weight_of(channels, features, bits)
        operands = (*weight, torch.randn(channels), channels, bits, 0, 8, "relu")
        x = cases.integers(rows, features)
        run = runner(lowbit.WGMMA, schedule)
        residual = torch.randn(rows, channels).bfloat16()
        cases.assert_bits(run, "lowbit_linear", *x, *operands, residual, 0.0, torch.bfloat16)
        cases.assert_bits(run, "lowbit_linear_quantize", *x, *operands, 8, 128)


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
@pytest.mark.parametrize("tiles", lowbit.KERNELS)
def test_groups(bits, group_size, tiles):
    cases.check_groups(runner(tiles), bits, group_size)


@pytest.mark.parametrize("group_size", (32, 64, 128, 256))
@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_hopper_groups(group_size, schedule):
    """Tiles in part and whole, groups that end with a stage, within and after it, and in part."""
    run = runner(lowbit.WGMMA, schedule)
    for bits, shape in ((4, (65, 70, 300)), (8, (64, 128, 512)), (3, (3, 130, 65))):
        cases.check_groups(run, bits, group_size, shape)


@pytest.mark.parametrize("attempt", range(16))
def test_fuzz(attempt):
    seed = int(torch.randint(1 << 62, ()))
    cases.check_fuzz(runner(attempt % 4, attempt // 4 % 3), seed)


@pytest.mark.parametrize("attempt", range(12))
def test_fuzz_of_hopper(attempt):
    cases.check_fuzz(runner(lowbit.WGMMA, attempt % 3), int(torch.randint(1 << 62, ())))


def test_extremes_stay_within_int32():
    cases.check_extremes(runner(0), 8)


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tiles", (0, 1))
def test_floating_point_activations(dtype, bits, group_size, tiles):
    for shape in ((1, 1, 1), (5, 70, 200), (40, 33, 300)):
        cases.check_floats(runner(tiles), dtype, bits, group_size, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ("relu", "gelu", "gelu_tanh", "silu", "tanh"))
def test_epilogues(dtype, epilogue):
    cases.check_epilogue(runner(0), dtype, epilogue)


@pytest.mark.parametrize("out_group_size", (0, 32, 64, 128, 256))
@pytest.mark.parametrize("out_bits", (4, 8))
def test_requantizing(out_group_size, out_bits):
    for tiles in (0, 2, lowbit.WGMMA):
        cases.check_requantizing(runner(tiles), out_bits, out_group_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_affine", (False, True))
def test_linear_layer_norm(dtype, own_affine):
    cases.check_linear_layer_norm(runner(0), dtype, own_affine)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_schedules_give_the_same_bits(schedule):
    for tiles, (bits, group_size) in zip(lowbit.TILES, GROUPED, strict=False):
        cases.check_groups(runner(tiles, schedule), bits, group_size, (70, 130, 140))
    cases.check_grid(runner(schedule=schedule), "absmax", torch.bfloat16, 256)


def test_tiles_give_the_same_bits():
    """The tile is chosen by the number of rows, and a row must not depend on others."""
    weight = cases.weight_of(130, 100, 4, 32, "half")
    x, residual = torch.randn(70, 100), torch.randn(70, 130)
    operands = (None, *weight, torch.randn(130), 130, 4, 32, 8, "gelu", residual, 0.0, None)
    large = runner(2)("lowbit_linear", x, *operands)[0]
    for tiles in (0, 1, lowbit.WGMMA):
        assert torch.equal(runner(tiles)("lowbit_linear", x, *operands)[0], large)
    x, operands = x.bfloat16(), (*operands[:9], 0, "gelu", residual.bfloat16(), 0.0, None)
    small, large = (runner(tiles)("lowbit_linear", x, *operands)[0] for tiles in (0, 1))
    assert torch.equal(small, large)


def test_batch_invariance():
    parts = slice(66, 67), slice(3, 20)
    cases.check_batch_invariance(runner(), 70, parts)
    cases.check_float_batch_invariance(runner(0), 70, parts)


def test_nothing_leaks_between_rows():
    cases.check_nothing_leaks(runner(0))


@pytest.mark.parametrize("processors", (108, 132))  # A100; H100 and H200
def test_choice_of_tiles(processors):
    for width in ENCODER_WIDTHS:
        assert [lowbit.chosen_tiles(2**i, width, processors) for i in (0, 4, 20)] == [0, 0, 2]
    # Where 128 x 128 would leave most multiprocessors idle.
    assert lowbit.chosen_tiles(512, 768, processors) == 1
    assert lowbit.chosen_tiles(1, 768, processors, least_columns=128) == 2


def test_choice_of_wgmma():
    """Tiles of 128 rows, which are wgmma's on Hopper, from fewer rows on."""
    for width in ENCODER_WIDTHS:
        assert [lowbit.chosen_tiles(2**i, width, 132, 1, True) for i in (0, 4, 20)] == [0, 0, 2]
    assert [lowbit.chosen_tiles(rows, 768, 132) for rows in (512, 2048)] == [1, 1]
    assert [lowbit.chosen_tiles(rows, 768, 132, 1, True) for rows in (512, 2048)] == [1, 2]
