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

import copy
from typing import TypeVar

import torch

from taut.encoder.binary import BinaryAttention, BinaryLayer, BinaryLinear
from taut.encoder.config import EncoderConfig
from taut.encoder.packed_binary import BitLayer, BitLinear, replace_modules
from taut.encoder.pretrained import Pretrained
from taut.encoder.quantized_files import BITS
from taut.formats import WORD
from taut.ops.binary_gemm import pack_bits
from taut.reference._check import check_choice
from taut.straight_through import SMALLEST_SCALE, sign

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
    the least squared error. That of the probabilities becomes twice their mean, so that a query
    attends to the keys above it.

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


def convert(model: Model) -> Model:
    """The packed form of a trained binarized model, for inference.

    It computes what the model does in eval mode, but for the rounding of fp32.

    Args:
        model: what `prepare` gave, or an authors' checkpoint; stays as it is. Heads have 64 channels.

    Returns:
        A model of the same class on the same device, in eval mode, fp32; `.to(dtype)` concerns hidden
        states, LayerNorms, position and token type tables only.

    Raises:
        ValueError: the model is not binarized, is packed already, or has other heads.
    """
    config = model.config
    if config.binarization is None or model.quantization is not None or model.task == "masked_lm":
        raise ValueError("binarize: model must be a trainable binarized Encoder or classifier")
    if config.hidden_size != WORD * config.num_heads:
        channels = config.hidden_size // config.num_heads
        raise ValueError(f"binarize: heads must have {WORD} channels, got {channels}")
    with torch.inference_mode(False), torch.no_grad():
        source = copy.deepcopy(model).to("cpu").float().eval()
        with torch.device("meta"):
            packed = type(model)(config, model.tokenizer, model.settings)
        replace_modules(packed)
        shared = packed.state_dict().keys()
        floats = {name: t for name, t in source.state_dict().items() if name in shared}
        packed.load_state_dict(floats, strict=False, assign=True)
        backbone = packed.backbone
        signs, scale = source.backbone.embeddings.word.binary_weight()
        backbone.embeddings.word.bits.copy_(pack_bits(signs))
        backbone.embeddings.word.scale.copy_(scale[:, None])
        for layer, trained in zip(backbone.layers, source.backbone.layers, strict=True):
            _fill_layer(layer, trained, config.max_tokens)
        if packed.task == "sequence":
            _fill(packed.head.dense, source.head.dense)
    packed.backbone.requires_grad_(False)
    packed.quantization = {"scheme": BITS, "layers": {}}
    return packed.to(model.device).eval()


def _fill(target: BitLinear, *linears: BinaryLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """Everything but thresholds; scale and bias of all output channels are the answer."""
    signs, scales = zip(*(linear.binary_weight() for linear in linears), strict=True)
    scale, bias = torch.cat(scales), torch.cat([linear.bias for linear in linears])
    target.bits.copy_(pack_bits(torch.cat(signs)))
    if target.bit_threshold is not None:
        target.bit_threshold.copy_(-linears[0].move.bias)
    if target.result == "floats":
        target.scale.copy_(scale)
        target.bias.copy_(bias)
    return scale, bias


def _whole(largest: int) -> torch.Tensor:
    """Every whole number that a sum may be, fp32 (sums, 1)."""
    return torch.arange(-largest, largest + 1.0)[:, None]


def _thresholds(units: torch.Tensor) -> torch.Tensor:
    """What sums are compared with, int32 (3, channels), from the results -1, 0 or 1 of all sums
    -n ... n, (2n + 1, channels): +1 above the first, -1 between the second and the third. Results
    grow with the sum, but for those at the lower end that may be 0 (see `erf_gelu`)."""
    largest = units.shape[0] // 2
    below = units < 0
    lowest = below.int().argmax(0) - largest
    rows = (largest - (units > 0).sum(0), lowest - 1, lowest + below.sum(0))
    return torch.stack(rows).int()


def _fill_layer(layer: BitLayer, trained: BinaryLayer, max_tokens: int) -> None:
    projections = (trained.query, trained.key, trained.value)
    groups = [projections] if len(layer.projections) == 1 else [(linear,) for linear in projections]
    for target, group in zip(layer.projections, groups, strict=True):
        scale, bias = _fill(target, *group)
        signs = sign(_whole(target.in_features) * scale + bias, tie="strict")
        target.thresholds.copy_(_thresholds(signs)[0])
    attention = trained.attention
    if attention.mode == "elastic":
        query, key, value, probability = (a.clamp(min=SMALLEST_SCALE) for a in attention.alpha)
        layer.attention.scales.copy_(torch.stack((query * key / WORD**0.5, probability)))
        context = (_whole(max_tokens) * (value * probability)).expand(-1, trained.out.in_features)
        thresholds = _thresholds(trained.out.units(context))
        layer.attention.thresholds.copy_(thresholds.view(layer.attention.thresholds.shape))
    _fill(layer.out, trained.out)
    scale, bias = _fill(layer.up, trained.up)
    inner = trained.activate(_whole(layer.up.in_features) * scale + bias)
    layer.up.thresholds.copy_(_thresholds(trained.down.units(inner)))
    _fill(layer.down, trained.down)


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
