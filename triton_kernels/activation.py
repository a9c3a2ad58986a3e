"""Bias + activation, and the gated linear units: elementwise, in fp32."""

import torch
import triton
import triton.language as tl

from taut.triton_kernels._launch import (
    PARTIAL_ROWS,
    launcher,
    row_strided,
    vector,
)
from taut.triton_kernels.norm import load_row_vector

# 2048 elements per program: 16 per thread of 4 warps, in 16-byte accesses of 256 adjacent columns.
_TILE = {"ROWS": 8, "BLOCK": 256, "num_warps": 4}


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of fp32 x, by the names transformers uses."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0, x)  # NaN stays NaN
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 x (1 + tanh(u)) = x sigmoid(2u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    return x


@triton.jit
def tanh(x):
    # Near 0 a polynomial (relative error 4e-9, as on the CPU): 2 sigmoid(2x) - 1 cancels there.
    z = x * x
    p = ((-0.00571704653 * z + 0.0206505888) * z - 0.0537434986) * z + 0.133314913
    near = x + x * z * (p * z - 0.333332839)
    return tl.where(tl.abs(x) < 0.625, near, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def _derivative(x, ACTIVATION: tl.constexpr):
    # Beyond 100 every derivative is at its limit; squares of larger numbers would overflow.
    x = tl.where(x > 100, 100, tl.where(x < -100, -100, x))
    if ACTIVATION == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        slope = cdf + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        slope = s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(x)
        slope = s * (1 + x * (1 - s))
    elif ACTIVATION == "tanh":
        t = tanh(x)
        slope = 1 - t * t
    else:
        slope = tl.full(x.shape, 1, tl.float32)
    return slope


@triton.jit
def _load(x, bias, row, column, mask, columns, stride):
    values = tl.load(x + row[:, None] * stride + column[None, :], mask, 0).to(tl.float32)
    return values + load_row_vector(bias, column, columns, 0)


@triton.jit(do_not_specialize=["rows"])
def _activation_kernel(
    x, bias, out, rows, columns, stride,
    ACTIVATION: tl.constexpr, GLU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """columns counts those of out; with GLU x has twice as many, the gates in its second half."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    values = activate(_load(x, bias, row, column, mask, columns, stride), ACTIVATION)
    if GLU:
        values *= _load(x, bias, row, columns + column, mask, 2 * columns, stride)
    offset = row[:, None] * columns + column[None, :]
    tl.store(out + offset, values.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def _activation_backward_kernel(
    grad_out, x, bias, dx, partial, rows, columns, grad_stride, stride,
    ACTIVATION: tl.constexpr, GLU: tl.constexpr, PARTIAL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial (programs, columns of x) fp32: this program's share of dbias."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = columns * 2 if GLU else columns
    dbias = tl.zeros((BLOCK,), tl.float32)
    dgate_bias = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PARTIAL, ROWS):
        row = program * PARTIAL + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        offset = row[:, None] * grad_stride + column[None, :]
        grad = tl.load(grad_out + offset, mask, 0).to(tl.float32)
        inner = _load(x, bias, row, column, mask, columns, stride)
        offset = row[:, None] * wide + column[None, :]
        if GLU:
            gate = _load(x, bias, row, columns + column, mask, wide, stride)
            dgate = grad * activate(inner, ACTIVATION)
            tl.store(dx + columns + offset, dgate.to(dx.dtype.element_ty), mask)
            dgate_bias += tl.sum(tl.where(mask, dgate, 0), 0)
            grad *= gate
        dinner = grad * _derivative(inner, ACTIVATION)
        tl.store(dx + offset, dinner.to(dx.dtype.element_ty), mask)
        dbias += tl.sum(tl.where(mask, dinner, 0), 0)
    if bias is not None:
        sums = partial + program * wide + column
        tl.store(sums, dbias, column < columns)
        if GLU:
            tl.store(sums + columns, dgate_bias, column < columns)


def _activation(x, bias, activation, glu):
    x = row_strided(x)
    rows, columns = x.shape[0], x.shape[1] // 2 if glu else x.shape[1]
    out = x.new_empty((rows, columns))
    if out.numel():
        grid = (triton.cdiv(rows, _TILE["ROWS"]), triton.cdiv(columns, _TILE["BLOCK"]))
        _activation_kernel[grid](
            x, vector(bias), out, rows, columns, x.stride(0),
            ACTIVATION=activation, GLU=glu, **_TILE,
        )  # fmt: skip
    return out


def _activation_backward(grad_out, x, bias, activation, glu):
    grad_out, x = row_strided(grad_out), row_strided(x)
    rows, columns = grad_out.shape
    dx = x.new_empty(x.shape)
    programs = triton.cdiv(rows, PARTIAL_ROWS)
    partial = None
    if bias is not None:
        partial = x.new_empty((programs, x.shape[1]), dtype=torch.float32)
    if dx.numel():
        _activation_backward_kernel[(programs, triton.cdiv(columns, _TILE["BLOCK"]))](
            grad_out, x, vector(bias), dx, partial, rows, columns,
            grad_out.stride(0), x.stride(0),
            ACTIVATION=activation, GLU=glu, PARTIAL=PARTIAL_ROWS, **_TILE,
        )  # fmt: skip
    dbias = x.new_zeros((x.shape[1],)) if partial is None else partial.sum(0).to(x.dtype)
    return dx, dbias


@launcher
def bias_activation(x, bias, activation):
    return _activation(x, bias, activation, False)


@launcher
def bias_activation_backward(grad_out, x, bias, activation):
    return _activation_backward(grad_out, x, bias, activation, False)


@launcher
def bias_glu(x, bias, activation):
    return _activation(x, bias, activation, True)


@launcher
def bias_glu_backward(grad_out, x, bias, activation):
    return _activation_backward(grad_out, x, bias, activation, True)
