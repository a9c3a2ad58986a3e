"""What embed_layer_norm means. Computed in fp32 (fp64 for fp64 tables), rounded once at the end."""

import torch

from taut.reference import norm
from taut.reference._check import (
    FLOATS,
    REFERENCE_FLOATS,
    check_optional_tensor,
    check_tensor,
    readable,
)

_INTEGERS = (torch.int32, torch.int64)


def _check_range(op, name, ids, rows):
    if not readable(ids):
        return
    bad = ((ids < 0) | (ids >= rows)).nonzero()
    if bad.numel():
        index = int(bad[0])
        value = int(ids[index])
        raise ValueError(f"{op}: {name} must be in [0, {rows}), got {value} at index {index}")


def check_embed_layer_norm(
    input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias, eps
):
    op = "embed_layer_norm"
    check_tensor(op, "word", word, (None, None), "(vocabulary, columns)", REFERENCE_FLOATS)
    _check(
        op, word.dtype, input_ids, positions, token_type_ids, word, position, token_type, weight,
        norm_bias,
    )  # fmt: skip


def check_lowbit_embed_layer_norm(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type, weight,
    norm_bias, eps,
):  # fmt: skip
    op = "lowbit_embed_layer_norm"
    check_tensor(op, "word", word, (None, None), "(vocabulary, columns)", (torch.int8,))
    shape = (word.shape[0], 1)
    check_tensor(op, "word_scale", word_scale, shape, f"{shape}", (torch.float32,))
    check_tensor(op, "weight", weight, word.shape[1:], f"({word.shape[1]},)", FLOATS)
    _check(
        op, weight.dtype, input_ids, positions, token_type_ids, word, position, token_type, weight,
        norm_bias,
    )  # fmt: skip


def _check(
    op, dtype, input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias
):
    check_tensor(op, "input_ids", input_ids, (None,), "(total_tokens,)", _INTEGERS)
    columns, like = word.shape[1], (dtype,)
    for name, ids, table_name, table in (
        ("positions", positions, "position", position),
        ("token_type_ids", token_type_ids, "token_type", token_type),
    ):
        shape = tuple(input_ids.shape)
        check_optional_tensor(op, name, ids, shape, f"{shape} like input_ids", _INTEGERS)
        meaning = f"(rows, {columns}), as wide as word"
        check_optional_tensor(op, table_name, table, (None, columns), meaning, like)
        if ids is not None and table is None:
            raise ValueError(f"{op}: {table_name} must be given with {name}, got None")
    if position is not None and positions is None:
        raise ValueError(f"{op}: positions must be given with position, got None")
    for name, value in (("weight", weight), ("norm_bias", norm_bias)):
        meaning = f"({columns},), one per column of word"
        check_optional_tensor(op, name, value, (columns,), meaning, like)
    _check_range(op, "input_ids", input_ids, word.shape[0])
    if positions is not None:
        _check_range(op, "positions", positions, position.shape[0])
    if token_type_ids is not None:
        _check_range(op, "token_type_ids", token_type_ids, token_type.shape[0])
    elif token_type is not None and token_type.shape[0] == 0:
        raise ValueError(f"{op}: token_type must have at least one row, got (0, {columns})")


def _type_ids(input_ids, token_type_ids):
    return torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids


def _wide_rows(table, ids):
    return table[ids].to(torch.promote_types(table.dtype, torch.float32))


def _embed(input_ids, positions, token_type_ids, word, position, token_type):
    total = _wide_rows(word, input_ids)
    if position is not None:
        total = total + _wide_rows(position, positions)
    if token_type is not None:
        total = total + _wide_rows(token_type, _type_ids(input_ids, token_type_ids))
    return total


def embed_layer_norm(
    input_ids, positions, token_type_ids, word, position, token_type, weight, norm_bias, eps
):
    total = _embed(input_ids, positions, token_type_ids, word, position, token_type)
    wide_weight = None if weight is None else weight.to(total.dtype)
    wide_bias = None if norm_bias is None else norm_bias.to(total.dtype)
    out, _, mean, rstd = norm.layer_norm(total, None, None, wide_weight, wide_bias, eps, False)
    return out.to(word.dtype), mean, rstd


def lowbit_embed_layer_norm(
    input_ids, positions, token_type_ids, word, word_scale, position, token_type, weight,
    norm_bias, eps,
):  # fmt: skip
    rows = word[input_ids].to(word_scale.dtype) * word_scale[input_ids]
    each = torch.arange(len(rows), device=rows.device)
    tables = (None if t is None else t.to(rows.dtype) for t in (position, token_type))
    affine = (None if t is None else t.to(rows.dtype) for t in (weight, norm_bias))
    args = each, positions, token_type_ids, rows, *tables, *affine, eps
    return embed_layer_norm(*args)[0].to(weight.dtype)


def embed_layer_norm_backward(
    grad_out, input_ids, positions, token_type_ids, word, position, token_type, weight, mean, rstd
):
    total = _embed(input_ids, positions, token_type_ids, word, position, token_type)
    wide_weight = None if weight is None else weight.to(total.dtype)
    dtotal, _, dweight, dnorm_bias = norm.layer_norm_backward(
        grad_out.to(total.dtype), None, total, None, None, wide_weight, mean, rstd
    )

    def table_gradient(table, ids):
        if table is None:
            return word.new_empty((0,))
        wide = dtotal.new_zeros(table.shape)
        return wide.index_add(0, ids, dtotal).to(table.dtype)

    return (
        table_gradient(word, input_ids),
        table_gradient(position, positions),
        table_gradient(token_type, _type_ids(input_ids, token_type_ids)),
        dweight.to(word.dtype),
        dnorm_bias.to(word.dtype),
    )
