"""What sits on the hidden states: sequence classes, token classes, or words."""

import torch
from torch.nn import functional

from taut.encoder.binary import BinaryLinear
from taut.encoder.config import EncoderConfig
from taut.nn import Linear
from taut.ops.norm import layer_norm
from taut.ops.pooling import pool


class SequenceHead(torch.nn.Module):
    """First token of each sequence -> dense -> activation -> class logits."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size, kind = config.hidden_size, config.binarization
        self.dense = BinaryLinear(size, size, kind) if kind else Linear(size, size)
        self.out = Linear(config.hidden_size, config.num_labels)
        self.activation = config.architecture.classifier_activation
        self.dropout = config.classifier_dropout

    def forward(self, hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """(total_tokens, hidden_size) -> (batch, num_labels)."""
        first = self.dense(pool(hidden, cu_seqlens, "cls"), self.activation)
        return self.out(functional.dropout(first, self.dropout, self.training))


class TokenHead(torch.nn.Module):
    """Every token -> class logits."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.out = Linear(config.hidden_size, config.num_labels)
        self.dropout = config.classifier_dropout

    def forward(self, hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """(total_tokens, hidden_size) -> (total_tokens, num_labels)."""
        return self.out(functional.dropout(hidden, self.dropout, self.training))


class MaskedLMHead(torch.nn.Module):
    """Every token -> dense -> activation -> LayerNorm -> word logits."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.dense = Linear(config.hidden_size, size)
        self.norm = torch.nn.LayerNorm(size, eps=config.eps)
        self.decoder = Linear(size, config.vocab_size)
        self.activation = config.architecture.masked_lm_activation or config.activation

    def forward(self, hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """(total_tokens, hidden_size) -> (total_tokens, vocab_size)."""
        dense = self.dense(hidden, self.activation)
        return self.decoder(layer_norm(dense, self.norm.weight, self.norm.bias, eps=self.norm.eps))


HEADS = {"sequence": SequenceHead, "token": TokenHead, "masked_lm": MaskedLMHead}
