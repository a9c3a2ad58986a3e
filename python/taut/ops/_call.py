"""How public functions reach the dispatcher."""

import torch

from taut.registry import Op

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_inference = torch.is_inference_mode_enabled
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def call(op: Op, *args):
    """Run `op`. Native launchers check every argument themselves (in C++, without cost here); when
    one refuses, the op's own check says why as a TypeError or ValueError.

    Everything here runs on every call: bench_overhead.py measures what it costs.
    """
    try:
        if _is_compiling():
            return op.overload(*args)
        if _is_grad_enabled():
            for a in args:  # as a generator in any() this costs 0.6 us more
                if isinstance(a, torch.Tensor) and a.requires_grad:
                    return op.entry(*args)
        elif _is_inference():  # the autograd key is skipped there anyway
            return op.entry(*args)
        # Below the autograd key: its Python kernel costs 4 us even when nothing needs a gradient.
        with _BelowAutograd():
            return op.entry(*args)
    except (RuntimeError, TypeError) as error:
        if op.check is not None:
            op.check(*op.complete(args))
        message = str(error).split("\n", 1)[0]
        if message.startswith(f"{op.name}: "):  # found in the data, such as malformed cu_seqlens
            raise ValueError(message) from None
        raise
