"""The thin encoder: checkpoints, packed forward passes, sentence embeddings and heads."""

from taut.encoder.config import EncoderConfig
from taut.encoder.encoder import Encoder, MaskedLM, SequenceClassifier, TokenClassifier
from taut.encoder.sentence import SentenceSettings
from taut.encoder.tokenization import TextTokenizer, TokenBatch

__all__ = [
    "Encoder",
    "EncoderConfig",
    "MaskedLM",
    "SentenceSettings",
    "SequenceClassifier",
    "TextTokenizer",
    "TokenBatch",
    "TokenClassifier",
]
