"""BiBERT and BiT over packed bits, for inference: between two LayerNorms every tensor is bits.

    query, key, value    bits of the hidden states -> a bit per channel, by an integer threshold
    attention            bits -> two rails, by two integers per channel
    out, down            bits -> scale, bias, residual, LayerNorm -> hidden states and their bits
    up                   bits -> two rails, by three integers per channel: the activation is in them

A state dict holds rows of bits as `taut.pack_bits` gives them; the order that the kernels read is made
at first use. What float modules become these is in `taut.binarize`.
"""

from typing import ClassVar, NamedTuple

import torch

from taut.encoder.binary import BinaryLayer
from taut.formats import WORD, words_of
from taut.ops.binary_attention import binary_attention
from taut.ops.binary_gemm import (
    binary_linear,
    binary_linear_bits,
    binary_linear_layer_norm,
    pack_binary_weight,
    pack_bits,
    unpack_bits,
)
from taut.packed_module import PackedModule, rows_of


class Activations(NamedTuple):
    """What a layer hands to the next one.

    Args:
        hidden: (total_tokens, hidden_size).
        bits: the same as the next layer's first projection takes it, or None behind the last layer.
    """

    hidden: torch.Tensor
    bits: torch.Tensor | None = None


class BitLinear(PackedModule):
    """A linear layer over packed signs; buffers start uninitialised.

    Args:
        in_features, out_features: sizes.
        result: "floats" by a scale and a bias per channel; "bits" or "rails" (two of them) by
            integer thresholds.
        moved: inputs are compared with a threshold per channel instead of with 0.
    """

    MADE_AT_FIRST_USE: ClassVar[dict] = {"_packed": None}

    def __init__(
        self, in_features: int, out_features: int, result: str = "floats", moved: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.result = in_features, out_features, result
        shape = (out_features, words_of(in_features))
        self.register_buffer("bits", torch.empty(shape, dtype=torch.int64))
        if result == "floats":
            self.register_buffer("scale", torch.empty(out_features))
            self.register_buffer("bias", torch.empty(out_features))
        else:
            shape = (out_features,) if result == "bits" else (3, out_features)
            self.register_buffer("thresholds", torch.empty(shape, dtype=torch.int32))
        self.register_buffer("bit_threshold", torch.empty(in_features) if moved else None)

    def extra_repr(self) -> str:
        """What printing the layer shows of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"result={self.result}, moved={self.bit_threshold is not None}"
        )

    def packed(self) -> torch.Tensor:
        """The bits in the order that the kernels read (`taut.pack_binary_weight`)."""
        if self._packed is None:
            with torch.inference_mode(False):
                self._packed = pack_binary_weight(self.bits)
        return self._packed

    def signs(self, x: torch.Tensor) -> torch.Tensor:
        """x (total_tokens, in_features) as this layer takes it: the bits of what is above."""
        return pack_bits(x, self.bit_threshold)

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Floats -> floats: activation(scale * (signs @ weight.T) + bias), dtype of x."""
        return binary_linear(
            self.signs(x), self.packed(), self.scale, self.bias,
            in_features=self.in_features, epilogue=activation, out_dtype=x.dtype,
        )  # fmt: skip

    def to_bits(self, x: torch.Tensor) -> torch.Tensor:
        """Bits -> bits, by the thresholds."""
        return binary_linear_bits(x, self.packed(), self.thresholds, in_features=self.in_features)

    def residual_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        norm: torch.nn.LayerNorm,
        consumer: "BitLinear | None",
    ) -> Activations:
        """Bits -> norm(scale * (x @ weight.T) + bias + residual), with the bits for `consumer`."""
        hidden, bits = binary_linear_layer_norm(
            x, self.packed(), self.scale, self.bias, residual, norm.weight, norm.bias, norm.eps,
            in_features=self.in_features,
            bit_threshold=None if consumer is None else consumer.bit_threshold,
        )  # fmt: skip
        return Activations(hidden, None if consumer is None else bits)


class BitEmbedding(PackedModule):
    """A table of signs with a scale for each row; buffers start uninitialised.

    Args:
        rows, columns: of the table.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.register_buffer("bits", torch.empty(rows, words_of(columns), dtype=torch.int64))
        self.register_buffer("scale", torch.empty(rows, 1))

    def forward(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows (len(ids), columns) of ids, rounded to dtype once."""
        bits, scale = rows_of(ids, self.bits, self.scale)
        return (unpack_bits(bits, self.columns) * scale).to(dtype)


class BitAttention(PackedModule):
    """Attention from bits to two rails; buffers start uninitialised.

    Args:
        heads: of 64 channels each.
        kind: "bibert" or "bit"; "bit" has scales and thresholds.
    """

    MADE_AT_FIRST_USE: ClassVar[dict] = {"_options": None}

    def __init__(self, heads: int, kind: str) -> None:
        super().__init__()
        elastic = kind == "bit"
        self.mode = "elastic" if elastic else "bool"
        shape = (3, heads, WORD)
        self.register_buffer(
            "thresholds", torch.empty(shape, dtype=torch.int32) if elastic else None
        )
        # softmax_scale and alpha
        self.register_buffer("scales", torch.empty(2) if elastic else None)

    def forward(self, q, k, v, cu_seqlens):
        """(total_tokens, heads) words three times -> two rails (total_tokens, 2, heads)."""
        if self._options is None:  # read once: on a GPU the host waits
            names = ("softmax_scale", "alpha")
            scales = () if self.scales is None else self.scales.tolist()
            self._options = dict(zip(names, scales, strict=False))
        return binary_attention(
            q, k, v, cu_seqlens, mode=self.mode, thresholds=self.thresholds, **self._options
        )


class BitLayer(torch.nn.Module):
    """A `BinaryLayer` over packed bits, for inference; its buffers start uninitialised.

    Args:
        layer: whose shape it has, and whose LayerNorms it takes over.
    """

    def __init__(self, layer: BinaryLayer) -> None:
        super().__init__()
        hidden, inner = layer.up.in_features, layer.up.out_features
        moved = layer.kind == "bit"  # each projection has shifts of its own
        each = (hidden,) * 3 if moved else (3 * hidden,)
        self.projections = torch.nn.ModuleList(
            BitLinear(hidden, columns, "bits", moved) for columns in each
        )
        self.attention = BitAttention(layer.attention.heads, layer.kind)
        self.out = BitLinear(hidden, hidden)
        self.attention_norm = layer.attention_norm
        self.up = BitLinear(hidden, inner, "rails", moved)
        self.down = BitLinear(inner, hidden)
        self.output_norm = layer.output_norm
        self._next: tuple[BitLinear, ...] = ()  # in a tuple: no module of this one

    def feed(self, following: "BitLayer | None") -> None:
        """Let this layer hand its bits to the first projection of the following one."""
        self._next = () if following is None else (following.projections[0],)

    def forward(
        self, state, cu_seqlens, alibi_slopes=None, relative_bias=None, plan=None
    ) -> Activations:
        first, *others = self.projections
        if not isinstance(state, Activations):
            state = Activations(state, first.signs(state))
        words = [first.to_bits(state.bits)]
        words += [linear.to_bits(linear.signs(state.hidden)) for linear in others]
        q, k, v = (part for word in words for part in word.chunk(3 // len(words), 1))
        context = self.attention(q, k, v, cu_seqlens)
        state = self.out.residual_layer_norm(context, state.hidden, self.attention_norm, self.up)
        inner = self.up.to_bits(state.bits)
        consumer = self._next[0] if self._next else None
        return self.down.residual_layer_norm(inner, state.hidden, self.output_norm, consumer)


def replace_modules(model: torch.nn.Module) -> None:
    """Put the modules over packed bits, uninitialised, on the CPU, in the place of the trainable
    ones of a model (a `taut.encoder.pretrained.Pretrained`)."""
    backbone = model.backbone
    with torch.device("cpu"):
        table = backbone.embeddings.word.weight
        backbone.embeddings.word = BitEmbedding(*table.shape)
        for i, layer in enumerate(backbone.layers):
            backbone.layers[i] = BitLayer(layer)
        if model.task == "sequence":
            dense = model.head.dense
            moved = dense.kind == "bit"
            model.head.dense = BitLinear(dense.in_features, dense.out_features, moved=moved)
    layers = list(backbone.layers)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        layer.feed(following)
