"""Where a layer of the encoder runs as one op, `encoder_layer`, and what that op is given."""

from typing import ClassVar, NamedTuple

import torch
from torch.nn.modules import module as hooks

from taut.nn import PACKED_DTYPES, Linear, LowbitLinear
from taut.ops.encoder_layer import LayerParts
from taut.packed_module import state_of

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled

LINEARS = ("qkv", "out", "up", "down")
NORMS = ("attention_norm", "output_norm")
_NOTHING = ((), (), None)  # identities of what it was made from, that, and the `Native`


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

    LINEAR_KINDS: ClassVar[tuple] = (Linear,)  # whose one by one is what the op computes

    def __init__(self) -> None:
        super().__init__()
        self._made: tuple = _NOTHING

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_made": _NOTHING}

    def _apply(self, fn, recurse=True):
        self._made = _NOTHING
        return super()._apply(fn, recurse)

    def native(self, hidden: torch.Tensor, consumer=None) -> Native | None:
        """What `encoder_layer` is given, or None where the ops must run one by one: where gradients
        are wanted, on GPUs, under torch.compile and autocast, with hooks on linear layers, and for
        linear layers that are more than a product.

        Args:
            hidden: the layer's input.
            consumer: the projection of the next layer, if this one may hand it integers.
        """
        if _is_compiling() or _is_grad_enabled() or self.training:
            return None
        if not hidden.is_cpu or _is_autocast_enabled("cpu"):
            return None
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return None
        modules, kinds = self._modules, self.LINEAR_KINDS
        kept = []
        for name in LINEARS:
            linear = modules[name]
            kind = type(linear)  # a subclass computes something else
            if kind not in kinds or "forward" in linear.__dict__:
                return None
            if linear._forward_hooks or linear._forward_pre_hooks:
                return None
            if kind is LowbitLinear:
                kept.append(linear.operands)
            else:
                weight = linear._parameters["weight"]
                if weight.dtype not in PACKED_DTYPES or weight.is_inference():
                    return None
                kept += linear.packed(), linear.bias
        numbers = [self.heads, self.activation, self.glu]
        for name in NORMS:
            norm = modules[name]
            if type(norm) is not torch.nn.LayerNorm:
                return None
            weight, bias = norm._parameters["weight"], norm._parameters["bias"]
            kept += weight, bias
            numbers.append(norm.eps)
            if LowbitLinear in kinds:  # of these norms others may be made
                numbers += state_of(weight), state_of(bias)
        kept.append(consumer.operands if isinstance(consumer, LowbitLinear) else None)
        made_from = (*map(id, kept), *numbers)
        if made_from != self._made[0]:
            # The tensors are kept so that nothing else takes their identities.
            self._made = made = made_from, kept, self._gather(consumer)
            return made[2]
        return self._made[2]

    def _gather(self, consumer) -> Native | None:
        linears = [self._modules[name] for name in LINEARS]
        qkv, _, up, down = linears
        low = [isinstance(linear, LowbitLinear) for linear in linears]
        quantize_up = low[1] and takes_rows_of_integers(up)
        chained = not self.glu and hands_integers_on(up, down)
        quantize = low[3] and takes_rows_of_integers(consumer)
        if low[0] and not (qkv.direct or qkv.quantizes_first):
            return None
        floats = (False, True, not quantize_up, not chained)  # what the op gives each
        for linear, given_floats in zip(linears, floats, strict=True):
            if not isinstance(linear, LowbitLinear):
                continue
            takes_floats = linear.direct or linear.quantizes_groups
            if linear.operands is None or given_floats and not takes_floats:
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
        group_size = linear.activation_group_size if linear.activation_bits else 0
        return linear.operands[:5], (*linear.operands[5:], group_size)
    return (linear.packed(), None, None, None, linear.bias), (linear.out_features, 0, 0, 0, 0)
