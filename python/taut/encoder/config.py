"""What the encoder reads from config.json, and which architectures it knows.

An architecture is data: the names its checkpoints give to our modules, the names its config.json
gives to our fields, and the few choices that set its layers apart. "{}" stands for the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

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

Names = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Architecture:
    """One family of checkpoints.

    Args:
        prefix: what `*For...` checkpoints put before the names of the bare encoder.
        names: our module -> the checkpoint's module; several are stacked along the rows.
        heads: for each task, our head module -> the checkpoint's full name.
        fields: our config field -> its key in config.json, where they differ.
        defaults: values of fields that config.json may leave out.
        classifier_activation: between the two layers of a sequence classification head.
        masked_lm_activation: in the masked-LM head; None takes the encoder's.
        position_offset: position 0 is row pad_token_id + 1 of the table.
        positions: there is a position table; else `alibi`.
    """

    prefix: str
    names: Names
    heads: Mapping[str, Names]
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    classifier_activation: str = "tanh"
    masked_lm_activation: str | None = None
    position_offset: bool = False
    positions: bool = True
    token_types: bool = True
    glu: bool = False
    alibi: bool = False
    relative_bias: bool = False
    shared_layers: bool = False
    projection: str = "never"  # of the embeddings: never, always, or when sizes "differ"


# Masked-LM heads keep their bias under two names; where the decoder is tied, files may hold the
# second one only.
SECOND_NAMES = {
    f"{head}.decoder.bias": f"{head}.bias" for head in ("cls.predictions", "lm_head", "predictions")
}

_EMBEDDINGS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
_ATTENTION_OUTPUT = {
    "layers.{}.out": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
}
_QKV = {
    "layers.{}.qkv": tuple(
        f"encoder.layer.{{}}.attention.self.{part}" for part in ("query", "key", "value")
    )
}
_FFN = {
    "layers.{}.up": "encoder.layer.{}.intermediate.dense",
    "layers.{}.down": "encoder.layer.{}.output.dense",
    "layers.{}.output_norm": "encoder.layer.{}.output.LayerNorm",
}
_GLU = {
    "layers.{}.up": "encoder.layer.{}.mlp.gated_layers",
    "layers.{}.down": "encoder.layer.{}.mlp.wo",
    "layers.{}.output_norm": "encoder.layer.{}.mlp.layernorm",
}
_BERT_NAMES = {**_EMBEDDINGS, **_QKV, **_ATTENTION_OUTPUT, **_FFN}

_TOKEN_HEAD = {"out": "classifier"}
_TWO_LAYER_CLASSIFIER = {"dense": "classifier.dense", "out": "classifier.out_proj"}
_BERT_HEADS = {
    "sequence": {"dense": "bert.pooler.dense", "out": "classifier"},
    "token": _TOKEN_HEAD,
    "masked_lm": {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    },
}
_ROBERTA_HEADS = {
    "sequence": _TWO_LAYER_CLASSIFIER,
    "token": _TOKEN_HEAD,
    "masked_lm": {
        "dense": "lm_head.dense",
        "norm": "lm_head.layer_norm",
        "decoder": "lm_head.decoder",
    },
}
_ALBERT_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
_ROBERTA = Architecture(
    prefix="roberta.",
    names=_BERT_NAMES,
    heads=_ROBERTA_HEADS,
    defaults={"pad_token_id": 1},
    masked_lm_activation="gelu",
    position_offset=True,
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "bert": Architecture(prefix="bert.", names=_BERT_NAMES, heads=_BERT_HEADS),
        "roberta": _ROBERTA,
        "xlm-roberta": _ROBERTA,
        "camembert": _ROBERTA,
        "distilbert": Architecture(
            prefix="distilbert.",
            names={
                **_EMBEDDINGS,
                "layers.{}.qkv": tuple(
                    f"transformer.layer.{{}}.attention.{part}"
                    for part in ("q_lin", "k_lin", "v_lin")
                ),
                "layers.{}.out": "transformer.layer.{}.attention.out_lin",
                "layers.{}.attention_norm": "transformer.layer.{}.sa_layer_norm",
                "layers.{}.up": "transformer.layer.{}.ffn.lin1",
                "layers.{}.down": "transformer.layer.{}.ffn.lin2",
                "layers.{}.output_norm": "transformer.layer.{}.output_layer_norm",
            },
            heads={
                "sequence": {"dense": "pre_classifier", "out": "classifier"},
                "token": _TOKEN_HEAD,
                "masked_lm": {
                    "dense": "vocab_transform",
                    "norm": "vocab_layer_norm",
                    "decoder": "vocab_projector",
                },
            },
            fields={
                "hidden_size": "dim",
                "num_hidden_layers": "n_layers",
                "num_attention_heads": "n_heads",
                "intermediate_size": "hidden_dim",
                "hidden_act": "activation",
                "hidden_dropout_prob": "dropout",
                "attention_probs_dropout_prob": "attention_dropout",
                "classifier_dropout": "seq_classif_dropout",
            },
            classifier_activation="relu",
            token_types=False,
        ),
        "albert": Architecture(
            prefix="albert.",
            names={
                **_EMBEDDINGS,
                "embeddings.projection": "encoder.embedding_hidden_mapping_in",
                "layers.{}.qkv": tuple(
                    f"{_ALBERT_LAYER}.attention.{part}" for part in ("query", "key", "value")
                ),
                "layers.{}.out": f"{_ALBERT_LAYER}.attention.dense",
                "layers.{}.attention_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
                "layers.{}.up": f"{_ALBERT_LAYER}.ffn",
                "layers.{}.down": f"{_ALBERT_LAYER}.ffn_output",
                "layers.{}.output_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
            },
            heads={
                "sequence": {"dense": "albert.pooler", "out": "classifier"},
                "token": _TOKEN_HEAD,
                "masked_lm": {
                    "dense": "predictions.dense",
                    "norm": "predictions.LayerNorm",
                    "decoder": "predictions.decoder",
                },
            },
            fields={"classifier_dropout": "classifier_dropout_prob"},
            defaults={
                "hidden_act": "gelu_new",
                "embedding_size": 128,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "classifier_dropout": 0.1,
            },
            shared_layers=True,
            projection="always",
        ),
        "electra": Architecture(
            prefix="electra.",
            names={**_BERT_NAMES, "embeddings.projection": "embeddings_project"},
            heads={
                "sequence": _TWO_LAYER_CLASSIFIER,
                "token": _TOKEN_HEAD,
                "masked_lm": {
                    "dense": "generator_predictions.dense",
                    "norm": "generator_predictions.LayerNorm",
                    "decoder": "generator_lm_head",
                },
            },
            defaults={"embedding_size": 128},
            classifier_activation="gelu",
            masked_lm_activation="gelu",
            projection="differ",
        ),
        "mpnet": Architecture(
            prefix="mpnet.",
            names={
                **_EMBEDDINGS,
                **_FFN,
                "relative_bias": "encoder.relative_attention_bias",
                "layers.{}.qkv": tuple(f"encoder.layer.{{}}.attention.attn.{p}" for p in "qkv"),
                "layers.{}.out": "encoder.layer.{}.attention.attn.o",
                "layers.{}.attention_norm": "encoder.layer.{}.attention.LayerNorm",
            },
            heads=_ROBERTA_HEADS,
            defaults={"pad_token_id": 1},
            masked_lm_activation="gelu",
            position_offset=True,
            token_types=False,
            relative_bias=True,
        ),
        "mosaic_bert": Architecture(
            prefix="bert.",
            names={
                **_EMBEDDINGS,
                **_ATTENTION_OUTPUT,
                **_GLU,
                "layers.{}.qkv": "encoder.layer.{}.attention.self.Wqkv",
            },
            heads=_BERT_HEADS,
            defaults={"attention_probs_dropout_prob": 0.0},
            positions=False,
            glu=True,
            alibi=True,
        ),
        "jina_bert": Architecture(
            prefix="bert.",
            names={**_EMBEDDINGS, **_QKV, **_ATTENTION_OUTPUT, **_GLU},
            heads=_BERT_HEADS,
            positions=False,
            glu=True,
            alibi=True,
        ),
    }
)


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of one encoder, in one vocabulary for every architecture."""

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

        hidden_size, heads = get("hidden_size"), get("num_attention_heads")
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
            vocab_size=get("vocab_size"),
            hidden_size=hidden_size,
            embedding_size=(
                hidden_size if architecture.projection == "never" else get("embedding_size")
            ),
            num_layers=get("num_hidden_layers"),
            num_heads=heads,
            intermediate_size=get("intermediate_size"),
            activation=_activation(raw, architecture, get("hidden_act", "gelu")),
            max_positions=get("max_position_embeddings", 512),
            position_offset=get("pad_token_id") + 1 if architecture.position_offset else 0,
            type_vocab_size=get("type_vocab_size", 2) if architecture.token_types else 0,
            relative_buckets=(
                get("relative_attention_num_buckets", 32) if architecture.relative_bias else 0
            ),
            eps=get("layer_norm_eps", 1e-12),
            hidden_dropout=hidden_dropout,
            attention_dropout=get("attention_probs_dropout_prob", 0.1),
            classifier_dropout=get("classifier_dropout", hidden_dropout),
            num_labels=len(raw["id2label"]) if raw.get("id2label") else raw.get("num_labels", 2),
            tied=raw.get("tie_word_embeddings", True),
            raw=MappingProxyType(dict(raw)),
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
