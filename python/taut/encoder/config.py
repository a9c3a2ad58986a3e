"""What the encoder reads from config.json, in one vocabulary for every architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taut.encoder.architectures import ARCHITECTURES, Architecture

ACTIVATIONS = {  # transformers' names -> ours
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
GATED_ACTIVATIONS = {"geglu": "gelu", "reglu": "relu"}


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of one encoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    max_positions: int
    position_offset: int
    type_vocab_size: int
    relative_buckets: int
    eps: float
    hidden_dropout: float
    attention_dropout: float
    classifier_dropout: float
    num_labels: int
    tied: bool
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    @property
    def projects_embeddings(self) -> bool:
        rule = self.architecture.projection
        return rule == "always" or (rule == "differ" and self.embedding_size != self.hidden_size)

    @property
    def max_tokens(self) -> int:
        """The longest text: what the position table holds, or what the config says without one."""
        return self.max_positions - self.position_offset

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "EncoderConfig":
        """Read the contents of a config.json.

        Args:
            raw: what the file holds, in the words of its architecture.

        Returns:
            The same, checked, with the architecture's defaults filled in.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        model_type = _model_type(raw)
        architecture = ARCHITECTURES[model_type]

        def get(name, default=None):
            key = architecture.fields.get(name, name)
            value = raw.get(key)
            if value is None:
                value = architecture.defaults.get(name, default)
            if value is None:
                raise ValueError(f"config.json: {key} must be given for a {model_type} encoder")
            return value

        def count(name, default=None, least=1):
            value = get(name, default)
            if not isinstance(value, int) or value < least:
                key = architecture.fields.get(name, name)
                raise ValueError(
                    f"config.json: {key} must be an integer of at least {least}, got {value!r}"
                )
            return value

        hidden_size, heads = count("hidden_size"), count("num_attention_heads")
        if hidden_size % heads:
            raise ValueError(
                f"config.json: hidden_size must be a multiple of the {heads} attention heads, "
                f"got {hidden_size}"
            )
        for key in ("num_hidden_groups", "inner_group_num"):
            if raw.get(key, 1) != 1:
                raise ValueError(f"config.json: {key} must be 1, got {raw[key]}")
        hidden_dropout = get("hidden_dropout_prob", 0.1)
        return cls(
            model_type=model_type,
            vocab_size=count("vocab_size"),
            hidden_size=hidden_size,
            embedding_size=(
                hidden_size if architecture.projection == "never" else count("embedding_size")
            ),
            num_layers=count("num_hidden_layers"),
            num_heads=heads,
            intermediate_size=count("intermediate_size"),
            activation=_activation(raw, architecture, get("hidden_act", "gelu")),
            max_positions=count("max_position_embeddings", 512),
            position_offset=count("pad_token_id", least=0) + 1
            if architecture.position_offset
            else 0,
            type_vocab_size=count("type_vocab_size", 2, least=0) if architecture.token_types else 0,
            relative_buckets=(
                count("relative_attention_num_buckets", 32) if architecture.relative_bias else 0
            ),
            eps=get("layer_norm_eps", 1e-12),
            hidden_dropout=hidden_dropout,
            attention_dropout=get("attention_probs_dropout_prob", 0.1),
            classifier_dropout=get("classifier_dropout", hidden_dropout),
            num_labels=len(raw["id2label"]) if raw.get("id2label") else raw.get("num_labels", 2),
            tied=raw.get("tie_word_embeddings", True),
            raw=dict(raw),
        )


def _model_type(raw: Mapping[str, Any]) -> str:
    """MosaicBERT and JinaBERT call themselves bert; a field of their own gives them away."""
    model_type = raw.get("model_type")
    position = raw.get("position_embedding_type") or "absolute"
    if model_type == "bert" and "alibi_starting_size" in raw:
        return "mosaic_bert"
    if model_type == "bert" and position == "alibi":
        return "jina_bert"
    if model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ValueError(f"config.json: model_type must be one of {supported}, got {model_type!r}")
    if position != "absolute" and ARCHITECTURES[model_type].positions:
        raise ValueError(
            f"config.json: position_embedding_type must be absolute or alibi, got {position!r}"
        )
    return model_type


def _activation(raw: Mapping[str, Any], architecture: Architecture, name: str) -> str:
    key, accepted = "hidden_act", ACTIVATIONS
    if architecture.glu:
        key, accepted = "feed_forward_type", GATED_ACTIVATIONS
        name = raw.get(key, "geglu")
    if name not in accepted:
        raise ValueError(
            f"config.json: {architecture.fields.get(key, key)} must be one of "
            f"{', '.join(accepted)}, got {name!r}"
        )
    return accepted[name]
