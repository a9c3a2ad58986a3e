"""The encoder over low-bit weights: layers that hand integers on."""

from typing import ClassVar, NamedTuple

import torch

from taut.encoder.model import Layer
from taut.encoder.native_layer import (
    LINEARS,
    NORMS,
    NativeLayer,
    hands_integers_on,
    takes_rows_of_integers,
)
from taut.nn import Linear, LowbitLinear
from taut.ops.activation import bias_glu
from taut.ops.attention import varlen_attention_qkvpacked


class Activations(NamedTuple):
    """What a layer hands to the next one.

    Args:
        hidden: (total_tokens, hidden_size).
        q, scale: the same as the next layer's projection takes it, int8 and fp32, or None.
    """

    hidden: torch.Tensor
    q: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def _forward(linear, state: Activations, activation: str = "none") -> torch.Tensor:
    if state.q is None:
        return linear(state.hidden, activation)
    return linear(state.q, activation, x_scale=state.scale, out_dtype=state.hidden.dtype)


def _layer_norm(linear, x, x_scale, residual, norm, consumer) -> Activations:
    """norm(linear(x) + residual), with integers for the consumer if it takes them per row."""
    if not isinstance(linear, LowbitLinear):
        return Activations(linear.residual_layer_norm(x, residual, norm))
    if not takes_rows_of_integers(consumer):
        return Activations(linear.residual_layer_norm(x, residual, norm, x_scale=x_scale))
    return Activations(
        *linear.residual_layer_norm(x, residual, norm, x_scale=x_scale, consumer=consumer)
    )


class QuantizedLayer(NativeLayer):
    """A `Layer` with low-bit linears, where it has them; for inference.

    Args:
        layer: the layer whose parts it takes over.
    """

    LINEAR_KINDS: ClassVar[tuple] = (Linear, LowbitLinear)

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.glu, self.activation = layer.glu, layer.activation
        self.heads = layer.heads
        for name in (*LINEARS, *NORMS):
            setattr(self, name, getattr(layer, name))

    def feed(self, following: "QuantizedLayer | None") -> None:
        """Let this layer hand its integers to the projection of the following one."""
        self._next = () if following is None else (following.qkv,)

    def forward(
        self, state, cu_seqlens, alibi_slopes=None, relative_bias=None, plan=None
    ) -> Activations:
        if not isinstance(state, Activations):
            state = Activations(state)
        parts = self._modules  # attributes of a Module take a third of a microsecond each
        context = varlen_attention_qkvpacked(
            _forward(parts["qkv"], state).unflatten(1, (3, self.heads, -1)),
            cu_seqlens,
            alibi_slopes=alibi_slopes,
            relative_bias=relative_bias,
            plan=plan,
        ).view(state.hidden.shape)
        up, down = parts["up"], parts["down"]
        state = _layer_norm(parts["out"], context, None, state.hidden, parts["attention_norm"], up)
        inner, inner_scale = self._inner(up, down, state)
        norm, consumer = parts["output_norm"], self._next[0] if self._next else None
        return _layer_norm(down, inner, inner_scale, state.hidden, norm, consumer)

    def _inner(self, up, down, state: Activations) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `down` multiplies: floats and None, or integers and their scales."""
        if self.glu:
            return bias_glu(_forward(up, state), activation=self.activation), None
        if not hands_integers_on(up, down):
            return _forward(up, state, self.activation), None
        if state.q is None:
            return up.quantized_forward(state.hidden, self.activation, down)
        return up.quantized_forward(state.q, self.activation, down, state.scale, state.hidden.dtype)
