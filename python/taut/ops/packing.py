"""Packing a padded batch: where its tokens are, and moving rows by index."""

from typing import NamedTuple

import torch

from taut import registry
from taut.ops._call import call

_PACK_MASK = registry.OPS["pack_mask"]
_PACK_LENGTHS = registry.OPS["pack_lengths"]
_GATHER_ROWS = registry.OPS["gather_rows"]
_SCATTER_ROWS = registry.OPS["scatter_rows"]


class Packing(NamedTuple):
    """Where the tokens of a padded batch (batch, length) are once packed; all int32."""

    cu_seqlens: torch.Tensor  # (batch + 1,): sequence s has rows cu_seqlens[s] : cu_seqlens[s + 1]
    indices: torch.Tensor  # (total_tokens,): each token's row in the batch as (batch * length, ...)
    positions: torch.Tensor  # (total_tokens,): each token's rank within its sequence


def pack_mask(attention_mask: torch.Tensor) -> Packing:
    """Find the tokens of a padded batch from its attention mask, in one pass.

    Args:
        attention_mask: (batch, length), bool, integer or float; nonzero where there is a token.
            Padding may be on the left or in between.

    Returns:
        Packing: cu_seqlens (batch + 1,), indices (total_tokens,), positions (total_tokens,), all
        int32. A token's position counts the tokens before it, not the padding.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Packing(*call(_PACK_MASK, attention_mask))


def pack_lengths(lengths: torch.Tensor, padded_length: int) -> Packing:
    """Find the tokens of a batch padded on the right from its lengths.

    Args:
        lengths: (batch,), int32 or int64, each from 0 to padded_length.
        padded_length: the length of the padded batch.

    Returns:
        Packing: as of the mask `arange(padded_length) < lengths[:, None]`; see `pack_mask`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return Packing(*call(_PACK_LENGTHS, lengths, padded_length))


def gather_rows(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Take the rows `x[indices]`: unpadding, with the indices of a `Packing`.

    Args:
        x: (rows, ...), any dtype and any trailing shape.
        indices: (total_tokens,), int32 or int64, each in [0, rows); they may repeat.

    Returns:
        (total_tokens, ...) in the dtype of x. Its gradient adds up rows whose index repeats.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_GATHER_ROWS, x, indices)


def scatter_rows(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """Put row i of x at row `indices[i]` of a tensor of zeros: padding, with the indices of a
    `Packing`.

    Args:
        x: (total_tokens, ...), any dtype and any trailing shape.
        indices: (total_tokens,), int32 or int64, each in [0, rows). They must be unique: which row
            an index that repeats gets is undefined.
        rows: how many rows the result has.

    Returns:
        (rows, ...) in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return call(_SCATTER_ROWS, x, indices, rows)


def _setup_gather(ctx, inputs, output):
    x, indices = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(indices)


def _gather_gradient(ctx, grad_out):
    (indices,) = ctx.saved_tensors
    # Not scatter_rows: indices may repeat.
    dx = grad_out.new_zeros((ctx.rows, *grad_out.shape[1:]))
    return dx.index_add(0, indices, grad_out), None


def _setup_scatter(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_gradient(ctx, grad_out):
    (indices,) = ctx.saved_tensors
    return torch.ops.taut.gather_rows(grad_out, indices), None, None


registry.register_autograd("gather_rows", _gather_gradient, _setup_gather)
registry.register_autograd("scatter_rows", _scatter_gradient, _setup_scatter)
