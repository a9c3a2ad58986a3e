"""What a benchmark is made of: cases, and the work that a case builds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = {
    "grad mode": torch.enable_grad,
    "no grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
}


class Unavailable(Exception):
    """Raised by `Case.build` where something that the whole case needs is missing."""


@dataclass
class Work:
    """What the contenders of a case compute, on tensors that `Case.build` has made.

    runs: {contender: one call of it}. A contender that cannot be set up here is left out.
    check: (contender, what its call gave) -> {"error", "allowed_error", anything else to record}.
    tokens, flops, bytes: of one call, from real tokens; a multiply-add counts 2, bytes are each
        operand and result once.
    ops: {contender of taut: the op it runs}, where that is not the case's own.
    own: {contender: {"axes", "dtype", "roof", "bytes"}}, as far as they differ from those of the case.
    """

    runs: dict[str, Callable[[], object]]
    check: Callable[[str, object], dict]
    tokens: int
    flops: float = 0
    bytes: float = 0
    ops: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A group of contenders that do the same work; those named "taut..." are ours.

    roof: the probe that its flops are held against; None for work that memory bounds.
    devices: where it runs. mode: of autograd, a key of MODES. share: how many times the usual time
        a contender may take. settle: seconds of quiet before a contender's turn, and a call of it that
        is not timed, where contenders bring thread pools of their own: those spin for a while
        after a call, on the cores of whoever is next. once: measured by the first process of a run
        alone, since it takes long to set up.
    """

    op: str
    text: str
    dtype: str
    axes: dict
    contenders: tuple[str, ...]
    build: Callable[["Case", torch.device], Work]
    roof: str | None = None
    quick: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    mode: str = "no grad mode"
    share: float = 1.0
    settle: float = 0.0
    once: bool = False

    @property
    def group(self) -> str:
        return f"{self.op} | {self.text} | {self.dtype}"


def largest_difference(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Of whole numbers, which may be words of bits, how many differ. NaN where the shapes differ or
    a number is not finite: no error is allowed to be that."""
    if out.shape != exact.shape:
        return float("nan")
    if not exact.is_floating_point():
        return float((out != exact).sum())
    return (out.double() - exact.double()).abs().max().item()


def allowed_error(plain: torch.Tensor, exact: torch.Tensor, factor=2.0, ulps=4.0) -> float:
    """factor times what the same maths in plain torch errs at its dtype, and ulps of the largest
    value."""
    ulp = torch.finfo(plain.dtype).eps if plain.is_floating_point() else 0.0
    slack = ulps * ulp * exact.double().abs().max().item()
    return factor * largest_difference(plain, exact) + slack


def against(
    exact: torch.Tensor,
    plain: torch.Tensor | dict[str, torch.Tensor],
    result: Callable[[str, object], torch.Tensor] = lambda name, out: out,
    factor: float = 2.0,
    ulps: float = 4.0,
) -> Callable[[str, object], dict]:
    """A `Work.check`: the largest difference to `exact`, held against that of `plain`.

    plain: the same maths in plain torch; a dict where contenders differ in it, its key "" for those
        it does not name. result: what brings a contender's output to the layout of `exact`.
        factor, ulps: of `allowed_error`.
    """
    plains = plain if isinstance(plain, dict) else {"": plain}
    allowed = {name: allowed_error(p, exact, factor, ulps) for name, p in plains.items()}

    def check(name: str, out: object) -> dict:
        error = largest_difference(result(name, out), exact)
        return {"error": error, "allowed_error": allowed.get(name, allowed.get(""))}

    return check


def by_name(
    checks: dict[str, Callable[[str, object], dict]],
) -> Callable[[str, object], dict]:
    """A `Work.check` for contenders that must give different things; key "" for those not named."""
    return lambda name, out: checks.get(name, checks.get(""))(name, out)


def guarded(setup: Callable[[], Callable]) -> Callable:
    """The contender that setup() makes; if that raises, one that raises the same when it is called,
    so that it alone is left out."""
    try:
        return setup()
    except Exception as error:
        cause = error

    def run(*_):
        raise cause

    return run


def compiled(function: Callable) -> Callable:
    """By inductor, for the shapes of its first call, which raises where that is not possible."""

    @cache
    def made():
        torch._dynamo.reset()  # it compiles no more than 8 versions of a function's code
        return torch.compile(function, dynamic=False)

    return lambda *args: made()(*args)


def size_of(*tensors: torch.Tensor) -> int:
    """Bytes of all of them."""
    return sum(t.numel() * t.element_size() for t in tensors)
