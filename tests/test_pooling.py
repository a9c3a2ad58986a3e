"""pool against its reference, on every instruction set."""

import pytest
import torch

import taut
from helpers import (
    RAGGED_LENGTHS,
    assert_close_by_comparison,
    cu_seqlens_of,
    far_rows,
    gradients_of,
    misaligned,
    on_one_thread,
    strided_rows,
)
from taut._native import last_variant
from taut.reference import pooling as reference
from taut.reference.pooling import MODES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CU_SEQLENS = cu_seqlens_of(RAGGED_LENGTHS)
TOKENS = sum(RAGGED_LENGTHS) + 2  # two rows that belong to no sequence


def plain(x, mode, normalize):
    """The same maths in plain torch at the dtype of x."""
    rows = []
    for part in x[: TOKENS - 2].split(list(RAGGED_LENGTHS)):
        if part.shape[0] == 0:
            rows.append(part.new_zeros(part.shape[1]))
        elif mode == "mean":
            rows.append(part.sum(0) / part.shape[0])
        else:
            rows.append(part.amax(0) if mode == "max" else part[0 if mode == "cls" else -1])
    out = torch.stack(rows)
    if not normalize:
        return out
    return out / out.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (1, 16, 387))
@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("mode", MODES)
def test_forward(isa, mode, normalize, columns, dtype):
    x = (torch.randn(TOKENS, columns) + 0.5).to(dtype)
    out = taut.pool(x, CU_SEQLENS, mode, normalize)
    assert last_variant("pool") == isa
    exact = reference.pool(x.double(), CU_SEQLENS, mode, normalize)
    assert_close_by_comparison(out, plain(x, mode, normalize), exact)
    assert torch.equal(out[0], torch.zeros(columns, dtype=dtype))
    if mode != "mean" and not normalize:
        assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (16, 35))
@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("mode", MODES)
def test_gradient(isa, mode, normalize, columns, dtype):
    # Few different values, so that the maximum is often reached more than once.
    x = torch.randint(-3, 4, (TOKENS, columns)).to(dtype)
    grad = torch.randn(len(RAGGED_LENGTHS), columns).to(dtype)
    (got,) = gradients_of(lambda t: taut.pool(t, CU_SEQLENS, mode, normalize), [x], grad)
    assert last_variant("pool_backward") == isa
    arguments = (CU_SEQLENS, mode, normalize)
    exact = reference.pool_backward(grad.double(), x.double(), *arguments)
    rough = reference.pool_backward(grad, x, *arguments)
    assert_close_by_comparison(got, rough, exact)
    assert torch.equal(got != 0, rough != 0)
    assert torch.equal(got[-2:], torch.zeros(2, columns, dtype=dtype))


@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("mode", MODES)
def test_reference_gradient_is_that_of_the_reference(mode, normalize):
    x = torch.randn(TOKENS, 6, dtype=torch.float64)
    arguments = (CU_SEQLENS, mode, normalize)
    out = reference.pool(x, *arguments)
    grad = torch.randn_like(out)
    (want,) = gradients_of(lambda t: reference.pool(t, *arguments), [x], grad)
    torch.testing.assert_close(reference.pool_backward(grad, x, *arguments), want)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_is_the_same_in_any_batch(isa, mode):
    x = torch.randn(TOKENS, 387).bfloat16()
    out = taut.pool(x, CU_SEQLENS, mode, True)
    assert torch.equal(out, on_one_thread(taut.pool, x, CU_SEQLENS, mode, True))
    for i, part in enumerate(x[: TOKENS - 2].split(list(RAGGED_LENGTHS))):
        assert torch.equal(taut.pool(part, cu_seqlens_of([len(part)]), mode, True)[0], out[i])


@pytest.mark.parametrize("mode", MODES)
def test_nan_stays_in_its_sequence(isa, mode):
    x = torch.randn(TOKENS, 35)
    begin, end = CU_SEQLENS[4].item(), CU_SEQLENS[5].item()
    clean = taut.pool(x, CU_SEQLENS, mode)
    x[begin, 3] = x[end - 1, 5] = x[begin + 7, 9] = float("nan")
    x[TOKENS - 1] = float("nan")
    out = taut.pool(x, CU_SEQLENS, mode)
    exact = reference.pool(x, CU_SEQLENS, mode, False)
    assert torch.equal(out.isnan(), exact.isnan()) and out.isnan().any()
    others = [i for i in range(len(RAGGED_LENGTHS)) if i != 4]
    assert torch.equal(out[others], clean[others])
    if mode == "max":
        x[begin, 5], x[begin + 1, 9] = float("inf"), -float("inf")  # no match for the NaN behind
        grad = torch.ones_like(out)
        dx = torch.ops.taut.pool_backward(grad, x, CU_SEQLENS, mode, False)
        assert torch.equal(dx, reference.pool_backward(grad, x, CU_SEQLENS, mode, False))


@pytest.mark.parametrize("mode", MODES)
def test_infinities_and_tiny_norms(isa, mode):
    x = torch.full((3, 9), -float("inf"))
    assert torch.equal(taut.pool(x, cu_seqlens_of([3]), mode), x[:1])
    tiny = torch.full((3, 9), 1e-14)
    grad = torch.randn(1, 9)
    arguments = (cu_seqlens_of([3]), mode, True)
    torch.testing.assert_close(taut.pool(tiny, *arguments), torch.full((1, 9), 1e-2))
    dx = torch.ops.taut.pool_backward(grad, tiny, *arguments)
    torch.testing.assert_close(dx, reference.pool_backward(grad, tiny, *arguments))


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
@pytest.mark.parametrize("mode", MODES)
def test_layouts(isa, mode, change):
    x, cu_seqlens = torch.randn(9, 35).bfloat16(), cu_seqlens_of([4, 0, 5])
    out = taut.pool(x, cu_seqlens, mode, True)
    assert torch.equal(taut.pool(change(x), cu_seqlens, mode, True), out)
    backward = torch.ops.taut.pool_backward
    want = backward(out, x, cu_seqlens, mode, True)
    assert torch.equal(backward(change(out), change(x), cu_seqlens, mode, True), want)


def test_empty_batches(isa):
    assert taut.pool(torch.empty(0, 8), cu_seqlens_of([])).shape == (0, 8)
    x = torch.empty(0, 8, requires_grad=True)
    out = taut.pool(x, cu_seqlens_of([0, 0]), normalize=True)
    assert torch.equal(out, torch.zeros(2, 8))
    out.sum().backward()
    assert x.grad.shape == (0, 8)


def test_torch_library_and_compile(isa):
    x = torch.randn(TOKENS, 18, requires_grad=True)
    for mode in MODES:
        torch.library.opcheck(torch.ops.taut.pool.default, (x, CU_SEQLENS, mode, True))
    compiled = torch.compile(taut.pool, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, CU_SEQLENS), taut.pool(x, CU_SEQLENS))


def test_refuses_bad_arguments():
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="pool: mode must be one of cls, mean, max, last, got 's"):
        taut.pool(x, cu_seqlens_of([5]), "sum")
    with pytest.raises(ValueError, match="pool: cu_seqlens must start at 0, got 1"):
        taut.pool(x, torch.tensor([1, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="pool: cu_seqlens must not decrease, got 4 then 2"):
        taut.pool(x, torch.tensor([0, 4, 2], dtype=torch.int32))
    with pytest.raises(
        ValueError, match="pool: cu_seqlens must end within total_tokens = 5, got 6"
    ):
        taut.pool(x, cu_seqlens_of([6]))
    with pytest.raises(ValueError, match="pool: cu_seqlens must be int32, got int64"):
        taut.pool(x, torch.tensor([0, 5]))
    with pytest.raises(TypeError, match="pool: x must be a torch.Tensor, got NoneType"):
        taut.pool(None, cu_seqlens_of([5]))
    with pytest.raises(RuntimeError, match=r"grad_out must have shape \(1, 4\), got \(5, 4\)"):
        torch.ops.taut.pool_backward(x, x, cu_seqlens_of([5]), "mean", False)
