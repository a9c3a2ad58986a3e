"""Binarized encoders: from a float BERT to a BiBERT or BiT that trains, and on to packed bits.

    student = binarize.prepare(teacher, "bit")
    binarize.initialize_scales(student, ids, cu_seqlens)     kind "bit" only
    ... train student: forward, losses, backward as for any torch module ...
    packed = binarize.convert(student)
    packed.save_pretrained("student-bits")

A layer of the student is an `encoder.binary.BinaryLayer`: forward hooks on its `query`, `key` and
`value` see the real-valued projections, hooks on the layer the hidden states. The float teacher has
the three side by side in `layer.qkv`.
"""

from typing import TypeVar

import torch

from taut.encoder.binary import BinaryAttention, BinaryLinear
from taut.encoder.config import EncoderConfig
from taut.encoder.pretrained import Pretrained
from taut.reference._check import check_choice

KINDS = ("bibert", "bit")

Model = TypeVar("Model", bound=Pretrained)


def config_of(config: EncoderConfig, kind: str, *, dropout: float = 0.0) -> EncoderConfig:
    """The shape of a BERT as one of its binarized forms.

    Args:
        config: of architecture "bert".
        kind: "bibert" (signs, attention without softmax, GELU) or "bit" (elastic scales, softmax,
            ReLU).
        dropout: of hidden states, in training.

    Returns:
        The same shape, to make models from.

    Raises:
        ValueError: an unknown kind, or another architecture.
    """
    check_choice("binarize", "kind", kind, KINDS)
    if config.model_type != "bert":
        raise ValueError(f"binarize: model_type must be bert, got {config.model_type}")
    activation = {"bibert": "gelu", "bit": "relu"}[kind]
    raw = {"model_type": kind, "hidden_act": activation, "hidden_dropout_prob": dropout}
    return EncoderConfig.from_dict({**config.raw, **raw})


def prepare(model: Model, kind: str, *, dropout: float = 0.0) -> Model:
    """A trainable binarized model that starts from the weights of a float one.

    Args:
        model: an Encoder or a classifier over a BERT; stays as it is.
        kind, dropout: as in `config_of`.

    Returns:
        A model of the same class, in training mode, fp32, on the same device. `convert` makes it
        ready for inference; `save_pretrained` writes it in the layout of the authors' checkpoints.

    Raises:
        ValueError: an unknown kind, another architecture, a quantized model, or a MaskedLM.
    """
    if model.quantization is not None or model.task == "masked_lm":
        raise ValueError("binarize: model must be a float Encoder or classifier")
    config = config_of(model.config, kind, dropout=dropout)
    student = type(model)(config, model.tokenizer, model.settings).to(model.device)
    student.load_state_dict(_split_projections(model.state_dict()), strict=False)
    return student.train()


def initialize_scales(model: Pretrained, input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    """Set every elastic scale of a BiT from one batch, layer by layer; of a BiBERT there are none.

    A scale of signs becomes mean|x|, one of steps the mean of what lies above half of it: both have
    the least squared error.

    Args:
        model: what `prepare` gave.
        input_ids: (total_tokens,), int32 or int64.
        cu_seqlens: (batch + 1,), int32.

    Source: BiT, section 3.1 (mean|x|).
    """
    sites = [m for m in model.modules() if isinstance(m, (BinaryLinear, BinaryAttention))]
    training = model.training
    try:
        for site in sites:
            site.fitting = True
        with torch.no_grad():
            model.eval()(input_ids, cu_seqlens)
    finally:
        for site in sites:
            site.fitting = False
        model.train(training)


def _split_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A float model's state dict with query, key and value apart."""
    apart = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for part, block in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                apart[name.replace(".qkv.", f".{part}.")] = block
        else:
            apart[name] = tensor
    return apart
