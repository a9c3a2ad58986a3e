"""What tests of ops share: tolerances by comparison, ragged lengths, poisoned memory."""

import torch

# Lengths that sit on and around every tile edge, with empty and single-token sequences.
RAGGED_LENGTHS = (0, 1, 63, 64, 65, 0, 7, 128, 130, 33)


def cu_seqlens_of(lengths) -> torch.Tensor:
    """int32 offsets (len(lengths) + 1,) starting at 0."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = torch.tensor(list(lengths), dtype=torch.int32).cumsum(0)
    return offsets


def assert_close_by_comparison(actual, plain, exact, factor=2.0, slack=4.0):
    """error(actual, exact) <= factor * error(plain, exact) + `slack` ulp of the largest value.

    actual: what the kernel gave; plain: the same maths in plain torch at the kernel's dtype;
    exact: the reference in a wider type. NaN and infinity must agree exactly.
    """
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)} != {tuple(exact.shape)}"
    assert actual.dtype == plain.dtype, f"dtype {actual.dtype} != {plain.dtype}"
    if actual.numel() == 0:
        return
    exact = exact.double()
    finite = exact.isfinite()
    assert torch.equal(actual.double()[~finite].nan_to_num(), exact[~finite].nan_to_num())
    error = (actual.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    plain_error = (plain.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    scale = exact[finite].abs().max().item() if finite.any() else 0.0
    allowed = factor * plain_error + slack * torch.finfo(actual.dtype).eps * max(scale, 1e-30)
    assert error <= allowed, f"error {error:.3e} > {allowed:.3e} (plain torch: {plain_error:.3e})"


def assert_same(got, want):
    """Tensor by tensor the same dtype, shape and numbers; NaN equals NaN."""
    for actual, expected in zip(got, want, strict=True):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def misaligned(t: torch.Tensor) -> torch.Tensor:
    """A copy of t whose data starts one element after an aligned address."""
    storage = torch.empty(t.numel() + 1, dtype=t.dtype)
    view = storage[1:].view(t.shape)
    view.copy_(t)
    return view


def strided_rows(t: torch.Tensor, extra: int = 5) -> torch.Tensor:
    """A copy of t with `extra` NaN columns behind every row (integer dtypes: the largest value)."""
    fill = float("nan") if t.dtype.is_floating_point else torch.iinfo(t.dtype).max
    wide = torch.full((*t.shape[:-1], t.shape[-1] + extra), fill, dtype=t.dtype)
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]


def far_rows(t: torch.Tensor) -> torch.Tensor:
    """A copy of matrix t whose last row lies 2^31 elements behind its first one."""
    rows, columns = t.shape
    stride = -(-(2**31) // (rows - 1))
    storage = torch.empty((rows - 1) * stride + columns, dtype=t.dtype)  # touched in t's rows only
    view = storage.as_strided((rows, columns), (stride, 1))
    view.copy_(t)
    return view


def adversarial_rows(columns: int) -> torch.Tensor:
    """fp32 rows: zeros, one outlier, denormals, ties at one half, the largest numbers, not finite."""
    rows = torch.randn(13, columns)
    rows[0] = 0.0
    rows[1] = -0.0
    rows[2, columns // 2] = 1e30
    rows[3] *= 1e-40
    rows[4] = 1e-45
    rows[5] = torch.randint(-253, 254, (columns,)) / 2  # inverse 1: halves are ties
    rows[5, -1] = 127.0
    rows[6] = torch.finfo(torch.float32).max * torch.sign(rows[6])
    rows[7, columns // 3] = float("inf")
    rows[8, -1] = float("-inf")
    rows[9, 0] = float("nan")
    rows[10, -1] = -float("nan")
    rows[11] = torch.randint(-255, 256, (columns,)) / 2
    rows[11, 0] = -128.0
    return rows


def gradients_of(function, tensors, grads):
    """Gradients of function(*tensors), given those of its outputs; None for a tensor that is None
    or not floating point."""
    leaves = [
        t.detach().clone().requires_grad_() if t is not None and t.is_floating_point() else t
        for t in tensors
    ]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, grads)
    return [None if t is None else t.grad for t in leaves]


def on_one_thread(function, *args, **options):
    """function(*args, **options) with torch set to one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*args, **options)
    finally:
        torch.set_num_threads(threads)


def compiled_whole(model: torch.nn.Module):
    """The model in one graph. Those of models before it are forgotten: torch keeps but a few of a
    function, and all models share some."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def assert_same_in_any_split(run, rows, threads):
    """run(begin, end) gives the results of these rows: the same bits with any others, on any number
    of threads."""
    threads(1)
    whole = run(0, rows)
    for count in (1, 2, 3):
        threads(count)
        for begin, end in ((0, rows), (0, 1), (5, 6), (1, 8), (3, 34), (17, 130), (96, 128)):
            for got, want in zip(run(begin, end), whole, strict=True):
                assert torch.equal(got, want[begin:end]), (count, begin, end)
