"""How public functions reach the dispatcher."""

import torch

from taut.registry import Op


def _needs_autograd(args) -> bool:
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled():
        for a in args:  # as a generator in any() this costs 0.6 us more
            if getattr(a, "requires_grad", False):
                return True
        return False
    return torch.is_inference_mode_enabled()  # there the autograd key is skipped anyway


def call(op: Op, *args):
    """Run `op`. Native launchers check every argument themselves (in C++, without cost here); when
    one refuses, the op's own check says why as a TypeError or ValueError."""
    try:
        if _needs_autograd(args):
            return op.overload(*args)
        # Below the autograd key: its Python kernel costs 4 us even when nothing needs a gradient.
        with torch._C._AutoDispatchBelowAutograd():
            return op.overload(*args)
    except (RuntimeError, TypeError) as error:
        if op.check is not None:
            op.check(*args)
        message = str(error).split("\n", 1)[0]
        if message.startswith(f"{op.name}: "):  # found in the data, such as malformed cu_seqlens
            raise ValueError(message) from None
        raise
