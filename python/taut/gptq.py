"""Rounding a weight so that its errors cancel on the inputs it will see."""

import numpy as np
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
    columns, half = weight.shape[1], 2 ** (bits - 1)
    size = group_size or columns
    moment = second_moment.double()
    damping = _DAMPING * moment.diagonal().mean().clamp(min=1e-12)
    moment = moment + damping * torch.eye(columns, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    rest = weight.detach().float().T.contiguous()  # an input feature is a row
    q = torch.empty_like(rest)
    scales = []
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = np.empty((end - begin, weight.shape[0]), dtype=np.float32)
        # NumPy: so many small steps cost torch's threads more than they save.
        block, codes, steps = (t[begin:end].numpy() for t in (rest, q, factor[:, begin:end]))
        for k in range(end - begin):
            if (begin + k) % size == 0:
                scales.append(clipped_scale(rest[begin + k : begin + k + size].T, bits))
            scale = scales[-1].numpy()
            codes[k] = np.clip(np.rint(block[k] / scale), -half, half - 1)
            errors[k] = (block[k] - codes[k] * scale) / steps[k, k]
            block[k:] -= steps[k, k:, None] * errors[k]
        rest[end:] -= factor[begin:end, end:].T @ torch.from_numpy(errors)
    q = q.T.contiguous()
    return integer_weight(q + half, torch.stack(scales, 1), None, bits, group_size)
