"""Straight-through training: values agree with the packed kernels, gradients with the papers."""

import math

import pytest
import torch

import taut
from helpers import cu_seqlens_of
from taut import straight_through
from taut.formats import WORD
from taut.straight_through import train_binary_attention

ONE = torch.ones(())


def gradient(function, x, grad):
    x = x.clone().requires_grad_()
    function(x).backward(grad)
    return x.grad


def test_sign():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    grad = torch.arange(1.0, 8.0)
    for tie, zero in (("ternary", 0.0), ("strict", -1.0), ("geq", 1.0)):
        out = straight_through.sign(x, tie=tie)
        assert out.tolist() == [-1, -1, -1, zero, 1, 1, 1]
        found = gradient(lambda t, tie=tie: straight_through.sign(t, tie=tie), x, grad)
        assert found.tolist() == [0, 0, 3, 4, 5, 0, 0]
    with pytest.raises(ValueError, match="sign: tie must be one of ternary, strict, geq, got 'up'"):
        straight_through.sign(x, tie="up")


def test_elastic_sign():
    x = torch.tensor([-0.6, -0.5, -0.1, 0.0, 0.2, 0.5, 0.7], requires_grad=True)
    alpha = torch.tensor(0.5, requires_grad=True)
    grad = torch.arange(1.0, 8.0)
    out = straight_through.elastic_sign(x, alpha)
    assert torch.equal(out, 0.5 * x.detach().sign())
    ties = straight_through.elastic_sign(x, alpha, tie="strict")
    assert ties[3] == -0.5 and torch.equal(ties[x != 0], out[x != 0])
    least = straight_through.elastic_sign(x, torch.tensor(-1.0))
    assert torch.equal(least, torch.tensor(1e-5) * x.detach().sign())
    out.backward(grad)
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    assert math.isclose(alpha.grad.item(), (-1 - 2 - 3 + 5 + 6 + 7) / math.sqrt(7), rel_tol=1e-6)


def test_elastic_step():
    x = torch.tensor([-0.1, 0.0, 0.125, 0.25, 0.375, 0.5, 0.75], requires_grad=True)
    alpha = torch.tensor(0.5, requires_grad=True)
    grad = torch.arange(1.0, 8.0)
    out = straight_through.elastic_step(x, alpha)
    assert out.tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5]  # x = alpha / 2 stays 0
    out.backward(grad)
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    slopes = (0, 0, -0.25, -0.5, 0.25, 0, 1)
    want = sum(g * s for g, s in zip(grad.tolist(), slopes, strict=True)) / math.sqrt(7)
    assert math.isclose(alpha.grad.item(), want, rel_tol=1e-6)


def weight_of(binarize):
    """scale * signs, which is the weight that the papers speak of."""

    def value(weight):
        signs, scale = binarize(weight)
        return signs * scale[:, None]

    return value


def test_bibert_weight():
    weight = torch.tensor([[0.5, 0.1, -0.3, 2.9], [0.0, 0.2, 0.4, -0.2]])
    signs, scale = straight_through.bibert_weight(weight)
    assert signs.tolist() == [[-1, -1, -1, 1], [-1, 1, 1, -1]]
    assert torch.equal(scale, weight.abs().mean(1))
    grad = torch.arange(1.0, 9.0).view(2, 4)
    passed = grad * ((weight - weight.mean(1, keepdim=True)).abs() <= 1)  # 2.9 is outside
    found = gradient(weight_of(straight_through.bibert_weight), weight, grad)
    torch.testing.assert_close(found, passed - passed.mean(1, keepdim=True))
    assert passed[0].tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize("by_row", (False, True))
def test_bit_weight(by_row):
    weight, grad = torch.randn(2, 5, 7)
    signs, scale = straight_through.bit_weight(weight, by_row=by_row)
    assert torch.equal(signs, (weight - weight.mean()).sign())
    want = weight.abs().mean(1) if by_row else weight.abs().mean().expand(5)
    torch.testing.assert_close(scale, want)
    found = gradient(
        weight_of(lambda w: straight_through.bit_weight(w, by_row=by_row)), weight, grad
    )
    torch.testing.assert_close(found, grad)


@pytest.mark.parametrize("binarize", (straight_through.bibert_weight, straight_through.bit_weight))
def test_a_weight_equal_to_the_mean_is_negative_and_zeros_have_no_scale(binarize):
    signs, scale = binarize(torch.zeros(2, 4))
    assert (signs == -1).all() and (scale == 0).all()
    assert gradient(weight_of(binarize), torch.zeros(2, 4), torch.ones(2, 4)).isfinite().all()


def random_qkv(tokens, heads=2):
    """Some of them 0."""
    x = torch.randn(3, tokens, heads, WORD)
    return x.masked_fill(torch.rand(x.shape) < 0.05, 0.0)


def packed(t):
    return taut.pack_bits(t.flatten(1))


@pytest.mark.parametrize("tie", ("strict", "geq"))
def test_bool_has_the_kernels_values(tie):
    q, k, v = random_qkv(90)
    cu = cu_seqlens_of((0, 1, 64, 22))
    out = train_binary_attention(q, k, v, cu, tie=tie)
    want = taut.binary_attention(packed(q), packed(k), packed(v), cu, tie=tie, rails=0)
    assert torch.equal(out, want.float())


def test_elastic_has_the_kernels_values():
    q, k, v = random_qkv(90)
    cu = cu_seqlens_of((1, 64, 22))
    scales = [torch.tensor(a) for a in (0.8, 1.3, 0.7, 0.05)]
    out = train_binary_attention(q, k, v, cu, mode="elastic", alpha=tuple(scales))
    want = taut.binary_attention(
        packed(q), packed(k), packed(v), cu, mode="elastic", softmax_scale=0.8 * 1.3 / 8,
        alpha=0.05, rails=0,
    )  # fmt: skip
    different = out != (scales[2] * scales[3]) * want
    assert different.double().mean() < 0.01  # keys at the tie


def test_qk_only_has_the_kernels_values():
    q, k, v = random_qkv(90)
    cu, slopes = cu_seqlens_of((1, 64, 22)), torch.tensor([0.5, 0.1])
    out = train_binary_attention(q, k, v, cu, mode="qk_only", alibi_slopes=slopes)
    want = taut.binary_attention(packed(q), packed(k), v, cu, mode="qk_only", alibi_slopes=slopes)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


def test_gradients_of_bool():
    """By hand, for one sequence and one head: every mask where the papers put it."""
    tokens = 12
    q, k, v, grad = torch.randn(4, tokens, 1, WORD)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    train_binary_attention(*leaves, cu_seqlens_of((tokens,))).backward(grad)
    q, k, v, grad = (t[:, 0] for t in (q, k, v, grad))
    scores = q.sign() @ k.sign().T / 8
    attended = (scores > 0).float()
    dscores = (grad @ v.sign().T) * (scores.abs() < 1) / 8
    assert (scores.abs() < 1).any() and (scores.abs() >= 1).any()
    wants = (
        dscores @ k.sign() * (q.abs() < 1),
        dscores.T @ q.sign() * (k.abs() < 1),
        attended.T @ grad * (v.abs() < 1),
    )
    for leaf, want in zip(leaves, wants, strict=True):
        torch.testing.assert_close(leaf.grad[:, 0], want)


def test_gradients_of_elastic():
    """Each estimate by hand, through the softmax."""
    tokens = 12
    q, k, v, grad = torch.randn(4, tokens, 1, WORD).double()
    scales = [torch.tensor(a, dtype=torch.float64) for a in (0.8, 1.3, 0.7, 0.1)]
    leaves = [t.clone().requires_grad_() for t in (q, k, v, *scales)]
    out = train_binary_attention(
        *leaves[:3], cu_seqlens_of((tokens,)), mode="elastic", alpha=tuple(leaves[3:])
    )
    out.backward(grad)
    q, k, v, grad = (t[:, 0] for t in (q, k, v, grad))
    aq, ak, av, ap = scales
    signs = [t.sign() for t in (q, k, v)]
    p = (aq * ak * signs[0] @ signs[1].T / 8).softmax(1)
    ratio = p / ap
    rounded = ratio.round().clamp(0, 1)
    da = grad @ (av * signs[2]).T
    inside = (ratio <= 1).double()
    dp = da * inside
    dap = (da * torch.where(ratio > 1, 1.0, ratio.round() - ratio)).sum() / tokens
    ds = p * (dp - (dp * p).sum(1, keepdim=True)) / 8
    dbinary = (ds @ (ak * signs[1]), ds.T @ (aq * signs[0]), (ap * rounded).T @ grad)
    for i, (x, a) in enumerate(zip((q, k, v), (aq, ak, av), strict=True)):
        torch.testing.assert_close(leaves[i].grad[:, 0], dbinary[i] * (x.abs() <= a))
        dalpha = (dbinary[i] * signs[i]).sum() / math.sqrt(x.numel())
        torch.testing.assert_close(leaves[3 + i].grad, dalpha)
    torch.testing.assert_close(leaves[6].grad, dap)


def test_sequences_do_not_see_each_other():
    q, k, v = random_qkv(50)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    out = train_binary_attention(*leaves, cu_seqlens_of((20, 25)), mode="qk_only")
    assert (out[45:] == 0).all()
    out[:20].sum().backward()
    for leaf in leaves:
        assert (leaf.grad[20:] == 0).all()


def test_errors():
    q, k, v = random_qkv(10)
    cu = cu_seqlens_of((10,))
    for call, message in (
        (lambda: train_binary_attention(q, k, v, cu, mode="soft"),
         "train_binary_attention: mode must be one of bool, elastic, qk_only, got 'soft'"),
        (lambda: train_binary_attention(q, k[:5], v, cu),
         r"train_binary_attention: k must be \(10, 2, 64\) like q, got \(5, 2, 64\)"),
        (lambda: train_binary_attention(q, k, v, cu, mode="elastic"),
         "train_binary_attention: alpha must be four tensors in mode elastic, got None"),
        (lambda: train_binary_attention(q, k, v, cu, alpha=(ONE,) * 4),
         "train_binary_attention: alpha must be None in mode bool"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
