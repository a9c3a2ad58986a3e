"""One vector per sequence: a program reads a whole sequence, in fp32."""

import torch
import triton
import triton.language as tl

from taut.triton_kernels._launch import launcher, row_strided, row_tile


@triton.jit
def load_bounds(cu_seqlens, sequence, total):
    """Begin and end of a sequence, held inside [0, total] whatever cu_seqlens says."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), begin), total)
    return begin.to(tl.int64), end.to(tl.int64)


@triton.jit
def _keep_larger(best, best_row, values, rows):
    """The larger of two and its row, the earlier row where equal; like torch, NaN is largest."""
    larger = (values > best) | ((values != values) & (best == best))
    return tl.where(larger, values, best), tl.where(larger, rows, best_row)


@triton.jit
def _largest(best, best_row, end):
    """_keep_larger over axis 0."""
    is_nan = best != best
    any_nan = tl.max(is_nan.to(tl.int32), 0) > 0
    largest = tl.where(any_nan, float("nan"), tl.max(tl.where(is_nan, float("-inf"), best), 0))
    found = (best == largest[None, :]) | is_nan
    return largest, tl.min(tl.where(found, best_row, end), 0)


@triton.jit
def _pool_rows(
    x, begin, end, column, columns, stride,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(pooled (BLOCK,), the row each column of it came from, for mode max)."""
    inside = column < columns
    source = tl.zeros((BLOCK,), tl.int64)
    if MODE == "cls" or MODE == "last":
        row = begin if MODE == "cls" else end - 1
        pooled = tl.load(x + row * stride + column, inside & (begin < end), 0).to(tl.float32)
    elif MODE == "mean":
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(begin, end, ROWS):
            row = start + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & inside[None, :]
            total += tl.load(x + row[:, None] * stride + column[None, :], mask, 0).to(tl.float32)
        pooled = tl.sum(total, 0) / tl.maximum(end - begin, 1).to(tl.float32)
    else:
        best = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
        best_row = tl.zeros((ROWS, BLOCK), tl.int64) + begin
        for start in range(begin, end, ROWS):
            row = start + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & inside[None, :]
            offset = row[:, None] * stride + column[None, :]
            values = tl.load(x + offset, mask, float("-inf")).to(tl.float32)
            rows = tl.broadcast_to(row[:, None], (ROWS, BLOCK))
            best, best_row = _keep_larger(best, best_row, values, rows)
        best, source = _largest(best, best_row, end)
        pooled = tl.where((begin < end) & inside, best, 0)
    return pooled, source


@triton.jit(do_not_specialize=["total"])
def _pool_kernel(
    x, cu_seqlens, out, total, columns, stride, smallest_norm,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    begin, end = load_bounds(cu_seqlens, sequence, total)
    column = tl.arange(0, BLOCK)
    pooled, _ = _pool_rows(x, begin, end, column, columns, stride, MODE, ROWS, BLOCK)
    if NORMALIZE:
        norm = tl.sqrt(tl.sum(pooled * pooled, 0))
        pooled = pooled / tl.where(norm < smallest_norm, smallest_norm, norm)
    tl.store(out + sequence * columns + column, pooled.to(out.dtype.element_ty), column < columns)


@triton.jit(do_not_specialize=["total"])
def _pool_backward_kernel(
    grad_out, x, cu_seqlens, dx, total, columns, grad_stride, stride, smallest_norm,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx holds zeros where the gradient is not stored."""
    sequence = tl.program_id(0).to(tl.int64)
    begin, end = load_bounds(cu_seqlens, sequence, total)
    column = tl.arange(0, BLOCK)
    inside = (column < columns) & (begin < end)
    grad = tl.load(grad_out + sequence * grad_stride + column, inside, 0).to(tl.float32)
    source = tl.zeros((BLOCK,), tl.int64)
    if NORMALIZE or MODE == "max":
        pooled, source = _pool_rows(x, begin, end, column, columns, stride, MODE, ROWS, BLOCK)
        if NORMALIZE:
            norm = tl.sqrt(tl.sum(pooled * pooled, 0))
            small = norm <= smallest_norm
            norm = tl.where(small, smallest_norm, norm)
            unit = tl.where(small, 0, pooled / norm)
            grad = (grad - unit * tl.sum(grad * unit, 0)) / norm
    if MODE == "mean":
        grad = (grad / tl.maximum(end - begin, 1).to(tl.float32)).to(dx.dtype.element_ty)
        values = tl.broadcast_to(grad[None, :], (ROWS, BLOCK))
        for start in range(begin, end, ROWS):
            row = start + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & inside[None, :]
            tl.store(dx + row[:, None] * columns + column[None, :], values, mask)
    else:
        if MODE != "max":
            source += begin if MODE == "cls" else end - 1
        tl.store(dx + source * columns + column, grad.to(dx.dtype.element_ty), inside)


SMALLEST_NORM = 1e-12


@launcher
def pool(x, cu_seqlens, mode, normalize):
    x = row_strided(x)
    total, columns = x.shape
    sequences = cu_seqlens.shape[0] - 1
    out = x.new_empty((sequences, columns))
    if out.numel():
        _pool_kernel[(sequences,)](
            x, cu_seqlens.contiguous(), out, total, columns, x.stride(0), SMALLEST_NORM,
            MODE=mode, NORMALIZE=normalize, **row_tile(columns),
        )  # fmt: skip
    return out


@launcher
def pool_backward(grad_out, x, cu_seqlens, mode, normalize):
    grad_out, x = row_strided(grad_out), row_strided(x)
    total, columns = x.shape
    dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    if dx.numel() and grad_out.numel():
        _pool_backward_kernel[(grad_out.shape[0],)](
            grad_out, x, cu_seqlens.contiguous(), dx, total, columns,
            grad_out.stride(0), x.stride(0), SMALLEST_NORM,
            MODE=mode, NORMALIZE=normalize, **row_tile(columns),
        )  # fmt: skip
    return dx
