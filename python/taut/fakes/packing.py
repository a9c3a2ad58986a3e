"""Shapes and dtypes of what the packing ops give."""

import torch


def pack_mask(attention_mask, *_):
    tokens = torch.library.get_ctx().new_dynamic_size()
    cu_seqlens = attention_mask.new_empty((attention_mask.shape[0] + 1,), dtype=torch.int32)
    return (
        cu_seqlens,
        attention_mask.new_empty((tokens,), dtype=torch.int32),
        attention_mask.new_empty((tokens,), dtype=torch.int32),
    )


pack_lengths = pack_mask


def gather_rows(x, indices):
    return x.new_empty((indices.shape[0], *x.shape[1:]))


def scatter_rows(x, indices, rows):
    return x.new_empty((rows, *x.shape[1:]))
