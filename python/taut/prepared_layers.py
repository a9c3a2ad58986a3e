"""Encoder layers as `encoder_layers` takes them: by the number under which they are kept."""

import itertools
import secrets
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch

from taut._native import libraries

# From somewhere else in every process: a number from another one must not name a layer here.
_numbers = itertools.count(secrets.randbits(62))
_layers: "weakref.WeakValueDictionary[int, PreparedLayer]" = weakref.WeakValueDictionary()


class LayerParts(NamedTuple):
    """A layer's weights and settings, laid out as `reference/encoder_layer.py` says.

    Args:
        qkv, out, up, down: (packed, scale, zero_point, codebook, bias), the linear layers.
        formats: 20 ints: out_features, bits, group_size, x_bits and x_group_size of each.
        attention_norm, output_norm: (weight, bias, quant_weight, quant_bias).
        heads: of hidden_size / heads channels each.
        activation: of the feed-forward network.
        glu: `up` gives values and gates.
        quantize_up: `up` takes the integers that attention_norm gives it.
        inner_group_size: columns of what `up` hands to `down` as integers that share a scale; 0:
            all; -1: it hands on floats.
        attention_eps, output_eps: of the norms.
        quantize: the next layer takes the integers that output_norm gives it, if `down` is a
            low-bit weight.
    """

    qkv: tuple
    out: tuple
    up: tuple
    down: tuple
    formats: tuple
    attention_norm: tuple
    output_norm: tuple
    heads: int
    activation: str
    glu: bool
    quantize_up: bool
    inner_group_size: int
    attention_eps: float
    output_eps: float
    quantize: bool

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, as "qkv[0]" and so on."""
        return {
            f"{name}[{i}]": tensor
            for name, part in self._asdict().items()
            if isinstance(part, tuple)
            for i, tensor in enumerate(part)
            if isinstance(tensor, torch.Tensor)
        }


class PreparedLayer:
    """A layer that the native library keeps for as long as this object lives, so that a call hands
    over a number and not some 20 tensors.

    Args:
        parts: what it is made of. Tensors are kept, not copied.
    """

    def __init__(self, parts: LayerParts) -> None:
        self.parts, self.number = parts, next(_numbers)
        _layers[self.number] = self
        if libraries.module is not None:
            torch.ops.taut.keep_layer(self.number, *parts)
            weakref.finalize(self, libraries.module.forget_layer, self.number).atexit = False

    def __reduce__(self) -> tuple:
        return PreparedLayer, (self.parts,)  # a copy has a number of its own


def parts_of(op: str, numbers: Sequence[int]) -> list[LayerParts]:
    """What was prepared under these numbers.

    Raises:
        ValueError: there are none, or a number is not in use.
    """
    if not numbers:
        raise ValueError(f"{op}: layers must be at least one, got none")
    found = [_layers.get(number) for number in numbers]
    for number, layer in zip(numbers, found, strict=True):
        if layer is None:
            raise ValueError(f"{op}: layers must be numbers of prepared layers, got {number}")
    return [layer.parts for layer in found]
