"""What launchers share: checks, the device to launch on, tile tables, number types."""

import functools
import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from taut.registry import OPS

# (columns up to, rows per program, warps): a program holds whole rows, so that a row's sums never
# leave it. 2048 elements for 4 warps are 16 per thread: 16-byte loads in flight, and registers left
# for a second and third operand. 16 warps is the most a block of 1024 threads holds on hardware with
# 64-wide warps. Rows per program depend on nothing but the width of a row, so that a row is summed
# in the same order whatever the batch.
_ROW_TILES = (
    (64, 32, 4),
    (128, 16, 4),
    (256, 8, 4),
    (512, 4, 4),
    (1024, 2, 4),
    (2048, 1, 4),
    (4096, 1, 8),
    (math.inf, 1, 16),
)

# Rows one program adds up for a gradient that is a sum over all rows; torch then adds the partial
# sums. Fixed, so that the order of additions depends on the number of rows alone.
PARTIAL_ROWS = 64


def launcher(function: Callable) -> Callable:
    """Makes `function` the Triton launcher of the op of its name."""
    op = function.__name__

    @functools.wraps(function)
    def run(*args):
        tensors = list(OPS[op].tensors(args).values())
        if OPS[op].check is not None:
            OPS[op].check(*args)
        if any(t.dtype == torch.float64 for t in tensors):
            raise ValueError(f"{op}: tensors must be float32, bfloat16, float16, got float64")
        with torch.cuda.device_of(tensors[0]):
            return function(*args)

    return run


def row_tile(columns: int) -> dict:
    """Tile of a kernel whose programs hold whole rows of `columns` elements."""
    rows, warps = next(tile for limit, *tile in _ROW_TILES if columns <= limit)
    block = max(16, triton.next_power_of_2(columns))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps}


def row_strided(t: torch.Tensor | None) -> torch.Tensor | None:
    """t, or a contiguous copy where elements of its last dimension are not adjacent."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def row_stride(t: torch.Tensor | None) -> int:
    return 0 if t is None else t.stride(0)


def vector(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.contiguous()


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type tl.dot multiplies in. The interpreter keeps bf16 as its bits and multiplies those,
    so there bf16 is widened first."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[
        dtype
    ]
