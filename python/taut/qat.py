"""Training with the rounding of the low-bit formats: values that are rounded on the way forward, by
the code that quantizes for good, and gradients that pass straight through where it is sane.

    weights    integers, mean and median ternary scales: everywhere
               4/3-mean ternary scales: where |w| <= 1
               QuEST: where |x_hat - h| <= c std / (2^b - 1) ("trust"), in the rotated basis
    inputs     everywhere; QuEST: as for its weights
"""

import torch
from torch.nn import functional

from taut.encoder.pretrained import Pretrained
from taut.encoder.quantize import adopt
from taut.nn import Linear, LowbitLinear
from taut.ops.activation import bias_activation
from taut.ops.norm import layer_norm
from taut.reference.quantize import MIDRISE_CLIP, hadamard_transform, quantize_rows
from taut.schemes import Scheme, parse_scheme, quantize_weight


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounded, mask):
        ctx.save_for_backward(mask)
        return rounded.to(x.dtype)

    @staticmethod
    def backward(ctx, grad_out):
        (mask,) = ctx.saved_tensors
        return grad_out if mask is None else grad_out * mask, None, None


def straight_through(
    x: torch.Tensor, rounded: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`rounded`, with the gradient of x where the mask is 1.

    Args:
        x: any shape, floating point.
        rounded: like x; gets no gradient.
        mask: like x, 1 where the gradient passes; None: everywhere.

    Returns:
        Like x.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """
    return _StraightThrough.apply(x, rounded, mask)


def fake_quantize_input(
    x: torch.Tensor, bits: int = 8, *, grid: str = "absmax", hadamard: bool = False
) -> torch.Tensor:
    """The values that `taut.quantize_per_token` stands for, with straight-through gradients.

    Args:
        x: (total_tokens, columns), floating point.
        bits, grid, hadamard: as in `taut.quantize_per_token`; rotated inputs stay rotated.

    Returns:
        Like x.

    Source: Panferov et al., "QuEST", 2025, section 3 (trust, for the midrise grid).
    """
    h = hadamard_transform(x.contiguous()) if hadamard else x
    with torch.no_grad():
        q, scale = quantize_rows(h.detach().float(), bits, grid)
        half = 0.5 if grid == "midrise" else 0.0
        rounded = (q.float() + half) * scale[:, None]
        mask = trust_mask(h.detach().float(), rounded, bits) if grid == "midrise" else None
    return straight_through(h, rounded, mask)


def trust_mask(h: torch.Tensor, rounded: torch.Tensor, bits: int) -> torch.Tensor:
    """Where |rounded - h| <= c std / (2^bits - 1), std being the root mean square of each row.

    Args:
        h, rounded: (rows, columns), fp32.
        bits: 2, 3, 4 or 8.

    Returns:
        Like h, 1 or 0.

    Source: Panferov et al., "QuEST", 2025, section 3.3.
    """
    std = h.square().mean(1, keepdim=True).sqrt()
    return ((rounded - h).abs() <= MIDRISE_CLIP[bits] / (2**bits - 1) * std).to(h.dtype)


def fake_quantize_weight(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The values that `taut.schemes.quantize_weight` gives, with straight-through gradients.

    Args:
        weight: (out_features, in_features), floating point.
        scheme: any but "float"; the weight of a rotated one comes out rotated.

    Returns:
        Like weight.
    """
    h = hadamard_transform(weight.contiguous()) if scheme.hadamard else weight
    with torch.no_grad():
        rounded = quantize_weight(weight, scheme).dequantize()
        mask = None
        if scheme.kind == "midrise":
            mask = trust_mask(h.detach().float(), rounded, scheme.bits)
        elif scheme.measure == "row_mean":
            mask = (weight.abs() <= 1).to(weight.dtype)
    return straight_through(h, rounded, mask)


class QatLinear(Linear):
    """A linear layer that computes what its low-bit form will; for training.

    Args:
        linear: the layer whose parameters it takes over.
        scheme: by name, such as "ternary" (`taut.schemes`).
    """

    def __init__(self, linear: Linear, scheme: str) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scheme = scheme
        self._parsed = parse_scheme(scheme)
        self._forget_packed()

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        scheme = self._parsed
        if scheme.activation_bits:
            x = fake_quantize_input(
                x, scheme.activation_bits, grid=scheme.grid, hadamard=scheme.hadamard
            )
        return functional.linear(x, fake_quantize_weight(self.weight, scheme), bias)

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """activation(x @ weight.T + bias), x and weight rounded."""
        if activation == "none":
            return self._product(x, self.bias)
        return bias_activation(self._product(x, None), self.bias, activation)

    def residual_layer_norm(self, x, residual, norm, dropout=0.0):
        """norm(dropout(x @ weight.T + bias) + residual), x and weight rounded."""
        out = self._product(x, self.bias)
        out = functional.dropout(out, dropout) if dropout > 0 else out
        return layer_norm(out, norm.weight, norm.bias, residual=residual, eps=norm.eps)

    @torch.no_grad()
    def to_lowbit(self) -> LowbitLinear:
        """The same layer over its low-bit weight, for inference."""
        scheme = self._parsed
        bias = None if self.bias is None else self.bias.detach().clone()
        return LowbitLinear(
            quantize_weight(self.weight, scheme),
            bias,
            activation_bits=scheme.activation_bits,
            grid=scheme.grid,
            hadamard=scheme.hadamard,
        )


def prepare(module: torch.nn.Module, scheme: str) -> torch.nn.Module:
    """Put a `QatLinear` in the place of every `taut.nn.Linear` of the layers in a module.

    Args:
        module: an encoder, or anything that holds `taut.nn.Linear`; changed in place. Linears
            outside of an encoder's layers (projections and heads) stay as they are.
        scheme: by name (`taut.schemes`); not "float".

    Returns:
        The module. `convert` makes it ready for inference.

    Raises:
        ValueError: there is no such scheme, it is "float", or the module holds no such linear.
    """
    if parse_scheme(scheme).kind == "float":
        raise ValueError("prepare: scheme must be one that rounds, got 'float'")
    if not any(type(part) is Linear for part in _layers(module).modules()):
        raise ValueError(
            "prepare: module must hold a taut.nn.Linear in its layers, "
            f"got none in {type(module).__name__}"
        )
    return _replace(module, Linear, lambda linear: QatLinear(linear, scheme))


def convert(module: torch.nn.Module) -> torch.nn.Module:
    """Put a `LowbitLinear` in the place of every `QatLinear`, in place; outputs stay the same up to
    the order of fp32 sums. An encoder can then be saved with `save_pretrained`.

    Args:
        module: what `prepare` gave, trained.

    Returns:
        The module, for inference, in eval mode.

    Raises:
        ValueError: an encoder whose layers were prepared with several schemes.
    """
    schemes = {part.scheme for part in module.modules() if isinstance(part, QatLinear)}
    if isinstance(module, Pretrained) and len(schemes) > 1:
        raise ValueError(
            f"convert: module must be an encoder with one scheme, got {', '.join(sorted(schemes))}"
        )
    _replace(module, QatLinear, QatLinear.to_lowbit)
    if isinstance(module, Pretrained) and schemes:
        adopt(module, schemes.pop())
    return module.eval()


def _layers(module: torch.nn.Module) -> torch.nn.Module:
    return module.backbone.layers if isinstance(module, Pretrained) else module


def _replace(module: torch.nn.Module, kind: type, make) -> torch.nn.Module:
    for parent in list(_layers(module).modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))
    return module
