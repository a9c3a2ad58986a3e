"""Where a layer of the encoder runs as one op, `encoder_layer`, and what that op is given."""

from typing import NamedTuple

import torch

from taut.nn import PACKED_DTYPES, Linear, LowbitLinear
from taut.ops.encoder_layer import LayerParts

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled

LINEARS = ("qkv", "out", "up", "down")
NORMS = ("attention_norm", "output_norm")


class Native(NamedTuple):
    """What `encoder_layer` is given besides the tokens.

    Args:
        parts: weights and settings.
        quantize_qkv: `qkv` takes integers that the op does not make of floats.
        quantize: the next layer takes integers.
    """

    parts: LayerParts
    quantize_qkv: bool
    quantize: bool


def takes_rows_of_integers(consumer) -> bool:
    """Whether a LayerNorm may give it integers, with one scale per row."""
    return (
        isinstance(consumer, LowbitLinear)
        and consumer.takes_integers
        and not consumer.activation_group_size
    )


def hands_integers_on(up, down) -> bool:
    """Whether `up` may give `down` integers."""
    chained = isinstance(up, LowbitLinear) and isinstance(down, LowbitLinear)
    return chained and down.takes_integers and not down.migrates


class NativeLayer(torch.nn.Module):
    """A layer with `qkv`, `out`, `up`, `down`, `attention_norm` and `output_norm`, and the settings
    `heads`, `activation` and `glu`."""

    def __init__(self) -> None:
        super().__init__()
        self._forget_native()

    def _forget_native(self) -> None:
        self._made_from: tuple = ()  # identities of tensors
        self._kept: tuple = ()  # and the tensors, so that nothing else takes these identities
        self._native: Native | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_made_from": (), "_kept": (), "_native": None}

    def native(self, hidden: torch.Tensor, consumer=None) -> Native | None:
        """What `encoder_layer` is given, or None where the ops must run one by one: where gradients
        are wanted, on GPUs, under torch.compile and autocast, with hooks inside, and for linear
        layers that are more than a product.

        Args:
            hidden: the layer's input.
            consumer: the projection of the next layer, if this one may hand it integers.
        """
        if _is_compiling() or _is_grad_enabled() or self.training:
            return None
        if not hidden.is_cpu or _is_autocast_enabled("cpu"):
            return None
        modules = self._modules
        kept = []
        for name in LINEARS:
            linear = modules[name]
            kind = type(linear)  # a subclass computes something else
            if linear._forward_hooks or linear._forward_pre_hooks:
                return None
            if kind is LowbitLinear:
                kept.append(linear.operands)
            elif kind is Linear and hidden.dtype in PACKED_DTYPES:
                kept += linear.packed(), linear.bias
            else:
                return None
        for name in NORMS:
            if type(modules[name]) is not torch.nn.LayerNorm:
                return None
            kept += modules[name]._parameters.values()
        kept.append(consumer.operands if isinstance(consumer, LowbitLinear) else None)
        made_from = tuple(map(id, kept))
        if made_from != self._made_from:
            self._native = self._gather(consumer)
            self._kept, self._made_from = tuple(kept), made_from
        return self._native

    def _gather(self, consumer) -> Native | None:
        linears = [self._modules[name] for name in LINEARS]
        qkv, out, up, down = linears
        low = [isinstance(linear, LowbitLinear) for linear in linears]
        quantize_up = low[1] and takes_rows_of_integers(up)
        chained = not self.glu and hands_integers_on(up, down)
        quantize = low[3] and takes_rows_of_integers(consumer)
        given_floats = [(out, True), (up, not quantize_up), (down, not chained)]
        if low[0] and not (qkv.direct or qkv.quantizes_first):
            return None
        for linear in linears:
            if isinstance(linear, LowbitLinear) and linear.operands is None:
                return None
        for linear, floats in given_floats:
            if isinstance(linear, LowbitLinear) and floats:
                if not (linear.direct or linear.quantizes_groups):
                    return None
        norms = [self._modules[name] for name in NORMS]
        affine = up.migrated(norms[0]) if quantize_up else (None, None)
        next_affine = consumer.migrated(norms[1]) if quantize else (None, None)
        tensors, formats = zip(*map(_operands, linears), strict=True)
        parts = LayerParts(
            *tensors,
            formats=sum(formats, ()),
            attention_norm=(norms[0].weight, norms[0].bias, *affine),
            output_norm=(norms[1].weight, norms[1].bias, *next_affine),
            heads=self.heads,
            activation=self.activation,
            glu=self.glu,
            quantize_up=quantize_up,
            inner_group_size=down.activation_group_size if chained else -1,
            attention_eps=norms[0].eps,
            output_eps=norms[1].eps,
        )
        quantize_qkv = low[0] and not (qkv.direct or qkv.quantizes_groups)
        return Native(parts, quantize_qkv, quantize)


def _operands(linear) -> tuple[tuple, tuple]:
    """(packed, scale, zero_point, codebook, bias) and (out_features, bits, group_size, x_bits,
    x_group_size)."""
    if isinstance(linear, LowbitLinear):
        return linear.operands[:5], (*linear.operands[5:], linear.activation_group_size)
    return (linear.packed(), None, None, None, linear.bias), (linear.out_features, 0, 0, 0, 0)
