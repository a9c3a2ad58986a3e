"""How public functions reach the dispatcher."""

import re
import reprlib

import torch
from torch.autograd import forward_ad

from taut.registry import OPS, Op

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_Tensor = torch.Tensor
_is_inference = torch.is_inference_mode_enabled
_BelowAutograd = torch._C._AutoDispatchBelowAutograd

# What the dispatcher says of an argument of the wrong type.
_WRONG_TYPE = re.compile(r"Expected a value of type '(.+)' for argument '(\w+)' but instead found")
_TYPES = {
    "Tensor": "a torch.Tensor",
    "int": "an int",
    "float": "a float",
    "bool": "a bool",
    "str": "a str",
    "List[int]": "a list of ints",
    "List[float]": "a list of floats",
}


def call(op: Op, *args):
    """Run `op`. Native launchers check every argument themselves (in C++, without cost here), and
    the dispatcher their types; when one refuses, it is said again in the words of this package, as
    a TypeError or ValueError.

    Everything here runs on every call: bench_overhead.py measures what it costs.
    """
    if forward_ad._current_level >= 0:
        _refuse_tangents(op, args)
    try:
        if op.refuses_grad and _is_grad_enabled():
            for a in args:
                if isinstance(a, _Tensor) and a.requires_grad:
                    _refuse_gradient(op, args)
        if _is_compiling():
            return op.overload(*args)
        if not op.has_gradient:
            return op.entry(*args)
        if _is_grad_enabled():
            for a in args:  # as a generator in any() this costs 0.6 us more
                if isinstance(a, _Tensor) and a.requires_grad:
                    return op.entry(*args)
        elif _is_inference():  # the autograd key is skipped there anyway
            return op.entry(*args)
        # Below the autograd key: its Python kernel costs 4 us even when nothing needs a gradient.
        with _BelowAutograd():
            return op.entry(*args)
    except (RuntimeError, TypeError) as error:
        message = str(error).split("\n", 1)[0]
        if wrong := _WRONG_TYPE.search(message):
            raise TypeError(_type_message(op, args, *wrong.groups())) from None
        op.tensors(args)
        if op.check is not None:
            op.check(*op.complete(args))
        name, _, rest = message.partition(": ")
        if name in OPS:  # found in the data, such as malformed cu_seqlens; by a part of this op
            raise ValueError(f"{op.name}: {rest}") from None
        raise


def _type_message(op: Op, args: tuple, wanted: str, name: str) -> str:
    if optional := re.fullmatch(r"Optional\[(.+)\]", wanted):
        wanted = optional[1]
    words = _TYPES.get(wanted, wanted) + (" or None" if optional else "")
    value = dict(zip((a.name for a in op.overload._schema.arguments), args, strict=False))[name]
    # A list may hold something else, an int may be too large: the type alone does not say.
    telling = (list, tuple) if wanted.startswith("List") else int if wanted == "int" else ()
    got = reprlib.repr(value) if isinstance(value, telling) else type(value).__name__
    return f"{op.name}: {name} must be {words}, got {got}"


def _refuse_gradient(op: Op, args: tuple) -> None:
    for name, tensor in op.tensors(args).items():
        if tensor.requires_grad:
            raise ValueError(
                f"{op.name}: {name} must be a tensor without gradient, got one that requires grad; "
                f"{op.refuses_grad}"
            )


def _refuse_tangents(op: Op, args: tuple) -> None:
    """The ops have gradients for reverse mode only, and torch would drop tangents in silence."""
    for name, tensor in op.tensors(args).items():
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{op.name}: {name} must have no tangent, got one; "
                "forward-mode differentiation is not supported"
            )
