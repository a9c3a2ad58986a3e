"""One vector per sequence of a packed batch."""

import torch

from taut import registry
from taut.ops._call import call

_POOL = registry.OPS["pool"]


def pool(
    x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str = "mean", normalize: bool = False
) -> torch.Tensor:
    """Pool each sequence's token vectors into one, optionally scaled to unit length.

    Sums are taken in fp32 in token order, so a sequence gives the same bits in any batch.

    Args:
        x: (total_tokens, columns); fp32, bf16 or fp16. Rows may be strided.
        cu_seqlens: int32 (batch + 1,); sequence s has rows cu_seqlens[s] to cu_seqlens[s + 1].
        mode: cls (the first token), mean, max or last (the last token).
        normalize: divide by max(L2 norm, 1e-12), in fp32 before rounding.

    Returns:
        (batch, columns) in the dtype of x; zeros for an empty sequence. The gradient of max goes
        to the first maximal token of each column.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; also for
            cu_seqlens that does not start at 0, decreases or ends past total_tokens.

    Source: Reimers and Gurevych, "Sentence-BERT", 2019, section 3.
    """
    return call(_POOL, x, cu_seqlens, mode, normalize)


def _setup(ctx, inputs, output):
    x, cu_seqlens, ctx.mode, ctx.normalize = inputs
    ctx.save_for_backward(x, cu_seqlens)


def _gradient(ctx, grad_out):
    x, cu_seqlens = ctx.saved_tensors
    dx = torch.ops.taut.pool_backward(grad_out.contiguous(), x, cu_seqlens, ctx.mode, ctx.normalize)
    return dx, None, None, None


registry.register_autograd("pool", _gradient, _setup)
