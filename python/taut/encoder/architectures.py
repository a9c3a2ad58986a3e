"""Which architectures the encoder knows.

An architecture is data: the names its checkpoints give to our modules, the names its config.json
gives to our fields, and the few choices that set its layers apart. "{}" stands for the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

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
        binarization: "bibert" or "bit" (`binary.py`), or None.
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
    binarization: str | None = None


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

_PROJECTIONS = {
    f"layers.{{}}.{name}": f"encoder.layer.{{}}.attention.self.{name}"
    for name in ("query", "key", "value")
}
_BIBERT_NAMES = {**_EMBEDDINGS, **_PROJECTIONS, **_ATTENTION_OUTPUT, **_FFN}
_BIT_NAMES = {
    **_BIBERT_NAMES,
    "layers.{}.attention": "encoder.layer.{}.attention.self",
    **{
        f"layers.{{}}.{ours}.move": f"{_BIBERT_NAMES[f'layers.{{}}.{ours}']}.move"
        for ours in ("query", "key", "value", "out", "up", "down")
    },
}

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
_BIT_HEADS = {
    "sequence": {**_BERT_HEADS["sequence"], "dense.move": "bert.pooler.dense.move"},
    "token": _TOKEN_HEAD,
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
        "bibert": Architecture(
            prefix="bert.", names=_BIBERT_NAMES, heads=_BERT_HEADS, binarization="bibert"
        ),
        "bit": Architecture(
            prefix="bert.",
            names=_BIT_NAMES,
            heads=_BIT_HEADS,
            defaults={"hidden_act": "relu"},
            binarization="bit",
        ),
    }
)
