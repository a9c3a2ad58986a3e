"""Weights for linear layers whose inputs are transformed before they are quantized."""

import torch

from taut.reference.quantize import HADAMARD, hadamard_transform


def rotate_hadamard(weight: torch.Tensor) -> torch.Tensor:
    """W H for inputs x H: each row times the Hadamard matrix of each block of 128, over sqrt(128).

    Args:
        weight: (out_features, in_features), in_features a multiple of 128.

    Returns:
        Like weight, fp32.

    Raises:
        ValueError: in_features is no multiple of 128.
    """
    if weight.shape[1] % HADAMARD:
        raise ValueError(
            f"rotate_hadamard: weight must have a multiple of {HADAMARD} columns, "
            f"got {weight.shape[1]}"
        )
    return hadamard_transform(weight.detach().float())


def fold_shift_scale(
    weight: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outlier Suppression+: W' = W diag(scale) and b' = b + W shift for inputs (x - shift) / scale.

    Args:
        weight: (out_features, in_features). bias: (out_features,) or None.
        shift, scale: (in_features,).

    Returns:
        W' and b', fp32. The LayerNorm before it takes (beta - shift) / scale and gamma / scale.

    Source: Wei et al., "Outlier Suppression+", 2023, section 4.
    """
    wide = weight.detach().float()
    folded = wide @ shift.float()
    return wide * scale.float(), folded if bias is None else bias.detach().float() + folded


def fold_kronecker(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """FlatQuant: W' = W P^-T for inputs x P, with P = left kron right.

    Args:
        weight: (out_features, a * b).
        left: (a, a). right: (b, b); both invertible.

    Returns:
        Like weight, fp32; x P W'^T = x W^T.

    Source: Sun et al., "FlatQuant", 2024, section 3.1.
    """
    inverses = (torch.linalg.inv(t.detach().double()) for t in (left, right))
    blocks = weight.detach().double().unflatten(1, (left.shape[0], right.shape[0]))
    a, b = inverses
    return torch.einsum("nij,pi,qj->npq", blocks, a, b).flatten(1).float()
