"""Sum of embedding rows + LayerNorm in one pass over packed tokens."""

import torch

from taut import registry
from taut.ops._call import call

_EMBED = registry.OPS["embed_layer_norm"]
_LOWBIT_EMBED = registry.OPS["lowbit_embed_layer_norm"]


def embed_layer_norm(
    input_ids: torch.Tensor,
    word: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    token_type: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """LayerNorm(word[input_ids] + position[positions] + token_type[token_type_ids]), in one pass.

    Args:
        input_ids: (total_tokens,); int32 or int64, like positions and token_type_ids.
        word: (vocabulary, columns); fp32, bf16 or fp16. Rows of tables may be strided.
        positions: (total_tokens,); each token's row of `position`. Given together with it.
        position: (positions, columns), dtype of word.
        token_type_ids: (total_tokens,); without it every token is of type 0.
        token_type: (types, columns), dtype of word.
        weight, norm_bias: (columns,), dtype of word; scale and shift after normalisation.
        eps: added to the variance.

    Returns:
        (total_tokens, columns) in the dtype of word. Gradients of the tables are dense and
        deterministic: tokens are added up in order.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; an id outside
            its table by its value and index.

    Source: Devlin et al., "BERT", 2019, section 3.
    """
    out, _, _ = call(
        _EMBED, input_ids, positions, token_type_ids, word, position, token_type, weight,
        norm_bias, eps,
    )  # fmt: skip
    return out


def lowbit_embed_layer_norm(
    input_ids: torch.Tensor,
    word: torch.Tensor,
    word_scale: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    token_type: torch.Tensor | None = None,
    weight: torch.Tensor,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """`embed_layer_norm` over a word table of 8 bits, whose rows are widened as they are added; for
    inference.

    Args:
        input_ids, positions, position, token_type_ids, token_type, norm_bias, eps: as in
            `embed_layer_norm`; tables and norm_bias in the dtype of weight.
        word: (vocabulary, columns), int8. Rows may be strided.
        word_scale: (vocabulary, 1), fp32: what a code of each row stands for, as
            `quantize_per_token` gives it.
        weight: (columns,), fp32, bf16 or fp16.

    Returns:
        (total_tokens, columns) in the dtype of weight.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; an id outside
            its table by its value and index.
    """
    return call(
        _LOWBIT_EMBED, input_ids, positions, token_type_ids, word, word_scale, position,
        token_type, weight, norm_bias, eps,
    )  # fmt: skip


def _setup(ctx, inputs, output):
    ctx.has_norm_bias = inputs[7] is not None
    ctx.save_for_backward(*inputs[:7], output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _gradient(ctx, grad_out, _grad_mean, _grad_rstd):
    saved = ctx.saved_tensors  # taken once: activation checkpointing recomputes it for one use
    position, token_type, weight = saved[4:7]
    dword, dposition, dtoken_type, dweight, dnorm_bias = torch.ops.taut.embed_layer_norm_backward(
        grad_out.contiguous(), *saved
    )
    return (
        None,
        None,
        None,
        dword,
        None if position is None else dposition,
        None if token_type is None else dtoken_type,
        None if weight is None else dweight,
        dnorm_bias if ctx.has_norm_bias else None,
        None,
    )


registry.register_autograd("embed_layer_norm", _gradient, _setup)
