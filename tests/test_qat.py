"""Training with rounding: gradient masks, that it learns, and that converting changes nothing."""

import pytest
import torch

import taut
from encoder_models import save_random
from helpers import cu_seqlens_of
from taut import qat
from taut.nn import Linear, LowbitLinear
from taut.reference.quantize import MIDRISE_CLIP, hadamard_transform
from taut.schemes import parse_scheme

SCHEMES = ("w8a8", "w4a8", "w2a8", "ternary", "ternary-median", "ternary-row", "quest4", "quest2")


def gradient_of(function, x, grad):
    x = x.clone().requires_grad_()
    out = function(x)
    out.backward(grad)
    return out.detach(), x.grad


@pytest.mark.parametrize("name", ("w8a8", "w4a8-g32", "ternary", "ternary-median"))
def test_weight_gradients_pass_everywhere(name):
    weight, grad = torch.randn(2, 6, 128)
    rounded, got = gradient_of(
        lambda w: qat.fake_quantize_weight(w, parse_scheme(name)), weight, grad
    )
    assert torch.equal(got, grad)
    assert not torch.equal(rounded, weight)


def test_row_ternary_gradients_stop_at_one():
    weight, grad = torch.randn(2, 6, 128)
    _, got = gradient_of(
        lambda w: qat.fake_quantize_weight(w, parse_scheme("ternary-row")), weight, grad
    )
    assert torch.equal(got, torch.where(weight.abs() <= 1, grad, 0))
    assert (got == 0).any() and (got != 0).any()


@pytest.mark.parametrize("bits", (2, 4))
@pytest.mark.parametrize("what", ("weight", "input"))
def test_quest_trusts_near_values_only(bits, what):
    x, grad = torch.randn(2, 6, 256)
    x[0, 3] = 30  # spread by the rotation, but clipped somewhere

    def function(t):
        if what == "weight":
            return qat.fake_quantize_weight(t, parse_scheme(f"quest{bits}"))
        return qat.fake_quantize_input(t, bits, grid="midrise", hadamard=True)

    rounded, got = gradient_of(function, x, grad)
    h = hadamard_transform(x)
    bound = MIDRISE_CLIP[bits] / (2**bits - 1) * h.square().mean(1, keepdim=True).sqrt()
    trusted = (rounded - h).abs() <= bound
    assert trusted.any() and not trusted.all()
    # The Hadamard matrix is symmetric and orthogonal: its transpose turns the gradient back.
    torch.testing.assert_close(got, hadamard_transform(grad * trusted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", ("absmax", "full_range"))
def test_input_values_are_those_of_the_op_and_gradients_pass(grid):
    x, grad = torch.randn(2, 5, 96)
    rounded, got = gradient_of(lambda t: qat.fake_quantize_input(t, 8, grid=grid), x, grad)
    q, scale = taut.quantize_per_token(x, 8, grid=grid)
    assert torch.equal(rounded, q * scale)
    assert torch.equal(got, grad)


@pytest.mark.parametrize("name", SCHEMES)
def test_converting_changes_nothing_but_the_order_of_sums(name):
    linear = qat.QatLinear(Linear(256, 96), name)
    torch.nn.init.normal_(linear.bias)
    x, residual, norm = torch.randn(17, 256), torch.randn(17, 96), torch.nn.LayerNorm(96)
    with torch.no_grad():
        want = linear(x, "gelu"), linear.residual_layer_norm(x, residual, norm)
        low = linear.to_lowbit()
        got = low(x, "gelu"), low.residual_layer_norm(x, residual, norm)
    assert isinstance(low, LowbitLinear)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ("ternary", "quest4"))
def test_an_encoder_learns_converts_and_is_saved(tmp_path, name):
    save_random(tmp_path / "a", "bert", hidden_size=128, intermediate_size=256)
    encoder = qat.prepare(taut.Encoder.from_pretrained(tmp_path / "a"), name).train(False)
    kinds = {type(m) for layer in encoder.backbone.layers for m in layer.children()}
    assert qat.QatLinear in kinds and Linear not in kinds
    lengths = [7, 1, 20, 12]
    ids, cu_seqlens = torch.randint(5, 60, (40,)), cu_seqlens_of(lengths)
    target = torch.randn(40, 128)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = (encoder(ids, cu_seqlens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(p.grad is not None for p in encoder.backbone.layers.parameters())
    with torch.no_grad():
        want = encoder(ids, cu_seqlens)
        got = qat.convert(encoder)(ids, cu_seqlens)
    # A sum in another order may tip an activation over to the next integer. Of 4 bits that changes
    # all of a sequence by a fifth, in 1 of 30 runs.
    apart = [
        (g - w).abs().mean() for g, w in zip(got.split(lengths), want.split(lengths), strict=True)
    ]
    *_, second, largest = sorted(apart)
    assert second < 0.02 * want.abs().mean() and largest < 0.5 * want.abs().mean()
    encoder.save_pretrained(tmp_path / "b")
    again = taut.Encoder.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(again(ids, cu_seqlens), encoder(ids, cu_seqlens))


def test_convert_refuses_several_schemes(tmp_path):
    save_random(tmp_path, "bert", hidden_size=128, intermediate_size=256)
    encoder = taut.Encoder.from_pretrained(tmp_path)
    for layer, scheme in zip(encoder.backbone.layers, ("ternary", "w8a8"), strict=False):
        qat.prepare(layer, scheme)
    with pytest.raises(ValueError, match="^convert: .*with one scheme, got ternary, w8a8$"):
        qat.convert(encoder)


def test_prepare_refuses_what_would_leave_the_module_as_it_is():
    plain = torch.nn.Sequential(torch.nn.Linear(16, 16))
    with pytest.raises(
        ValueError, match="^prepare: module must hold a taut.nn.Linear .*Sequential$"
    ):
        qat.prepare(plain, "w8a8")
    with pytest.raises(ValueError, match="^prepare: scheme must be one that rounds, got 'float'"):
        qat.prepare(torch.nn.Sequential(Linear(16, 16)), "float")
    with pytest.raises(TypeError, match="^scheme must be a str, got NoneType"):
        qat.prepare(plain, None)
