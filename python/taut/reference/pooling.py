"""What pooling means. Computed in fp32 (fp64 for fp64 input), rounded once at the end."""

import torch

from taut.reference._check import (
    REFERENCE_FLOATS,
    check_choice,
    check_cu_seqlens,
    check_tensor,
)

MODES = ("cls", "mean", "max", "last")
SMALLEST_NORM = 1e-12


def check_pool(x, cu_seqlens, mode, normalize):
    check_tensor("pool", "x", x, (None, None), "(total_tokens, columns)", REFERENCE_FLOATS)
    check_choice("pool", "mode", mode, MODES)
    check_cu_seqlens("pool", "cu_seqlens", cu_seqlens, x.shape[0])


def _sequences(x, cu_seqlens):
    """Each sequence's rows in wide arithmetic; rows behind the last sequence belong to none."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    offsets = cu_seqlens.tolist()
    return [wide[begin:end] for begin, end in zip(offsets, offsets[1:], strict=False)]


def _pool_one(rows, mode):
    if rows.shape[0] == 0:
        return rows.new_zeros(rows.shape[1])
    if mode == "cls":
        return rows[0]
    if mode == "last":
        return rows[-1]
    return rows.mean(0) if mode == "mean" else rows.amax(0)


def pool(x, cu_seqlens, mode, normalize):
    pooled = [_pool_one(rows, mode) for rows in _sequences(x, cu_seqlens)]
    out = torch.stack(pooled) if pooled else x.new_zeros((0, x.shape[1]))
    if normalize:
        out = out / out.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
    return out.to(x.dtype)


def _spread(rows, gradient, mode):
    """The gradient of _pool_one with respect to rows."""
    out = torch.zeros_like(rows)
    if rows.shape[0] == 0:
        return out
    if mode == "mean":
        out[:] = gradient / rows.shape[0]
    elif mode == "max":  # the first maximal token of each column
        out.scatter_(0, rows.argmax(0, keepdim=True), gradient[None])
    else:
        out[0 if mode == "cls" else -1] = gradient
    return out


def pool_backward(grad_out, x, cu_seqlens, mode, normalize):
    parts = []
    for rows, grad in zip(_sequences(x, cu_seqlens), grad_out, strict=True):
        gradient = grad.to(rows.dtype)
        if normalize:
            pooled = _pool_one(rows, mode)
            length = pooled.norm()
            if length <= SMALLEST_NORM:
                gradient = gradient / SMALLEST_NORM
            else:
                unit = pooled / length
                gradient = (gradient - unit * (gradient @ unit)) / length
        parts.append(_spread(rows, gradient, mode).to(x.dtype))
    behind = x.shape[0] - sum(part.shape[0] for part in parts)
    return torch.cat([*parts, x.new_zeros((behind, x.shape[1]))])
