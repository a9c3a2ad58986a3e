"""embed_layer_norm against its reference, on every instruction set."""

import pytest
import torch

import taut
from helpers import (
    assert_close_by_comparison,
    far_rows,
    gradients_of,
    misaligned,
    on_one_thread,
    strided_rows,
)
from taut._native import last_variant
from taut.reference import embedding as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-12
WORDS, POSITIONS, TYPES = 150, 70, 3


def inputs(tokens, columns, dtype, id_dtype=torch.int64):
    """In the order of the op; most words do not occur, some many times."""
    ids = [torch.randint(0, rows, (tokens,)).to(id_dtype) for rows in (WORDS, POSITIONS, TYPES)]
    ids[0][::3] = 7
    tables = [torch.randn(rows, columns).to(dtype) for rows in (WORDS, POSITIONS, TYPES)]
    return [*ids, *tables, *torch.randn(2, columns).to(dtype).unbind()]


def kernel(input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias):
    return taut.embed_layer_norm(
        input_ids, word, positions=positions, position=position, token_type_ids=token_type_ids,
        token_type=token_type, weight=weight, norm_bias=norm_bias, eps=EPS,
    )  # fmt: skip


def plain(input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias):
    embed = torch.nn.functional.embedding
    total = embed(input_ids, word) + embed(token_type_ids, token_type) + embed(positions, position)
    return torch.nn.functional.layer_norm(total, total.shape[1:], weight, norm_bias, EPS)


def exact(*args):
    return reference.embed_layer_norm(*args, EPS)[0]


def widened(args):
    return [t.double() if t.is_floating_point() else t for t in args]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (8, 16, 31, 387))
@pytest.mark.parametrize("id_dtype", (torch.int32, torch.int64))
def test_forward(isa, id_dtype, columns, dtype):
    args = inputs(37, columns, dtype, id_dtype)
    out = kernel(*args)
    assert last_variant("embed_layer_norm") == isa
    assert_close_by_comparison(out, plain(*args), exact(*widened(args)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (16, 135))
def test_gradients(isa, columns, dtype):
    args = inputs(301, columns, dtype)
    grad = torch.randn(301, columns).to(dtype)
    got = gradients_of(kernel, args, grad)
    assert last_variant("embed_layer_norm_backward") == isa
    rough = gradients_of(plain, args, grad)
    true = gradients_of(exact, widened(args), grad.double())
    for actual, by_torch, wanted in zip(got[3:], rough[3:], true[3:], strict=True):
        assert_close_by_comparison(actual, by_torch, wanted)
    unused = torch.ones(WORDS, dtype=torch.bool)
    unused[args[0]] = False
    assert unused.any() and torch.equal(got[3][unused], torch.zeros_like(got[3][unused]))


def test_reference_gradients_are_those_of_the_reference():
    args = widened(inputs(9, 6, torch.float32))
    grad = torch.randn(9, 6, dtype=torch.float64)
    want = gradients_of(exact, args, grad)[3:]
    moments = reference.embed_layer_norm(*args, EPS)[1:]
    got = reference.embed_layer_norm_backward(grad, *args[:7], *moments)
    for actual, expected in zip(got, want, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("given", range(16))
def test_optional_arguments(isa, given):
    """Any choice of position, token_type_ids, token_type and affine; int32 beside int64."""
    input_ids, positions, type_ids, word, position, token_type, weight, norm_bias = inputs(
        33, 19, torch.float32
    )
    if not given & 1:
        positions = position = None
    if not given & 2:
        type_ids = None
    if not given & 4:
        type_ids = token_type = None
    if not given & 8:
        weight = norm_bias = None
    args = [input_ids.int(), positions, type_ids, word, position, token_type, weight, norm_bias]
    wide = [t.double() if t is not None and t.is_floating_point() else t for t in args]
    torch.testing.assert_close(kernel(*args).double(), exact(*wide), atol=1e-5, rtol=1e-5)
    grad = torch.randn(33, 19)
    got, want = gradients_of(kernel, args, grad), gradients_of(exact, wide, grad.double())
    for actual, expected in zip(got, want, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


# ---- a word table of 8 bits


def lowbit_inputs(tokens, columns, dtype):
    """In the order of the op."""
    ids, positions, types, word, *rest = inputs(tokens, columns, dtype)
    codes, scale = taut.quantize_per_token(word)
    return [ids.int(), positions, types, codes, scale, *rest]


def lowbit_kernel(ids, positions, types, codes, scale, position, token_type, weight, norm_bias):
    return taut.lowbit_embed_layer_norm(
        ids, codes, scale, positions=positions, position=position, token_type_ids=types,
        token_type=token_type, weight=weight, norm_bias=norm_bias, eps=EPS,
    )  # fmt: skip


def lowbit_plain(ids, positions, types, codes, scale, *rest):
    return plain(ids, positions, types, (codes * scale).to(rest[-1].dtype), *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", (8, 31, 387))
def test_lowbit_forward(isa, columns, dtype):
    args = lowbit_inputs(37, columns, dtype)
    out = lowbit_kernel(*args)
    assert last_variant("lowbit_embed_layer_norm") == isa
    want = reference.lowbit_embed_layer_norm(*widened(args), EPS)
    assert_close_by_comparison(out, lowbit_plain(*args), want)
    bare = taut.lowbit_embed_layer_norm(args[0], *args[3:5], weight=args[7], eps=EPS)
    nothing = (None, None), (None, None)
    want = reference.lowbit_embed_layer_norm(
        args[0], *nothing[0], *widened(args[3:5]), *nothing[1], args[7].double(), None, EPS
    )
    assert_close_by_comparison(bare, want.to(dtype), want)


def test_lowbit_layouts_and_independence(isa):
    args = lowbit_inputs(300, 135, torch.bfloat16)
    out = lowbit_kernel(*args)
    assert torch.equal(out[70:71], lowbit_kernel(*(t[70:71] for t in args[:3]), *args[3:]))
    assert torch.equal(out, on_one_thread(lowbit_kernel, *args))
    for change in (misaligned, strided_rows, far_rows):
        changed = [*args[:3], change(args[3]), args[4], *map(change, args[5:7]), *args[7:]]
        assert torch.equal(lowbit_kernel(*changed), out)
    assert lowbit_kernel(*(t[:0] for t in args[:3]), *args[3:]).shape == (0, 135)
    torch.library.opcheck(torch.ops.taut.lowbit_embed_layer_norm.default, (*args, EPS))


def test_lowbit_refuses_bad_arguments():
    args = lowbit_inputs(5, 4, torch.float32)
    for index, value, message in (
        (0, args[0] + 150, r"input_ids must be in \[0, 150\), got 1\d\d at index 0"),
        (3, args[3].float(), "word must be int8, got float32"),
        (4, args[4][:9], r"word_scale must be \(150, 1\), got \(9, 1\)"),
        (5, args[5].half(), "position must be float32, got float16"),
        (7, args[7][:3], r"weight must be \(4,\), got \(3,\)"),
        (7, args[7].double(), "weight must be float32, bfloat16, float16, got float64"),
    ):
        with pytest.raises(ValueError, match=f"lowbit_embed_layer_norm: {message}"):
            lowbit_kernel(*args[:index], value, *args[index + 1 :])


# ----


def test_nothing_depends_on_other_rows_or_threads(isa):
    args = inputs(300, 387, torch.bfloat16)
    out = kernel(*args)
    assert torch.equal(out[70:71], kernel(*(t[70:71] for t in args[:3]), *args[3:]))
    poisoned = [t.clone() for t in args]
    poisoned[0][69] = 149
    poisoned[3][149] = float("nan")
    used = poisoned[0] == 149
    nans = kernel(*poisoned)
    assert nans[used].isnan().all()
    others = ~used & (args[0] != 149)
    assert torch.equal(nans[others], out[others])
    many = gradients_of(kernel, args, out)
    one = on_one_thread(gradients_of, kernel, args, out)
    assert all(map(torch.equal, many[3:], one[3:]))


@pytest.mark.parametrize("change", (misaligned, strided_rows, far_rows))
def test_layouts(isa, change):
    args = inputs(9, 35, torch.bfloat16)
    spread = [torch.stack((t, torch.full_like(t, -1)), 1)[:, 0] for t in args[:3]]
    changed = [*spread, *map(change, args[3:6]), *map(misaligned, args[6:])]
    out = kernel(*args)
    assert torch.equal(kernel(*changed), out)
    moments = torch.ops.taut.embed_layer_norm(*args, EPS)[1:]
    backward = torch.ops.taut.embed_layer_norm_backward
    want = backward(out, *args[:7], *moments)
    assert all(map(torch.equal, backward(change(out), *changed[:7], *moments), want))


def test_empty_batch(isa):
    args = inputs(0, 35, torch.float32)
    out = kernel(*args)
    assert out.shape == (0, 35)
    for t, gradient in zip(args[3:], gradients_of(kernel, args, out)[3:], strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


def test_torch_library_and_compile(isa):
    args = inputs(6, 19, torch.float32)
    for t in args[3:]:
        t.requires_grad_()
    torch.library.opcheck(torch.ops.taut.embed_layer_norm.default, (*args, EPS))
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), kernel(*args))


def test_refuses_bad_arguments():
    args = inputs(5, 4, torch.float32)
    word = args[3]
    ids = torch.tensor([3, 0, 150, 1])
    message = r"embed_layer_norm: input_ids must be in \[0, 150\), got 150 at index 2"
    with pytest.raises(ValueError, match=message):
        taut.embed_layer_norm(ids, word)
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 150\), got -1 at index 1"):
        taut.embed_layer_norm(torch.tensor([3, -1], dtype=torch.int32), word)
    with pytest.raises(ValueError, match=r"positions must be in \[0, 70\), got 70 at index 0"):
        taut.embed_layer_norm(ids[:1], word, positions=torch.tensor([70]), position=args[4])
    with pytest.raises(ValueError, match=r"token_type_ids must be in \[0, 3\), got 9 at index 0"):
        taut.embed_layer_norm(ids[:1], word, token_type_ids=ids[:1] + 6, token_type=args[5])
    with pytest.raises(ValueError, match="positions must be given with position, got None"):
        taut.embed_layer_norm(ids[:1], word, position=args[4])
    with pytest.raises(ValueError, match="position must be given with positions, got None"):
        taut.embed_layer_norm(ids[:1], word, positions=ids[:1])
    with pytest.raises(ValueError, match="token_type must be given with token_type_ids, got None"):
        taut.embed_layer_norm(ids[:1], word, token_type_ids=ids[:1])
    with pytest.raises(ValueError, match="input_ids must be int32, int64, got float32"):
        taut.embed_layer_norm(torch.zeros(3), word)
    with pytest.raises(ValueError, match=r"position must be \(rows, 4\), as wide as word, got"):
        taut.embed_layer_norm(ids[:1], word, positions=ids[:1], position=torch.ones(9, 3))
    with pytest.raises(TypeError, match="embed_layer_norm: word must be a torch.Tensor, got None"):
        taut.embed_layer_norm(ids, None)
    with pytest.raises(RuntimeError, match=r"input_ids must be in \[0, 150\), got 150 at index 2"):
        torch.ops.taut.embed_layer_norm_backward(
            torch.ones(4, 4), ids, None, None, word, None, None, None, ids.float(), ids.float()
        )
