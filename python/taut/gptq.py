"""Rounding a weight so that its errors cancel on the inputs it will see."""

import torch

from taut.formats import LowbitWeight
from taut.quantizers import clipped_scale, integer_weight

_BLOCK = 128  # columns between two updates of the columns behind them
_DAMPING = 0.01  # of the mean second moment, so that it can be inverted


def compensated(
    weight: torch.Tensor, bits: int, group_size: int, second_moment: torch.Tensor
) -> LowbitWeight:
    """Symmetric integers, each column rounded after the errors of the columns before it were moved
    onto those behind it, where the inputs are alike.

    Args:
        weight: (out_features, in_features), floating point.
        bits: 2, 3, 4 or 8.
        group_size: neighbouring input features that share a scale; 0: the whole row.
        second_moment: (in_features, in_features), x^T x of many inputs, positive semi-definite.

    Returns:
        The quantized weight; scales are those with the least squared error.

    Source: Frantar et al., "GPTQ", 2023, algorithm 1.
    """
    rest = weight.detach().float().clone()
    columns, half = rest.shape[1], 2 ** (bits - 1)
    size = group_size or columns
    moment = second_moment.double()
    damping = _DAMPING * moment.diagonal().mean().clamp(min=1e-12)
    moment = moment + damping * torch.eye(columns, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    q = torch.empty_like(rest)
    scales = []
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = torch.empty_like(rest[:, begin:end])
        for k in range(begin, end):
            if k % size == 0:
                scales.append(clipped_scale(rest[:, k : k + size], bits))
            scale = scales[-1]
            q[:, k] = (rest[:, k] / scale).round().clamp(-half, half - 1)
            error = (rest[:, k] - q[:, k] * scale) / factor[k, k]
            rest[:, k:end] -= error[:, None] * factor[k, k:end]
            errors[:, k - begin] = error
        rest[:, end:] -= errors @ factor[begin:end, end:]
    return integer_weight(q + half, torch.stack(scales, 1), None, bits, group_size)
