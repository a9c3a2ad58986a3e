"""Sum of embedding tables + LayerNorm: a program holds whole rows, in fp32."""

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
from taut.triton_kernels.norm import load_row_vector, norm_gradient, normalize_rows


@triton.jit
def _load_table_rows(table, scale, ids, row, rows, column, columns, limit, stride):
    """Rows table[ids] in fp32, (ROWS, BLOCK), times scale[ids] if there is one; NaN where an id is
    outside [0, limit), since the device cannot refuse it and must not read there. Without ids every
    row is row 0."""
    if ids is None:
        index = tl.zeros(row.shape, tl.int64)
    else:
        index = tl.load(ids + row, row < rows, 0).to(tl.int64)
    inside = (index >= 0) & (index < limit)
    mask = inside[:, None] & (column < columns)[None, :]
    values = tl.load(table + index[:, None] * stride + column[None, :], mask, 0).to(tl.float32)
    if scale is not None:
        values *= tl.load(scale + index, inside, 0)[:, None]
    return tl.where(inside[:, None], values, float("nan"))


@triton.jit
def _load_embeddings(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type,
    row, rows, column, columns, words, position_rows, types,
    word_stride, position_stride, type_stride,
):  # fmt: skip
    total = _load_table_rows(
        word, word_scale, input_ids, row, rows, column, columns, words, word_stride
    )
    if position is not None:
        total += _load_table_rows(
            position, None, positions, row, rows, column, columns, position_rows, position_stride
        )
    if token_type is not None:
        total += _load_table_rows(
            token_type, None, token_type_ids, row, rows, column, columns, types, type_stride
        )
    return total


@triton.jit(do_not_specialize=["rows"])
def _embed_layer_norm_kernel(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type,
    weight, norm_bias, out, mean_out, rstd_out,
    rows, columns, words, position_rows, types,
    word_stride, position_stride, type_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    total = _load_embeddings(
        input_ids, positions, token_type_ids, word, word_scale, position, token_type,
        row, rows, column, columns, words, position_rows, types,
        word_stride, position_stride, type_stride,
    )  # fmt: skip
    total = tl.where(mask, total, 0)
    normalized, mean, rstd = normalize_rows(total, mask, columns, eps, True)
    scaled = normalized * load_row_vector(weight, column, columns, 1)
    scaled += load_row_vector(norm_bias, column, columns, 0)
    offset = row[:, None] * columns + column[None, :]
    tl.store(out + offset, scaled.to(out.dtype.element_ty), mask)
    tl.store(mean_out + row, mean, row < rows)
    tl.store(rstd_out + row, rstd, row < rows)


@triton.jit(do_not_specialize=["rows"])
def _embed_layer_norm_backward_kernel(
    grad_out, input_ids, positions, token_type_ids, word, position, token_type,
    weight, mean, rstd, dtotal_out, partial,
    rows, columns, words, position_rows, types,
    grad_stride, word_stride, position_stride, type_stride,
    PARTIAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dtotal_out (rows, columns) fp32: the gradient of the summed embeddings; partial
    (programs, 2, columns) fp32: this program's share of dweight and dnorm_bias."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    scale = load_row_vector(weight, column, columns, 1)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dnorm_bias = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PARTIAL, ROWS):
        row = program * PARTIAL + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total = _load_embeddings(
            input_ids, positions, token_type_ids, word, None, position, token_type,
            row, rows, column, columns, words, position_rows, types,
            word_stride, position_stride, type_stride,
        )  # fmt: skip
        row_rstd = tl.load(rstd + row, row < rows, 0)
        row_mean = tl.load(mean + row, row < rows, 0)
        normalized = tl.where(mask, (total - row_mean[:, None]) * row_rstd[:, None], 0)
        offset = row[:, None] * grad_stride + column[None, :]
        grad = tl.load(grad_out + offset, mask, 0).to(tl.float32)
        dtotal = norm_gradient(grad, normalized, row_rstd, scale, mask, columns, True)
        tl.store(dtotal_out + row[:, None] * columns + column[None, :], dtotal, mask)
        if weight is not None:
            dweight += tl.sum(grad * normalized, 0)
        dnorm_bias += tl.sum(grad, 0)
    sums = partial + program * 2 * columns + column
    tl.store(sums, dweight, column < columns)
    tl.store(sums + columns, dnorm_bias, column < columns)


def _table_rows(*tables):
    return tuple(0 if t is None else t.shape[0] for t in tables)


def _embed(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type, weight,
    norm_bias, eps, dtype,
):  # fmt: skip
    word, position, token_type = map(row_strided, (word, position, token_type))
    rows, columns = input_ids.shape[0], word.shape[1]
    out = word.new_empty((rows, columns), dtype=dtype)
    mean, rstd = (word.new_empty((rows,), dtype=torch.float32) for _ in range(2))
    if rows:
        tile = row_tile(columns)
        _embed_layer_norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            *map(vector, (input_ids, positions, token_type_ids)),
            word, word_scale, position, token_type,
            vector(weight), vector(norm_bias), out, mean, rstd,
            rows, columns, *_table_rows(word, position, token_type),
            *map(row_stride, (word, position, token_type)), eps, **tile,
        )  # fmt: skip
    return out, mean, rstd


@launcher
def embed_layer_norm(
    input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias, eps
):
    return _embed(
        input_ids, positions, token_type_ids, word, None, position, token_type, weight, norm_bias,
        eps, word.dtype,
    )  # fmt: skip


@launcher
def lowbit_embed_layer_norm(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type, weight,
    norm_bias, eps,
):  # fmt: skip
    return _embed(
        input_ids, positions, token_type_ids, word, word_scale.contiguous(), position, token_type,
        weight, norm_bias, eps, weight.dtype,
    )[0]  # fmt: skip


@launcher
def embed_layer_norm_backward(
    grad_out, input_ids, positions, token_type_ids, word, position, token_type, weight, mean, rstd
):
    grad_out, word, position, token_type = map(row_strided, (grad_out, word, position, token_type))
    rows, columns = grad_out.shape
    programs = triton.cdiv(rows, PARTIAL_ROWS)
    dtotal = word.new_empty((rows, columns), dtype=torch.float32)
    partial = word.new_empty((programs, 2, columns), dtype=torch.float32)
    if rows:
        _embed_layer_norm_backward_kernel[(programs,)](
            grad_out, *map(vector, (input_ids, positions, token_type_ids)),
            word, position, token_type, vector(weight), vector(mean), vector(rstd), dtotal,
            partial,
            rows, columns, *_table_rows(word, position, token_type),
            *map(row_stride, (grad_out, word, position, token_type)),
            PARTIAL=PARTIAL_ROWS, **row_tile(columns),
        )  # fmt: skip

    def table_gradient(table, ids):
        if table is None:
            return word.new_empty((0,))
        if ids is None:  # every token has type 0
            gradient = table.new_zeros(table.shape)
            gradient[0] = dtotal.sum(0)
            return gradient
        # torch sorts the ids, so that a row's tokens are added in order; ids outside the table,
        # whose tokens are NaN already, go to its nearest row rather than outside the gradient.
        inside = ids.clamp(0, table.shape[0] - 1)
        wide = torch.ops.aten.embedding_dense_backward(dtotal, inside, table.shape[0], -1, False)
        return wide.to(table.dtype)

    return (
        table_gradient(word, input_ids),
        table_gradient(position, positions),
        table_gradient(token_type, token_type_ids),
        *partial.sum(0).to(word.dtype),
    )
