"""What modules that hold packed weights and tables share."""

from typing import ClassVar

import torch

from taut.reference._check import readable


def state_of(parameter: torch.Tensor | None) -> tuple | object | None:
    """What changes when the parameter is replaced or, where torch counts that, written to. Writes
    to inference tensors are not counted: those never compare equal."""
    if parameter is None:
        return None
    if parameter.is_inference():
        return object()
    return parameter.data_ptr(), parameter.dtype, parameter._version


class PackedModule(torch.nn.Module):
    """A module whose buffers keep their dtypes with `.to(dtype)`. What it makes of them at first use
    is no part of its state, and is forgotten when they move or change."""

    MADE_AT_FIRST_USE: ClassVar[dict] = {}  # attribute -> what it is before

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self.__dict__.update(self.MADE_AT_FIRST_USE)

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if name not in self.MADE_AT_FIRST_USE and name != "training":
            self._forget()

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), **self.MADE_AT_FIRST_USE}

    def _load_from_state_dict(self, *args):
        self._forget()
        super()._load_from_state_dict(*args)

    def _apply(self, fn, recurse=True):
        self._forget()
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if value is not None and moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        return self


def rows_of(ids: torch.Tensor, *tables: torch.Tensor) -> list[torch.Tensor]:
    """The rows of packed tables for token ids, which are checked where the host can read them."""
    rows = tables[0].shape[0]
    if readable(ids) and ids.numel() and not (0 <= ids.min() and ids.max() < rows):
        value = int(next(i for i in ids.tolist() if not 0 <= i < rows))
        raise ValueError(f"input_ids must be in [0, {rows}), got {value}")
    return [table.index_select(0, ids) for table in tables]
