"""Argument checks: "<op>: <argument> must be <what was expected>, got <what came>".

Types are checked before, by the dispatcher: see ops/_call.py."""

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE_FLOATS = (*FLOATS, torch.float64)  # the reference also takes fp64, for gradient checks


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(op: str, name: str, value, shape: tuple, meaning: str, dtypes: tuple) -> None:
    """`shape` holds sizes, or None where any size will do; `meaning` is the shape in words."""
    if value.dim() != len(shape) or any(
        want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
    ):
        raise ValueError(f"{op}: {name} must be {meaning}, got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        public = [d for d in dtypes if d is not torch.float64]  # which kernels refuse
        accepted = ", ".join(map(dtype_name, public))
        raise ValueError(f"{op}: {name} must be {accepted}, got {dtype_name(value.dtype)}")


def check_optional_tensor(op, name, value, shape, meaning, dtypes) -> None:
    if value is not None:
        check_tensor(op, name, value, shape, meaning, dtypes)


def check_choice(op: str, name: str, value, accepted: tuple) -> None:
    right_type = isinstance(value, type(accepted[0]))
    if not right_type or value not in accepted:
        words = ", ".join(map(str, accepted))
        got = repr(value) if right_type else type(value).__name__
        error = ValueError if right_type else TypeError
        raise error(f"{op}: {name} must be one of {words}, got {got}")


def readable(t: torch.Tensor) -> bool:
    """Whether a check may look at the data of t: on a GPU the host would have to wait for it, and
    the kernels there stay inside their memory whatever the data says; a graph that is compiled
    cannot depend on it."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def check_cu_seqlens(op: str, name: str, value, total_tokens: int) -> None:
    """int32 offsets [0, ..., at most total_tokens] that never decrease."""
    check_tensor(op, name, value, (None,), "(batch + 1,)", (torch.int32,))
    if value.shape[0] == 0:
        raise ValueError(f"{op}: {name} must be (batch + 1,), got (0,)")
    if not readable(value):
        return
    offsets = value.tolist()
    if offsets[0] != 0:
        raise ValueError(f"{op}: {name} must start at 0, got {offsets[0]}")
    for i, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        if end < begin:
            raise ValueError(
                f"{op}: {name} must not decrease, got {begin} then {end} at index {i + 1}"
            )
    if offsets[-1] > total_tokens:
        raise ValueError(
            f"{op}: {name} must end within total_tokens = {total_tokens}, got {offsets[-1]}"
        )
