"""torch's ways to attend within sequences of unequal length, and others' where they are installed.

Each takes what taut takes, qkv (total_tokens, 3, heads, head_dim), and gives (total_tokens, heads,
head_dim); `sdpa padded` holds both padded, (batch, longest, ...), as a padded pipeline would.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

Forward = Callable[[torch.Tensor], torch.Tensor]
LARGE = 1024  # longer sequences have their exact scores computed one head at a time


def cu_seqlens_of(lengths: list[int], device) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def alibi_bias(slopes: torch.Tensor, longest: int) -> torch.Tensor:
    """(heads, longest, longest), by the distance to either side."""
    at = torch.arange(longest, device=slopes.device)
    return -slopes[:, None, None] * (at[:, None] - at).abs()


def loop(lengths: list[int], slopes=None) -> Forward:
    """SDPA per sequence: nothing is padded."""
    bias = None if slopes is None else alibi_bias(slopes, max(lengths))

    def forward(qkv):
        out = []
        for part in qkv.split(lengths):
            q, k, v = part.permute(1, 2, 0, 3).unsqueeze(1)
            n = len(part)
            here = None if bias is None else bias[None, :, :n, :n].to(q.dtype)
            out.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=here)[0])
        return torch.cat(out, 1).transpose(0, 1)

    return forward


def exact(lengths: list[int], slopes=None) -> Forward:
    """In fp64, from inputs of any dtype."""

    def forward(qkv):
        if max(lengths) <= LARGE:
            return loop(lengths, slopes)(qkv.double())
        heads = [
            loop(lengths, None if slopes is None else slopes[h : h + 1])(
                qkv[:, :, h : h + 1].double()
            )
            for h in range(qkv.shape[2])
        ]
        return torch.cat(heads, 1)

    return forward


class Padded:
    """SDPA over a batch padded to its longest sequence, padding hidden by a mask."""

    def __init__(self, lengths: list[int], device, slopes=None) -> None:
        longest = max(lengths)
        self.real = torch.arange(longest, device=device) < torch.tensor(
            lengths, device=device
        ).unsqueeze(1)
        self.mask = self.real[:, None, None]
        if slopes is not None:
            hidden = torch.zeros(self.mask.shape, device=device)
            hidden.masked_fill_(~self.mask, float("-inf"))
            self.mask = hidden + alibi_bias(slopes, longest)

    def pad(self, qkv: torch.Tensor) -> torch.Tensor:
        wide = qkv.new_zeros(*self.real.shape, *qkv.shape[1:])
        wide[self.real] = qkv.detach()
        return wide

    def unpad(self, out: torch.Tensor) -> torch.Tensor:
        return out[self.real]

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        q, k, v = wide.permute(2, 0, 3, 1, 4)
        mask = self.mask if self.mask.dtype == torch.bool else self.mask.to(q.dtype)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).contiguous()


def nested(lengths: list[int], device) -> Forward:
    """SDPA over jagged NestedTensors; it wants q, k and v apart."""
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0)

    def forward(qkv):
        parts = (
            torch.nested.nested_tensor_from_jagged(t.contiguous(), offsets).transpose(1, 2)
            for t in qkv.unbind(1)
        )
        return functional.scaled_dot_product_attention(*parts).transpose(1, 2).values()

    return forward


def flex(lengths: list[int], device, slopes=None) -> Forward:
    """Compiled FlexAttention with a block mask of documents, which is not timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    counts = torch.tensor(lengths, device=device)
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    total = len(owner)
    block_mask = create_block_mask(
        lambda b, h, i, j: owner[i] == owner[j], None, None, total, total, device=str(device)
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    score_mod = None
    if slopes is not None:

        def score_mod(score, b, h, i, j):
            return score - slopes[h] * (i - j).abs()

    def forward(qkv):
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)
        return compiled(q, k, v, score_mod, block_mask)[0].transpose(0, 1)

    return forward


def varlen_attn(lengths: list[int], device) -> Forward:
    """torch's own varlen attention; GPU only."""
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = cu_seqlens_of(lengths, device), max(lengths)
    return lambda qkv: varlen_attn(*qkv.unbind(1), cu, cu, longest, longest)


def flash_attn(lengths: list[int], device, slopes=None) -> Forward:
    """The flash_attn package; GPU only."""
    from flash_attn import flash_attn_varlen_qkvpacked_func

    cu, longest = cu_seqlens_of(lengths, device), max(lengths)
    return lambda qkv: flash_attn_varlen_qkvpacked_func(qkv, cu, longest, alibi_slopes=slopes)
