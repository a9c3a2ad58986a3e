"""Bias + residual + LayerNorm or RMSNorm: a program holds whole rows, in fp32."""

import torch
import triton
import triton.language as tl

from taut.triton_kernels._launch import (
    PARTIAL_ROWS,
    launcher,
    row_stride,
    row_strided,
    row_tile,
    vector,
)


@triton.jit
def load_row_vector(pointer, column, columns, default: tl.constexpr):
    """One value per column as (1, BLOCK) in fp32; `default` where there is no vector."""
    if pointer is None:
        values = tl.full((column.shape[0],), default, tl.float32)
    else:
        values = tl.load(pointer + column, column < columns, 0).to(tl.float32)
    return values[None, :]


@triton.jit
def load_sum(x, residual, bias, row, column, mask, columns, x_stride, residual_stride):
    total = tl.load(x + row[:, None] * x_stride + column[None, :], mask, 0).to(tl.float32)
    if bias is not None:
        total += load_row_vector(bias, column, columns, 0)
    if residual is not None:
        offset = row[:, None] * residual_stride + column[None, :]
        total += tl.load(residual + offset, mask, 0).to(tl.float32)
    return total


@triton.jit
def normalize_rows(total, mask, columns, eps, CENTRED: tl.constexpr):
    """(normalized, mean, rstd) of every row; columns outside `mask` are 0 in `total`."""
    mean = tl.sum(total, 1) / columns
    if CENTRED:
        centred = tl.where(mask, total - mean[:, None], 0)
    else:
        centred = total
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    return centred * rstd[:, None], mean, rstd


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x, residual, bias, weight, norm_bias, out, total_out, mean_out, rstd_out,
    rows, columns, x_stride, residual_stride, eps,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    total = load_sum(x, residual, bias, row, column, mask, columns, x_stride, residual_stride)
    normalized, mean, rstd = normalize_rows(total, mask, columns, eps, CENTRED)
    scaled = normalized * load_row_vector(weight, column, columns, 1)
    scaled += load_row_vector(norm_bias, column, columns, 0)
    offset = row[:, None] * columns + column[None, :]
    tl.store(out + offset, scaled.to(out.dtype.element_ty), mask)
    if total_out is not None:
        tl.store(total_out + offset, total.to(out.dtype.element_ty), mask)
    if CENTRED:
        tl.store(mean_out + row, mean, row < rows)
    tl.store(rstd_out + row, rstd, row < rows)


@triton.jit
def norm_gradient(grad, normalized, rstd, weight, mask, columns, CENTRED: tl.constexpr):
    """Gradient of (total - mean) * rstd * weight with respect to total."""
    dnorm = tl.where(mask, grad * weight, 0)
    along = tl.sum(dnorm * normalized, 1) / columns
    dtotal = dnorm - normalized * along[:, None]
    if CENTRED:
        dtotal -= (tl.sum(dnorm, 1) / columns)[:, None]
    return dtotal * rstd[:, None]


@triton.jit(do_not_specialize=["rows"])
def _norm_backward_kernel(
    grad_out, grad_sum, x, residual, bias, weight, mean, rstd, dx, partial,
    rows, columns, grad_stride, grad_sum_stride, x_stride, residual_stride,
    CENTRED: tl.constexpr, PARTIAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial (programs, 3, columns) fp32: this program's share of dbias, dweight, dnorm_bias."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    scale = load_row_vector(weight, column, columns, 1)
    dbias = tl.zeros((BLOCK,), tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dnorm_bias = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PARTIAL, ROWS):
        row = program * PARTIAL + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total = load_sum(x, residual, bias, row, column, mask, columns, x_stride, residual_stride)
        if CENTRED:
            total -= tl.load(mean + row, row < rows, 0)[:, None]
        row_rstd = tl.load(rstd + row, row < rows, 0)
        normalized = tl.where(mask, total * row_rstd[:, None], 0)
        offset = row[:, None] * grad_stride + column[None, :]
        grad = tl.load(grad_out + offset, mask, 0).to(tl.float32)
        dtotal = norm_gradient(grad, normalized, row_rstd, scale, mask, columns, CENTRED)
        if grad_sum is not None:
            offset = row[:, None] * grad_sum_stride + column[None, :]
            dtotal += tl.load(grad_sum + offset, mask, 0).to(tl.float32)
        offset = row[:, None] * columns + column[None, :]
        tl.store(dx + offset, dtotal.to(dx.dtype.element_ty), mask)
        if bias is not None:
            dbias += tl.sum(tl.where(mask, dtotal, 0), 0)
        if weight is not None:
            dweight += tl.sum(grad * normalized, 0)
        dnorm_bias += tl.sum(grad, 0)
    sums = partial + program * 3 * columns + column
    tl.store(sums, dbias, column < columns)
    tl.store(sums + columns, dweight, column < columns)
    tl.store(sums + 2 * columns, dnorm_bias, column < columns)


def normalize(x, residual, bias, weight, norm_bias, eps, return_sum, centred, dtype):
    """(out, sum, mean, rstd), the first two of `dtype`; the operands may be of any float type."""
    x, residual = row_strided(x), row_strided(residual)
    rows, columns = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    total = x.new_empty(x.shape if return_sum else (0,), dtype=dtype)
    mean, rstd = (x.new_empty((rows,), dtype=torch.float32) for _ in range(2))
    if rows:
        tile = row_tile(columns)
        _norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, residual, vector(bias), vector(weight), vector(norm_bias),
            out, total if return_sum else None, mean, rstd,
            rows, columns, x.stride(0), row_stride(residual), eps, CENTRED=centred, **tile,
        )  # fmt: skip
    return out, total, mean, rstd


def _norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd, centred):
    grad_out, grad_sum, x, residual = map(row_strided, (grad_out, grad_sum, x, residual))
    rows, columns = x.shape
    dx = x.new_empty(x.shape)
    programs = triton.cdiv(rows, PARTIAL_ROWS)
    partial = x.new_empty((programs, 3, columns), dtype=torch.float32)
    if rows:
        _norm_backward_kernel[(programs,)](
            grad_out, grad_sum, x, residual, vector(bias), vector(weight), vector(mean),
            vector(rstd), dx, partial,
            rows, columns,
            row_stride(grad_out), row_stride(grad_sum), row_stride(x), row_stride(residual),
            CENTRED=centred, PARTIAL=PARTIAL_ROWS, **row_tile(columns),
        )  # fmt: skip
    return dx, *partial.sum(0).to(x.dtype)


@launcher
def layer_norm(x, residual, bias, weight, norm_bias, eps, return_sum):
    return normalize(x, residual, bias, weight, norm_bias, eps, return_sum, True, x.dtype)


@launcher
def layer_norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd):
    return _norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd, True)


@launcher
def rms_norm(x, residual, bias, weight, eps, return_sum):
    out, total, _, rstd = normalize(
        x, residual, bias, weight, None, eps, return_sum, False, x.dtype
    )
    return out, total, rstd


@launcher
def rms_norm_backward(grad_out, grad_sum, x, residual, bias, weight, rstd):
    dx, dbias, dweight, _ = _norm_backward(
        grad_out, grad_sum, x, residual, bias, weight, rstd, rstd, False
    )
    return dx, dbias, dweight
