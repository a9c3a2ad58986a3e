"""From a float encoder to one over low-bit weights.

Layers are quantized in their order, each linear on what the quantized layers before it give it: the
ranges and second moments of its inputs decide how outlier channels are migrated into the weight and
how its rounding errors are compensated.
"""

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from taut.encoder.model import Backbone, Layer
from taut.encoder.quantized import LINEARS, QuantizedLayer
from taut.encoder.tokenization import TokenBatch, batches, check_texts
from taut.folding import fold_shift_scale
from taut.gptq import compensated
from taut.lowbit_nn import LowbitEmbedding
from taut.nn import Linear, LowbitLinear
from taut.ops.activation import bias_glu
from taut.ops.attention import varlen_attention_qkvpacked
from taut.schemes import Scheme, auto_scheme, parse_scheme, quantize_weight

if TYPE_CHECKING:
    from taut.encoder.pretrained import Pretrained

WORD_TABLE = "embeddings.word"
CALIBRATION_TOKENS = 8192  # of texts: more cost time and change little
_RANDOM_SEQUENCES, _RANDOM_LENGTH = 64, 64
_FIRST_ID = 0.03  # of the vocabulary: special and unused tokens come first
# FFN-down sees few large values among small ones: scales per token and 256 columns.
_DOWN_GROUP = 256


def calibration_batch(
    op: str, model: "Pretrained", texts: Sequence[str] | None, seed: int
) -> TokenBatch:
    """The first tokens of `texts`; without texts, sequences of random ids."""
    if texts is not None:
        texts = check_texts(op, texts)
        if not texts:
            raise ValueError(f"{op}: calibration must have at least one text, got none")
        return next(batches(model._text_tokenizer(op).flats(texts), CALIBRATION_TOKENS))
    vocabulary, length = model.config.vocab_size, min(_RANDOM_LENGTH, model.config.max_tokens)
    generator = torch.Generator().manual_seed(seed)
    count = _RANDOM_SEQUENCES * length
    first = int(_FIRST_ID * vocabulary)
    ids = torch.randint(first, vocabulary, (count,), generator=generator, dtype=torch.int32)
    return TokenBatch(ids, torch.arange(0, count + 1, length, dtype=torch.int32), None, None)


def schemes_of(model: "Pretrained", scheme: str, layers: Mapping[str, str] | None) -> dict:
    """The scheme of every linear layer and of the word table, by name; later patterns win.

    Raises:
        ValueError: an unknown scheme, or a pattern that fits no name.
    """
    own = len(model.backbone.layers)
    names = [f"layers.{i}.{linear}" for i in range(own) for linear in LINEARS] + [WORD_TABLE]
    chosen = dict.fromkeys(names, scheme)
    chosen[WORD_TABLE] = "w8a16" if scheme != "float" else "float"
    for pattern, name in (layers or {}).items():
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise ValueError(
                f"quantize: layers must name layers.<i>.<{'|'.join(LINEARS)}> or {WORD_TABLE} "
                f"(patterns are fine), got {pattern!r}"
            )
        chosen.update(dict.fromkeys(fitting, name))
    for name in set(chosen.values()):
        parse_scheme(name)
    if chosen[WORD_TABLE] not in ("w8a16", "float"):
        raise ValueError(
            f"quantize: {WORD_TABLE} must be w8a16 or float, got {chosen[WORD_TABLE]!r}"
        )
    return chosen


def _migration(x: torch.Tensor, norm: torch.nn.LayerNorm, dtype: torch.dtype):
    """Shift and scale that bring the channels of x, the output of `norm`, to a like range.

    Channels that reach beyond the median one are scaled down to it. Both are such that the migrated
    scale and shift of `norm` are exact in dtype.
    """
    gamma, beta = (t.detach().to(dtype).float() for t in (norm.weight, norm.bias))
    low, high = x.amin(0), x.amax(0)
    reach = (high - low) / 2
    scale = (reach / reach.median().clamp(min=1e-6)).clamp(min=1)
    migrated = (gamma / scale).to(dtype).float()
    scale = torch.where(migrated != 0, gamma / migrated, scale)
    shift = beta - ((beta - (high + low) / 2) / scale).to(dtype).float() * scale
    return shift, scale


def quantize_linear(
    linear: Linear,
    scheme: Scheme,
    x: torch.Tensor,
    norm: torch.nn.LayerNorm | None,
    dtype: torch.dtype,
    compensate: bool,
) -> Linear | LowbitLinear:
    """The low-bit form of a linear layer.

    Args:
        linear: the layer.
        scheme: how to quantize it.
        x: (tokens, in_features), fp32: inputs it will see.
        norm: what x comes out of, if it is a LayerNorm: its outliers are migrated into the weight.
        dtype: that norm will compute in.
        compensate: round symmetric integers as `taut.gptq` does.
    """
    if scheme.kind == "float":
        return linear
    weight = linear.weight.detach().float()
    bias = None if linear.bias is None else linear.bias.detach().float()
    options = {
        "activation_bits": scheme.activation_bits,
        "grid": scheme.grid,
        "hadamard": scheme.hadamard,
    }
    if norm is not None and scheme.activation_bits and not scheme.hadamard:
        shift, scale = _migration(x, norm, dtype)
        weight, bias = fold_shift_scale(weight, bias, shift, scale)
        x = (x - shift) / scale
        options |= {"channel_shift": shift, "channel_scale": 1 / scale}
    elif norm is None and scheme.activation_bits:
        options["activation_group_size"] = scheme.group_size
    if compensate and scheme.kind == "integer" and not scheme.zero_point:
        packed = compensated(weight, scheme.bits, scheme.group_size, x.T @ x)
    else:
        search = "mse" if scheme.bits <= 4 else "absmax"
        packed = quantize_weight(weight, scheme, search=search)
    return LowbitLinear(packed, bias, **options)


class _Walk:
    """Quantizes the layers of a backbone one after the other on a calibration batch."""

    def __init__(self, backbone: Backbone, schemes: dict, dtype, compensate, progress) -> None:
        self.backbone, self.schemes, self.dtype = backbone, schemes, dtype
        self.compensate, self.progress = compensate, progress

    def linear(self, name: str, linear: Linear, x, norm):
        scheme = parse_scheme(self.schemes[name])
        whole_rows = not self.schemes[name].endswith("-g0")
        if name.endswith(".down") and scheme.kind == "integer" and whole_rows:
            scheme = replace(scheme, group_size=scheme.group_size or _DOWN_GROUP)
        quantized = quantize_linear(linear, scheme, x, norm, self.dtype, self.compensate)
        self.progress.update()
        return quantized

    def layer(self, name, layer: Layer, hidden, norm, cu_seqlens, slopes, bias):
        """The quantized layer, and its output where the linears are quantized."""
        layer = QuantizedLayer(layer)
        layer.qkv = self.linear(f"{name}.qkv", layer.qkv, hidden, norm)
        context = varlen_attention_qkvpacked(
            layer.qkv(hidden).unflatten(1, (3, layer.heads, -1)),
            cu_seqlens,
            alibi_slopes=slopes,
            relative_bias=bias,
        ).view(hidden.shape)
        layer.out = self.linear(f"{name}.out", layer.out, context, None)
        hidden = layer.out.residual_layer_norm(context, hidden, layer.attention_norm)
        layer.up = self.linear(f"{name}.up", layer.up, hidden, layer.attention_norm)
        if layer.glu:
            inner = bias_glu(layer.up(hidden), activation=layer.activation)
        else:
            inner = layer.up(hidden, layer.activation)
        layer.down = self.linear(f"{name}.down", layer.down, inner, None)
        return layer, layer.down.residual_layer_norm(inner, hidden, layer.output_norm)

    def run(self, batch: TokenBatch) -> None:
        backbone, cu_seqlens = self.backbone, batch.cu_seqlens
        embeddings = backbone.embeddings
        hidden = embeddings(batch.input_ids, cu_seqlens, batch.token_type_ids, batch.positions)
        slopes, bias = backbone.alibi_slopes, backbone._expanded_relative_bias()
        norm = embeddings.norm if embeddings.projection is None else None
        if backbone.config.architecture.shared_layers:
            hidden, cu_seqlens = self._every_input(hidden, cu_seqlens, slopes, bias)
            norm = None  # inputs of the one layer come out of two norms
        for i, layer in enumerate(backbone.layers):
            quantized, hidden = self.layer(
                f"layers.{i}", layer, hidden, norm, cu_seqlens, slopes, bias
            )
            backbone.layers[i], norm = quantized, layer.output_norm
        connect(backbone)

    def _every_input(self, hidden, cu_seqlens, slopes, bias):
        """What the one shared layer sees at each of its uses, as more sequences."""
        seen = []
        for _ in range(self.backbone.config.num_layers):
            seen.append(hidden)
            hidden = self.backbone.layers[0](hidden, cu_seqlens, slopes, bias)
        tokens, uses = seen[0].shape[0], range(len(seen))
        offsets = [cu_seqlens[:1]] + [cu_seqlens[1:] + use * tokens for use in uses]
        return torch.cat(seen), torch.cat(offsets)


def connect(backbone: Backbone) -> None:
    """Let each quantized layer hand its integers to the next one."""
    layers = list(backbone.layers)
    shared = backbone.config.architecture.shared_layers
    for layer, following in zip(layers, [*layers[1:], layers[0] if shared else None], strict=True):
        layer.feed(following)


def adopt(model: "Pretrained", scheme: str) -> None:
    """Make a model whose layers hold low-bit linears one that hands integers on and can be saved."""
    backbone = model.backbone
    for i, layer in enumerate(backbone.layers):
        backbone.layers[i] = QuantizedLayer(layer)
    connect(backbone)
    backbone.requires_grad_(False)  # no gradient passes a low-bit linear
    model.quantization = {"scheme": scheme, "layers": {}}


def quantize(
    model: "Pretrained",
    scheme: str,
    layers: Mapping[str, str] | None,
    dtype: torch.dtype,
    calibration: Sequence[str] | None,
    seed: int,
    show_progress: bool,
) -> "Pretrained":
    """See `Pretrained.quantize`."""
    if model.quantization is not None:
        raise ValueError("quantize: the encoder must not be quantized yet")
    if model.config.binarization:
        raise ValueError("quantize: the encoder must not be binarized: see taut.binarize")
    if model.task == "masked_lm":
        raise ValueError("quantize: the encoder must not be a MaskedLM, whose head is its table")
    scheme = auto_scheme(model.device.type) if scheme == "auto" else scheme
    schemes = schemes_of(model, scheme, layers)
    batch = calibration_batch("quantize", model, calibration, seed)
    quantized = copy.deepcopy(model).to("cpu").float().eval()
    backbone = quantized.backbone
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        tqdm(
            total=len(schemes) - 1, desc="quantizing", unit="matrix", disable=not show_progress
        ) as progress,
    ):
        _Walk(backbone, schemes, dtype, calibration is not None, progress).run(batch)
        if schemes[WORD_TABLE] != "float":
            backbone.embeddings.word = LowbitEmbedding.from_float(backbone.embeddings.word.weight)
    backbone.requires_grad_(False)  # no gradient passes a low-bit linear
    quantized.quantization = {"scheme": scheme, "layers": dict(layers or {})}
    return quantized.to(model.device, dtype).eval()
