"""What packing means: which rows of a padded batch hold tokens, and moving rows by index."""

import torch

from taut.reference._check import check_tensor, dtype_name, readable

_INTEGERS = (torch.int32, torch.int64)


def _check_padded_rows(op, batch, length):
    if batch * length >= 2**31:
        raise ValueError(f"{op}: batch * length must be below 2**31, got {batch} * {length}")


def check_pack_mask(attention_mask):
    op = "pack_mask"
    if attention_mask.is_complex():
        got = dtype_name(attention_mask.dtype)
        raise ValueError(f"{op}: attention_mask must be bool, integer or float, got {got}")
    like = (attention_mask.dtype,)
    check_tensor(op, "attention_mask", attention_mask, (None, None), "(batch, length)", like)
    _check_padded_rows(op, *attention_mask.shape)


def check_pack_lengths(lengths, padded_length):
    op = "pack_lengths"
    check_tensor(op, "lengths", lengths, (None,), "(batch,)", _INTEGERS)
    if padded_length < 0:
        raise ValueError(f"{op}: padded_length must not be negative, got {padded_length}")
    _check_padded_rows(op, lengths.shape[0], padded_length)
    bad = ((lengths < 0) | (lengths > padded_length)).nonzero()
    if bad.numel():
        index = int(bad[0])
        raise ValueError(
            f"{op}: lengths must be in [0, {padded_length}], "
            f"got {int(lengths[index])} at index {index}"
        )


def _check_rows(op, x, indices, rows):
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have at least one dimension, got ()")
    check_tensor(op, "indices", indices, (None,), "(total_tokens,)", _INTEGERS)
    if not readable(indices):
        return
    bad = ((indices < 0) | (indices >= rows)).nonzero()
    if bad.numel():
        index = int(bad[0])
        raise ValueError(
            f"{op}: indices must be in [0, {rows}), got {int(indices[index])} at index {index}"
        )


def check_gather_rows(x, indices):
    _check_rows("gather_rows", x, indices, x.shape[0] if x.dim() else 0)


def check_scatter_rows(x, indices, rows):
    op = "scatter_rows"
    if rows < 0:
        raise ValueError(f"{op}: rows must not be negative, got {rows}")
    _check_rows(op, x, indices, rows)
    if x.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{op}: indices must have one entry per row of x {tuple(x.shape)}, "
            f"got {tuple(indices.shape)}"
        )


def pack_mask(attention_mask):
    kept = attention_mask != 0
    cu_seqlens = torch.zeros(kept.shape[0] + 1, dtype=torch.int32, device=kept.device)
    cu_seqlens[1:] = kept.sum(1).cumsum(0)
    positions = kept.cumsum(1)[kept] - 1
    indices = kept.flatten().nonzero().flatten()
    return cu_seqlens, indices.int(), positions.int()


def pack_lengths(lengths, padded_length):
    return pack_mask(torch.arange(padded_length, device=lengths.device) < lengths[:, None])


def gather_rows(x, indices):
    return x[indices]


def scatter_rows(x, indices, rows):
    out = x.new_zeros((rows, *x.shape[1:]))
    out[indices] = x
    return out
