"""BiBERT and BiT for training: latent float weights, binarized on the way forward.

Parameters have the names of the authors' checkpoints (`architectures.py`). Every value that the
packed form (`packed_binary.py`) holds as bits is -1, 0 or 1 here as well, and every sum of products a
whole number before it is scaled, so that both forms compute the same. Where the authors' code makes
a sign of 0: weights, inputs from a LayerNorm, q, k and v take -1, which is one bit; attention's
result and the inner activation of BiBERT stay 0.

Sources: Qin et al., "BiBERT: Accurate Fully Binarized BERT", 2022; Liu et al., "BiT: Robustly
Binarized Multi-distilled Transformer", 2022.
"""

import math

import torch
from torch.nn import functional

from taut.encoder.config import EncoderConfig
from taut.ops.norm import layer_norm
from taut.reference.dense_gemm import ACTIVATIONS
from taut.straight_through import (
    SMALLEST_SCALE,
    bibert_weight,
    bit_weight,
    elastic_step,
    sign,
    train_binary_attention,
    unit_signs,
)

INPUTS = ("signs", "ternary", "steps")


def erf_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU as BiBERT's code computes it: which x give exactly 0 decides the next layer's bits."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def step_scale(x: torch.Tensor) -> torch.Tensor:
    """alpha for which alpha [x > alpha / 2] has the least squared error (locally): the mean of the
    x that are above alpha / 2."""
    alpha = 4 * x.mean()
    for _ in range(10):
        above = x > alpha / 2
        alpha = (x * above).sum() / above.sum().clamp(min=1)
    return alpha.clamp(min=SMALLEST_SCALE)


class Move(torch.nn.Module):
    """A shift of each channel, learned.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x + bias."""
        return x + self.bias


class BinaryLinear(torch.nn.Module):
    """A linear layer over the signs of its weight and its input, for training.

    Args:
        in_features, out_features: sizes; the latent weight is (out_features, in_features).
        kind: "bibert" or "bit"; "bit" has a shift per input channel, `move`, and a scale of the
            input, `input_clip_val`.
        takes: what becomes of the input: "signs" -1 and 1, "ternary" also 0, "steps" 0 and 1.
    """

    def __init__(
        self, in_features: int, out_features: int, kind: str, takes: str = "signs"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.kind, self.takes = kind, takes
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.zeros(out_features))
        torch.nn.init.normal_(self.weight, std=0.02)
        if kind == "bit":
            self.move = Move(in_features)
            self.input_clip_val = torch.nn.Parameter(torch.ones(()))
        self.fitting = False

    def extra_repr(self) -> str:
        """What printing the layer shows of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"kind={self.kind}, takes={self.takes}"
        )

    def units(self, x: torch.Tensor) -> torch.Tensor:
        """x as whole numbers, with its straight-through gradient."""
        tie = "ternary" if self.takes == "ternary" else "strict"
        if self.kind == "bibert":
            return sign(x, tie=tie)
        x, alpha = self.move(x), self.input_clip_val
        if self.fitting:
            with torch.no_grad():
                alpha.copy_(step_scale(x) if self.takes == "steps" else x.abs().mean())
        if self.takes == "steps":
            return elastic_step(x, alpha) / alpha.detach().clamp(min=SMALLEST_SCALE)
        return unit_signs(x, alpha, tie=tie)

    def binary_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Signs of the weight, and what a product of a sign of it with one of the input stands for:
        (out_features, in_features) and (out_features,), fp32."""
        if self.kind == "bibert":
            return bibert_weight(self.weight)
        signs, scale = bit_weight(self.weight)
        return signs, self.input_clip_val.detach().clamp(min=SMALLEST_SCALE) * scale

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """activation(x @ weight.T + bias), x and weight binarized, x (total_tokens, in_features)."""
        units = self.units(x)
        signs, scale = self.binary_weight()
        return ACTIVATIONS[activation](functional.linear(units, signs) * scale + self.bias)


def check_latent(model: torch.nn.Module, source: str) -> None:
    """Refuse a checkpoint of signs in place of latent weights.

    Raises:
        ValueError: naming `source`.
    """
    for name, module in model.named_modules():
        if isinstance(module, BinaryLinear):
            magnitude = module.weight.detach().abs()
            if ((magnitude == 0) | (magnitude == 1)).all():
                raise ValueError(
                    f"{source} must hold float weights to be binarized, but {name} has signs only: "
                    "BiBERT's quant/ files have lost centring and scales; take the directory that "
                    "--save_fp_model wrote"
                )


class BinaryEmbedding(torch.nn.Module):
    """A table of signs, with a scale for each row, for training.

    Args:
        rows, columns: of the latent weight.
        kind: "bibert" or "bit".
    """

    def __init__(self, rows: int, columns: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = torch.nn.Parameter(torch.empty(rows, columns))
        torch.nn.init.normal_(self.weight, std=0.02)

    def binary_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Signs of the table, and what one stands for: (rows, columns) and (rows,)."""
        if self.kind == "bibert":
            return bibert_weight(self.weight)
        return bit_weight(self.weight, by_row=True)

    def forward(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows (len(ids), columns) of ids, binarized."""
        if self.kind == "bibert":  # a row's signs are its own: the others need not be looked at
            signs, scale = bibert_weight(functional.embedding(ids, self.weight))
        else:
            table, scales = self.binary_weight()
            signs, scale = functional.embedding(ids, table), scales[ids]
        return (signs * scale[:, None]).to(dtype)


class BinaryAttention(torch.nn.Module):
    """Attention over the signs of q, k and v, for training.

    Args:
        config: the shape; kind "bit" has scales of q, k, v and the probabilities.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.mode = "bool" if config.binarization == "bibert" else "elastic"
        if self.mode == "elastic":
            for name in ("clip_query", "clip_key", "clip_value", "clip_attn"):
                self.register_parameter(name, torch.nn.Parameter(torch.ones(())))
        self.fitting = False

    @property
    def alpha(self) -> tuple[torch.Tensor, ...] | None:
        """Scales of q, k, v and the probabilities."""
        if self.mode == "bool":
            return None
        return self.clip_query, self.clip_key, self.clip_value, self.clip_attn

    @torch.no_grad()
    def _fit(self, q, k, v, cu_seqlens) -> None:
        for alpha, x in zip(self.alpha, (q, k, v), strict=False):
            alpha.copy_(x.abs().mean())
        scale = self.clip_query * self.clip_key / math.sqrt(q.shape[2])
        found, offsets = [], cu_seqlens.tolist()
        for begin, end in zip(offsets, offsets[1:], strict=False):
            query, key = (t[begin:end].transpose(0, 1).sign() for t in (q, k))
            found.append((query @ key.transpose(1, 2) * scale).softmax(2).flatten())
        self.clip_attn.copy_(2 * torch.cat(found).mean())

    def forward(self, q, k, v, cu_seqlens):
        """(total_tokens, hidden_size) three times -> the same once."""
        q, k, v = (t.unflatten(1, (self.heads, -1)) for t in (q, k, v))
        if self.fitting and self.mode == "elastic":
            self._fit(q, k, v, cu_seqlens)
        out = train_binary_attention(q, k, v, cu_seqlens, mode=self.mode, alpha=self.alpha)
        return out.flatten(1)


class BinaryLayer(torch.nn.Module):
    """Binarized attention and feed-forward network, each with residual and LayerNorm behind it.

    `query`, `key`, `value` give the real-valued projections that distillation compares.

    Args:
        config: the shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, inner, kind = config.hidden_size, config.intermediate_size, config.binarization
        self.kind, self.dropout = kind, config.hidden_dropout
        for name in ("query", "key", "value"):
            setattr(self, name, BinaryLinear(hidden, hidden, kind))
        self.attention = BinaryAttention(config)
        self.out = BinaryLinear(hidden, hidden, kind, "ternary")
        self.attention_norm = torch.nn.LayerNorm(hidden, eps=config.eps)
        self.up = BinaryLinear(hidden, inner, kind)
        self.down = BinaryLinear(inner, hidden, kind, "ternary" if kind == "bibert" else "steps")
        self.output_norm = torch.nn.LayerNorm(hidden, eps=config.eps)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """What lies between `up` and `down`."""
        return erf_gelu(x) if self.kind == "bibert" else x.relu()

    def _norm(self, x, residual, norm):
        x = functional.dropout(x, self.dropout, self.training)
        return layer_norm(x, norm.weight, norm.bias, residual=residual, eps=norm.eps)

    def forward(self, hidden, cu_seqlens, alibi_slopes=None, relative_bias=None, plan=None):
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        context = self.attention(q, k, v, cu_seqlens)
        hidden = self._norm(self.out(context), hidden, self.attention_norm)
        inner = self.activate(self.up(hidden))
        return self._norm(self.down(inner), hidden, self.output_norm)
