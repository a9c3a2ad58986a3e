"""Every row of the definitions, on random data, against loops and formulas written out here."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from taut import folding, gptq, quantizers
from taut.formats import unpack_codes
from taut.nn import LowbitLinear
from taut.reference.quantize import MIDRISE_CLIP
from taut.schemes import parse_scheme, quantize_weight


def codes_of(weight):
    return unpack_codes(weight.codes, weight.bits, weight.in_features).int()


def random_weight(rows=12, columns=256):
    weight = torch.randn(rows, columns) * torch.rand(rows, 1)
    weight[3] = 0
    weight[4, 7] = 9  # an outlier
    return weight


def groups_of(weight, size):
    return [weight[:, k : k + size] for k in range(0, weight.shape[1], size)]


@pytest.mark.parametrize("bits", (8, 4, 3, 2))
@pytest.mark.parametrize("group_size", (0, 32, 64, 128, 256))
def test_symmetric_integers(bits, group_size):
    weight, top = random_weight(columns=200), 2 ** (bits - 1) - 1
    got = quantizers.integer(weight, bits, group_size)
    codes = codes_of(got)
    for g, part in enumerate(groups_of(weight, group_size or 200)):
        scale = part.abs().amax(1) / top
        assert torch.equal(got.scale[:, g], scale)
        q = (part / torch.where(scale > 0, scale, 1)[:, None]).round()
        columns = slice(g * (group_size or 200), (g + 1) * (group_size or 200))
        assert torch.equal(codes[:, columns] - 2 ** (bits - 1), q.int())
    assert got.zero_point is None
    error = (got.dequantize() - weight).abs()
    assert (error <= got.scale.amax(1, keepdim=True) * 0.5001).all()


@pytest.mark.parametrize("bits", (8, 4, 2))
@pytest.mark.parametrize("group_size", (0, 64))
def test_integers_with_zero_points(bits, group_size):
    weight = random_weight().abs() + 0.1 * torch.randn(12, 256)
    weight[3] = 0
    got = quantizers.integer(weight, bits, group_size, zero_point=True)
    assert torch.equal(got.zero_point, got.zero_point.round())
    assert (got.zero_point >= 0).all() and (got.zero_point < 2**bits).all()
    size = group_size or 256
    for g, part in enumerate(groups_of(weight, size)):
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        assert torch.equal(got.scale[:, g], scale)
        safe = torch.where(scale > 0, scale, 1)
        assert torch.equal(got.zero_point[:, g], (-low / safe).round())
        error = (got.dequantize()[:, g * size : (g + 1) * size] - part).abs()
        assert (error <= scale[:, None] * 1.001).all()


@pytest.mark.parametrize("bits", (4, 3, 2))
def test_searched_scales_have_less_error(bits):
    weight = random_weight()

    def error(search):
        got = quantizers.integer(weight, bits, 64, search=search).dequantize()
        return (got - weight).square().view(12, 4, 64).sum(2)

    plain, searched = error("absmax"), error("mse")
    assert (searched <= plain * 1.0001).all() and searched.sum() < 0.95 * plain.sum()


def test_groups_of_outputs_share_scales():  # Q-BERT
    weight = random_weight()
    got = quantizers.integer(weight, 4, rows_per_scale=4)
    for r in range(0, 12, 4):
        assert (got.scale[r : r + 4] == weight[r : r + 4].abs().max() / 7).all()


def test_ternary_mean_and_median():  # BitNet b1.58 and Reloaded
    weight = random_weight()
    for measure, middle in (("mean", weight.abs().mean()), ("median", weight.abs().median())):
        s = 1 / middle.clamp(min=1e-5)
        got = quantizers.ternary(weight, measure)
        assert torch.equal(codes_of(got) - 1, (weight * s).round().clamp(-1, 1).int())
        torch.testing.assert_close(got.scale, (1 / s).expand(12, 1))
        assert (got.zero_point == 1).all() and got.bits == 2
    tiny = quantizers.ternary(torch.full((2, 32), 1e-9))
    torch.testing.assert_close(tiny.scale, torch.full((2, 1), 1e-5))


def test_ternary_by_row():  # Binary and Ternary Natural Language Generation
    weight = random_weight()
    alpha = weight.abs().mean(1, keepdim=True) * (4 / 3)
    got = quantizers.ternary(weight, "row_mean")
    assert torch.equal(got.scale, alpha)
    safe = torch.where(alpha > 0, alpha, 1)
    assert torch.equal(codes_of(got) - 1, (weight / safe).clamp(-1, 1).round().int())


@pytest.mark.parametrize("bits", (8, 4, 3, 2))
def test_quest_weights_and_product(bits):
    weight, x = random_weight(), torch.randn(5, 256)
    hadamard = np.array([[1.0]])
    for _ in range(7):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    rotation = torch.kron(torch.eye(2), torch.tensor(hadamard / math.sqrt(128))).float()
    h = weight @ rotation
    std = h.square().mean(1, keepdim=True).sqrt()
    step = 2 * MIDRISE_CLIP[bits] * std / (2**bits - 1) + 1e-8
    half = 2 ** (bits - 1)
    q = (h / step).floor().clamp(-half, half - 1)
    got = quantizers.midrise(weight, bits)
    torch.testing.assert_close(got.scale, step, rtol=1e-5, atol=0)
    assert ((codes_of(got) - half) != q).float().mean() < 0.01  # ties of another sum's order
    torch.testing.assert_close(got.dequantize(), ((codes_of(got) - half) + 0.5) * got.scale)
    # y = 1/2 sa sw (2 C + rowsum(qa) + rowsum(qw) + K/2)
    linear = LowbitLinear(got, activation_bits=bits, grid="midrise", hadamard=True)
    hx = x @ rotation
    sa = 2 * MIDRISE_CLIP[bits] * hx.square().mean(1, keepdim=True).sqrt() / (2**bits - 1) + 1e-8
    qa = (hx / sa).floor().clamp(-half, half - 1)
    qw = (codes_of(got) - half).float()
    sums = 2 * qa @ qw.T + qa.sum(1, keepdim=True) + qw.sum(1) + 256 / 2
    want = 0.5 * sa * got.scale.T * sums
    torch.testing.assert_close(linear(x), want, rtol=1e-4, atol=2 * float((sa * got.scale.T).max()))


@pytest.mark.parametrize("name", ("nf4", "fp4", "fp4-g0", "power4", "power3"))
def test_codebooks_take_the_nearest_level(name):
    weight = random_weight()
    got = quantize_weight(weight, parse_scheme(name))
    size = got.group_size or 256
    values = got.dequantize()
    for g, part in enumerate(groups_of(weight, size)):
        scale = part.abs().amax(1) / got.codebook.abs().max()
        torch.testing.assert_close(got.scale[:, g], scale)
        levels = got.codebook[None, None] * scale[:, None, None]
        nearest = (part[..., None] - levels).abs().amin(2)
        error = (values[:, g * size : (g + 1) * size] - part).abs()
        torch.testing.assert_close(error, nearest, rtol=1e-4, atol=1e-6)


def test_tables():
    assert quantizers.NF4[7] == 0 and list(quantizers.NF4) == sorted(quantizers.NF4)
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert quantizers.fp4_table().tolist() == [-v for v in reversed(e2m1)] + e2m1
    shifted = quantizers.fp4_table(2, 1, 1.5)  # LLM-FP4: a real bias is a factor 2^-bias
    torch.testing.assert_close(shifted, quantizers.fp4_table() * 2**-0.5)
    e1m2 = quantizers.fp4_table(1, 2, 0.0)[8:]
    assert e1m2.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    levels = quantizers.power_table(4, 0.5)
    torch.testing.assert_close(levels[[0, 4, 8, 12]], torch.tensor([-1.0, -0.25, 0.0, 0.25]))


@pytest.mark.parametrize("bits", (4, 3))
def test_learned_tables_follow_the_importance(bits):  # SqueezeLLM
    weight = random_weight()
    importance = torch.zeros(256)
    importance[:128] = 1
    plain = quantizers.learned_codebook(weight, bits)
    weighted = quantizers.learned_codebook(weight, bits, importance)
    assert plain.codebook.shape == (12, 2**bits)

    def error(got, columns):
        return (got.dequantize() - weight)[:, columns].square().sum()

    uniform = quantizers.integer(weight, bits)
    assert error(plain, slice(None)) < error(uniform, slice(None))
    assert error(weighted, slice(128)) < error(plain, slice(128))


def test_folds_leave_the_product_as_it_is():
    weight, bias, x = random_weight(), torch.randn(12), torch.randn(9, 256)
    want = x @ weight.T + bias
    shift, scale = torch.randn(256), torch.rand(256) + 0.5
    folded, moved = folding.fold_shift_scale(weight, bias, shift, scale)
    got = ((x - shift) / scale) @ folded.T + moved
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    # Well conditioned: what is folded is the inverse.
    left, right = (torch.linalg.qr(t).Q * (torch.rand(16) + 0.5) for t in torch.randn(2, 16, 16))
    turned = folding.fold_kronecker(weight, left, right)
    got = (x @ torch.kron(left, right)) @ turned.T + bias
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-2)


def test_group_size_heuristic():  # FineQuant
    even = torch.rand(32, 512) + 1
    assert quantizers.choose_group_size(even) == 0
    uneven = even * torch.tensor([1.0, 40.0, 1.0, 1.0]).repeat_interleave(128)
    assert quantizers.choose_group_size(uneven) in (64, 128, 256)
    assert quantizers.choose_group_size(uneven, least=256) in (0, 256)


@pytest.mark.parametrize("bits,group_size", ((4, 0), (4, 32), (3, 128), (8, 256)))
def test_compensation_lowers_the_error_of_the_output(bits, group_size):
    mixing = torch.randn(200, 200) * 0.2 + torch.eye(200)
    x, weight = torch.randn(2000, 200) @ mixing, torch.randn(24, 200)
    plain = quantizers.integer(weight, bits, group_size, search="mse")
    got = gptq.compensated(weight, bits, group_size, x.T @ x)
    assert got.scale.shape == plain.scale.shape

    def error(packed):
        return ((packed.dequantize() - weight) @ x.T).square().sum()

    assert error(got) < 0.8 * error(plain)


@pytest.mark.parametrize("wrong", (-0.5, 16.5, 7.25, float("nan")))
def test_zero_points_out_of_range_are_refused(wrong):
    weight = quantizers.integer(random_weight(), 4, zero_point=True)
    weight.zero_point[-1, -1] = wrong
    with pytest.raises(ValueError, match=f"zero_point must be .* from 0 to 16, got {wrong}"):
        dataclasses.replace(weight)


def test_refusals_name_what_is_wrong():
    weight = random_weight()
    for pattern, call in (
        ("integer: bits must be one of 2, 3, 4, 8, got 5", lambda: quantizers.integer(weight, 5)),
        ("integer: weight must be .out_features", lambda: quantizers.integer(weight[0], 4)),
        ("integer: weight must be finite", lambda: quantizers.integer(weight / 0, 4)),
        ("integer: group_size must be one of", lambda: quantizers.integer(weight, 4, 48)),
        ("rows_per_scale must divide", lambda: quantizers.integer(weight, 4, rows_per_scale=5)),
        ("ternary: measure must be one of mean", lambda: quantizers.ternary(weight, "max")),
        ("codebook: table must be", lambda: quantizers.codebook(weight, [3.0, 1.0, 2.0, 4.0])),
        ("fp4_table: exponent_bits", lambda: quantizers.fp4_table(3, 3)),
        ("power_table: exponent", lambda: quantizers.power_table(4, 0)),
        ("rotate_hadamard: weight", lambda: folding.rotate_hadamard(weight[:, :100])),
        ("scheme must be .* got 'w5a8'", lambda: parse_scheme("w5a8")),
        ("scheme must be .* got 'w4a8-g48'", lambda: parse_scheme("w4a8-g48")),
        ("groups to take -g64, got 'ternary-g64'", lambda: parse_scheme("ternary-g64")),
    ):
        with pytest.raises(ValueError, match=pattern):
            call()
