"""What the encoder reads from config.json, in one vocabulary for every architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taut.encoder.architectures import ARCHITECTURES, Architecture
from taut.encoder.fields import Fields

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

# Beyond these a config.json is absurd; up to them a model can be made on the meta device, and is
# then held against the checkpoint's tensors before anything is allocated.
_WIDEST = 2**20
_DEEPEST = 2**10


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of one encoder; `from_dict` makes it from a config.json.

    Args:
        model_type: a key of ARCHITECTURES.
        vocab_size, type_vocab_size, max_positions: rows of the embedding tables.
        hidden_size, intermediate_size: widths of the layers and of their feed-forward networks.
        embedding_size: width of the embedding tables.
        num_layers, num_heads: how many there are; heads divide hidden_size.
        activation: of the feed-forward networks, in the words of `taut.bias_activation`.
        position_offset: row of the position table that position 0 takes.
        relative_buckets: of the relative position bias; 0 without one.
        eps: of the LayerNorms.
        hidden_dropout, attention_dropout, classifier_dropout: chances in [0, 1), for training.
        num_labels: classes of a classification head.
        tied: the masked-LM head's decoder is the word embedding table.
        raw: the contents of config.json, kept for saving.
    """

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
    def binarization(self) -> str | None:
        """ "bibert", "bit", or None for a float encoder."""
        return self.architecture.binarization

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
        fields = Fields("config.json", raw)
        model_type = _model_type(fields)
        architecture = ARCHITECTURES[model_type]

        def key_of(name, default=None):
            return architecture.fields.get(name, name), architecture.defaults.get(name, default)

        def count(name, default=None, **bounds):
            return fields.integer(*key_of(name, default), **bounds)

        def fraction(name, default):
            return fields.fraction(*key_of(name, default))

        for key in ("is_decoder", "add_cross_attention"):
            if fields.get(key, bool, False):
                fields.refuse(key, "false", True)
        for key in ("num_hidden_groups", "inner_group_num"):
            fields.integer(key, 1, most=1)
        hidden_size, heads = count("hidden_size", most=_WIDEST), count("num_attention_heads")
        if hidden_size % heads:
            key = key_of("hidden_size")[0]
            fields.refuse(key, f"a multiple of the {heads} attention heads", hidden_size)
        embedding_size = hidden_size
        if architecture.projection != "never":
            embedding_size = count("embedding_size", most=_WIDEST)
        offset = count("pad_token_id", least=0) + 1 if architecture.position_offset else 0
        types = count("type_vocab_size", 2, least=0) if architecture.token_types else 0
        buckets = 0
        if architecture.relative_bias:
            buckets = count("relative_attention_num_buckets", 32, least=4)
        labels = len(fields.get("id2label", dict, {})) or fields.integer("num_labels", 2)
        hidden_dropout = fraction("hidden_dropout_prob", 0.1)
        return cls(
            model_type=model_type,
            vocab_size=count("vocab_size"),
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            num_layers=count("num_hidden_layers", most=_DEEPEST),
            num_heads=heads,
            intermediate_size=count("intermediate_size", most=_WIDEST),
            activation=_activation(fields, architecture, *key_of("hidden_act", "gelu")),
            max_positions=count("max_position_embeddings", 512, least=offset + 1),
            position_offset=offset,
            type_vocab_size=types,
            relative_buckets=buckets,
            eps=1e-12 if model_type == "bit" else fraction("layer_norm_eps", 1e-12),
            hidden_dropout=hidden_dropout,
            attention_dropout=fraction("attention_probs_dropout_prob", 0.1),
            classifier_dropout=fraction("classifier_dropout", hidden_dropout),
            num_labels=labels,
            tied=fields.get("tie_word_embeddings", bool, True),
            raw=dict(raw),
        )


# What BiBERT's and BiT's code adds to config.json -> the only value there are kernels for.
_BINARY_FIELDS = {
    "bibert": {"weight_bits": 1, "input_bits": 1},
    "bit": {
        "weight_bits": 1,
        "input_bits": 1,
        "weight_quant_method": "bwn",
        "input_quant_method": "elastic",
        "sym_quant_qkvo": True,
        "sym_quant_ffn_attn": False,
        "weight_layerwise": True,
        "embed_layerwise": False,
        "input_layerwise": True,
        "not_quantize_attention": False,
        "hidden_act": "relu",
    },
}


def _binary_type(fields: Fields) -> str | None:
    """ "bibert" or "bit" if the config is of one of them."""
    if fields.values.get("model_type") in tuple(_BINARY_FIELDS):
        return fields.values["model_type"]
    if "sym_quant_qkvo" in fields.values:
        return "bit"
    return "bibert" if "quantize_act" in fields.values else None


def _model_type(fields: Fields) -> str:
    """Some architectures call themselves bert; fields of their own give them away."""
    binary_type = _binary_type(fields)
    if binary_type is not None:
        for key, wanted in _BINARY_FIELDS[binary_type].items():
            found = fields.values.get(key, wanted)
            if found != wanted:
                fields.refuse(key, f"{wanted!r} in a binarized encoder", found)
        return binary_type
    model_type = fields.choice("model_type", ARCHITECTURES)
    position = fields.get("position_embedding_type", str, "absolute")
    if model_type == "bert" and "alibi_starting_size" in fields.values:
        return "mosaic_bert"
    if model_type == "bert" and position == "alibi":
        return "jina_bert"
    if position != "absolute" and ARCHITECTURES[model_type].positions:
        fields.refuse("position_embedding_type", "absolute or alibi", position)
    return model_type


def _activation(fields: Fields, architecture: Architecture, key: str, default: str) -> str:
    if architecture.glu:
        return GATED_ACTIVATIONS[fields.choice("feed_forward_type", GATED_ACTIVATIONS, "geglu")]
    return ACTIVATIONS[fields.choice(key, ACTIVATIONS, default)]
