"""What the Triton tests share. Importing this chooses the interpreter where there is no GPU: Triton
reads TRITON_INTERPRET when a kernel is defined, and taut defines its kernels at first use."""

import contextlib
import os
from unittest import mock

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from helpers import assert_close_by_comparison  # noqa: E402
from taut.registry import OPS  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def to_device(args) -> list:
    return [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args]


def launch(op: str, *args):
    """The launcher's outputs as a tuple on the CPU."""
    result = OPS[op].triton_launcher(*to_device(OPS[op].complete(args)))
    return tuple(t.cpu() for t in ((result,) if isinstance(result, torch.Tensor) else result))


def reference(op: str, *args) -> tuple:
    result = OPS[op].reference(*OPS[op].complete(args))
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def widened(args) -> list:
    def wide(a):
        return a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a

    return [wide(a) for a in args]


def assert_agrees(op: str, *args, plain: tuple | None = None) -> tuple:
    """The launcher agrees with the reference, in memory that shows what it left or overstepped.

    plain is the same maths at the kernel's dtype; without it, the reference rounded once. The
    interpreter truncates where hardware rounds to bf16: an error below 1 ulp instead of 1/2, within
    the 4 ulp that the comparison allows anyway. fp32 is not rounded in the end, and shows the
    rounding of its sums over thousands of terms of either sign: 5 ulp were seen, plain torch 8.
    """
    with guarded_memory():
        got = launch(op, *args)
    plain = reference(op, *args) if plain is None else plain
    for actual, rounded, exact in zip(got, plain, reference(op, *widened(args)), strict=True):
        if actual.is_floating_point():
            slack = 16.0 if actual.dtype == torch.float32 else 4.0
            assert_close_by_comparison(actual, rounded, exact, slack=slack)
        else:
            assert actual.dtype == rounded.dtype and torch.equal(actual, rounded)
    return got


@contextlib.contextmanager
def guarded_memory():
    """new_empty gives memory full of NaN between two guards, which are looked at in the end."""
    guard, buffers = 64, []
    plain_new_empty = torch.Tensor.new_empty

    def new_empty(self, size, dtype=None, **options):
        if isinstance(size, int):  # the interpreter's own
            return plain_new_empty(self, size, dtype=dtype, **options)
        buffer = plain_new_empty(self, (torch.Size(size).numel() + 2 * guard,), dtype=dtype)
        fill = float("nan") if buffer.is_floating_point() else 99
        buffer.fill_(fill)
        buffers.append(buffer)
        return buffer[guard:-guard].view(size)

    with mock.patch.object(torch.Tensor, "new_empty", new_empty):
        yield
    for buffer in buffers:
        for edge in (buffer[:guard], buffer[-guard:]):
            untouched = edge.isnan() if edge.is_floating_point() else edge == edge.new_full((), 99)
            assert untouched.all(), "a kernel wrote outside its output"
