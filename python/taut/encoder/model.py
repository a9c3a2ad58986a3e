"""One post-LayerNorm transformer encoder for every architecture; nothing in it is ever padded."""

import math
from typing import ClassVar

import torch
from torch.nn import functional

from taut.encoder.binary import BinaryEmbedding, BinaryLayer
from taut.encoder.config import EncoderConfig
from taut.encoder.native_layer import NativeLayer, run_natively
from taut.lowbit_nn import LowbitEmbedding
from taut.nn import Linear
from taut.ops.activation import bias_glu
from taut.ops.attention import shared_plan, varlen_attention_qkvpacked
from taut.ops.embedding import embed_layer_norm, lowbit_embed_layer_norm
from taut.reference._check import check_tensor

# Beyond this distance all tokens share a bucket of the relative position bias.
RELATIVE_RADIUS = 128


def alibi_slopes(heads: int) -> torch.Tensor:
    """The slope of each head's linear bias, fp32 (heads,).

    Source: Press et al., "Train Short, Test Long", 2022: a geometric sequence for a power of two
    of heads; for other counts its official code fills up with every other slope of the next power.
    """
    power = 2 ** math.floor(math.log2(heads))

    def geometric(n):
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    slopes = geometric(power) + geometric(2 * power)[0::2][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32)


def relative_position_buckets(buckets: int) -> torch.Tensor:
    """Bucket of each distance key - query in [-RELATIVE_RADIUS, RELATIVE_RADIUS], int64.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning", 2020, section 2.1
    (bidirectional form): half of the buckets for each direction, half of those exact.
    """
    distance = torch.arange(-RELATIVE_RADIUS, RELATIVE_RADIUS + 1)
    half, exact = buckets // 2, buckets // 4
    magnitude = distance.abs()
    octaves = (magnitude.clamp(min=1) / exact).log() / math.log(RELATIVE_RADIUS / exact)
    coarse = exact + (octaves * (half - exact)).long()
    bucket = torch.where(magnitude < exact, magnitude, coarse.clamp(max=half - 1))
    return bucket + (distance > 0) * half


def positions_of(cu_seqlens: torch.Tensor, total_tokens: int) -> torch.Tensor:
    """Each token's place in its sequence, int32 (total_tokens,)."""
    rows = torch.arange(total_tokens, dtype=torch.int32, device=cu_seqlens.device)
    return rows - cu_seqlens[torch.searchsorted(cu_seqlens[1:], rows, right=True)]


def _check_packed(input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    """What is computed with them before the first op could refuse them."""
    for name, value in (("input_ids", input_ids), ("cu_seqlens", cu_seqlens)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"Backbone: {name} must be a torch.Tensor, got {type(value).__name__}")
    meaning = "(batch + 1,)"
    check_tensor("Backbone", "cu_seqlens", cu_seqlens, (None,), meaning, (torch.int32,))
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"Backbone: cu_seqlens must be {meaning}, got (0,)")


class Embeddings(torch.nn.Module):
    """Sum of the embedding tables, LayerNorm, and a projection where the tables are narrower."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word = torch.nn.Embedding(config.vocab_size, size)
        if config.binarization:
            self.word = BinaryEmbedding(config.vocab_size, size, config.binarization)
        has_positions = config.architecture.positions
        self.position = torch.nn.Embedding(config.max_positions, size) if has_positions else None
        types = config.type_vocab_size
        self.token_type = torch.nn.Embedding(types, size) if types else None
        self.norm = torch.nn.LayerNorm(size, eps=config.eps)
        self.projection = Linear(size, config.hidden_size) if config.projects_embeddings else None
        self.position_offset = config.position_offset
        self.dropout = config.hidden_dropout

    def forward(self, input_ids, cu_seqlens, token_type_ids, positions):
        position = None
        if self.position is None:
            positions = None
        else:
            position = self.position.weight[self.position_offset :]
            if positions is None:
                positions = positions_of(cu_seqlens, input_ids.shape[0])
        ids, word, norm = input_ids, self.word, self.norm
        rest = {
            "positions": positions,
            "position": position,
            "token_type_ids": token_type_ids,
            "token_type": None if self.token_type is None else self.token_type.weight,
            "weight": norm.weight,
            "norm_bias": norm.bias,
            "eps": norm.eps,
        }
        if isinstance(word, LowbitEmbedding):
            hidden = lowbit_embed_layer_norm(ids, word.codes, word.scale, **rest)
        elif isinstance(word, torch.nn.Embedding):
            hidden = embed_layer_norm(ids, word.weight, **rest)
        else:  # signs: the rows of this batch are its table
            each = torch.arange(ids.shape[0], dtype=ids.dtype, device=ids.device)
            hidden = embed_layer_norm(each, word(ids, norm.weight.dtype), **rest)
        if self.training:
            hidden = functional.dropout(hidden, self.dropout)
        return hidden if self.projection is None else self.projection(hidden)


class Layer(NativeLayer):
    """Attention and feed-forward network, each with residual and LayerNorm behind it."""

    LINEAR_KINDS: ClassVar[tuple] = (Linear,)

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.glu = config.architecture.glu
        self.activation = config.activation
        self.heads = config.num_heads
        self.dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout
        self.qkv = Linear(hidden, 3 * hidden)
        self.out = Linear(hidden, hidden)
        self.attention_norm = torch.nn.LayerNorm(hidden, eps=config.eps)
        self.up = Linear(hidden, 2 * inner, bias=False) if self.glu else Linear(hidden, inner)
        self.down = Linear(inner, hidden)
        self.output_norm = torch.nn.LayerNorm(hidden, eps=config.eps)

    def forward(self, hidden, cu_seqlens, alibi_slopes=None, relative_bias=None, plan=None):
        dropout = self.dropout if self.training else 0.0
        context = varlen_attention_qkvpacked(
            self.qkv(hidden).unflatten(1, (3, self.heads, -1)),
            cu_seqlens,
            alibi_slopes=alibi_slopes,
            relative_bias=relative_bias,
            dropout_p=self.attention_dropout if self.training else 0.0,
            plan=plan,
        )
        hidden = self.out.residual_layer_norm(
            context.view(hidden.shape), hidden, self.attention_norm, dropout
        )
        if self.glu:
            inner = bias_glu(self.up(hidden), activation=self.activation)
            if dropout > 0:  # gated encoders drop here and not behind `down`
                inner, dropout = functional.dropout(inner, dropout), 0.0
        else:
            inner = self.up(hidden, self.activation)
        return self.down.residual_layer_norm(inner, hidden, self.output_norm, dropout)


class Backbone(torch.nn.Module):
    """Token ids -> hidden states, both packed.

    Args:
        config: the shape; weights start random.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        own = 1 if config.architecture.shared_layers else config.num_layers
        layer = BinaryLayer if config.binarization else Layer
        self.layers = torch.nn.ModuleList(layer(config) for _ in range(own))
        buckets = config.relative_buckets
        self.relative_bias = torch.nn.Embedding(buckets, config.num_heads) if buckets else None
        for table in self.modules():
            if isinstance(table, torch.nn.Embedding):
                torch.nn.init.normal_(table.weight, std=0.02)
        for name in ("alibi_slopes", "relative_buckets"):
            self.register_buffer(name, None, persistent=False)
        self._fill_constants()

    def _fill_constants(self) -> None:
        device = self.embeddings.norm.weight.device
        if self.config.architecture.alibi:
            self.alibi_slopes = alibi_slopes(self.config.num_heads).to(device)
        if self.relative_bias is not None:
            buckets = relative_position_buckets(self.config.relative_buckets)
            self.relative_buckets = buckets.to(device)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._fill_constants()  # slopes stay fp32 whatever dtype the weights take
        return self

    def _expanded_relative_bias(self) -> torch.Tensor | None:
        if self.relative_bias is None:
            return None
        return self.relative_bias.weight.float()[self.relative_buckets].T.contiguous()

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode packed sequences.

        Args:
            input_ids: (total_tokens,), int32 or int64.
            cu_seqlens: (batch + 1,), int32; sequence i is rows cu_seqlens[i]:cu_seqlens[i + 1].
            token_type_ids: (total_tokens,), int32 or int64; all 0 if None.
            positions: (total_tokens,), int32; each token's place in its sequence, counted from 0.
                Computed from cu_seqlens if None.

        Returns:
            (total_tokens, hidden_size) in the dtype of the weights.

        Raises:
            TypeError, ValueError: naming the op and the argument that does not fit.
        """
        _check_packed(input_ids, cu_seqlens)
        hidden = self.embeddings(input_ids, cu_seqlens, token_type_ids, positions)
        slopes, bias = self.alibi_slopes, self._expanded_relative_bias()
        if self.config.architecture.shared_layers:
            layers = [self.layers[0]] * self.config.num_layers
        else:
            layers = self.layers
        out = run_natively(layers, hidden, cu_seqlens, slopes, bias)
        if out is not None:
            return out
        plan = shared_plan(cu_seqlens, hidden.shape[0])
        for layer in layers:
            hidden = layer(hidden, cu_seqlens, slopes, bias, plan)
        return hidden if isinstance(hidden, torch.Tensor) else hidden.hidden
