"""What a model weighs and what a text costs, by the conventions of the papers and by what is there.

FLOPs are two for each product in a matrix product: of the linear layers, of queries and keys, of
probabilities and values. Papers on low-bit encoders count a product of numbers of a and b bits as
a b / 64 of one of floats. What they publish for BERT-base at 128 tokens are ratios of rounded cells:

    56.3x   22.5 / 0.4 G: 22.35 rounded to halves; 0.349 and what stays fp32, rounded to tenths
    31.2x   417.6 / 13.4 MiB: bits of layers and word table, fp32 biases and LayerNorms. Position and
            type tables, pooler, scales or thresholds are left out, without which nothing runs

Sources: Bai et al., "BinaryBERT", 2021 (a b / 64); Qin et al., "BiBERT", 2022, table 2.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from taut.encoder import EncoderConfig, SequenceClassifier, checkpoint, quantized_files
from taut.encoder.packed_binary import replace_modules

TOKENS = 128  # of a text, in the papers
MIB = 2**20
# FLOPs per element of what stays fp32 between bits: scale, bias, residual; and of a LayerNorm: sum,
# difference, square, sum, product, weight, bias.
_EPILOGUE, _LAYER_NORM = 3, 7


def flops(config: EncoderConfig, tokens: int, linears: dict | None = None) -> Iterator[tuple]:
    """(FLOPs, a b) of each matrix product of a text, where a b is 0 for floats.

    Args:
        config: the shape.
        tokens: of the text.
        linears: bits of low-bit linears by name, as config.json has them.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    glu = 2 if config.architecture.glu else 1
    own = 1 if config.architecture.shared_layers else config.num_layers
    weights = {
        "qkv": 3 * hidden * hidden,
        "out": hidden * hidden,
        "up": glu * inner * hidden,
        "down": inner * hidden,
    }
    for layer in range(config.num_layers):
        for name, count in weights.items():
            low = (linears or {}).get(f"layers.{layer % own}.{name}", {})
            bits = low.get("bits", 0) * low.get("activation_bits", 0)
            yield 2 * tokens * count, 1 if config.binarization else bits
        yield 4 * tokens * tokens * hidden, 1 if config.binarization else 0


def counted(products: Iterable[tuple]) -> float:
    """FLOPs of matrix products, low-bit ones as a b / 64."""
    return sum(count * bits / 64 if bits else count for count, bits in products)


def _as_floats(config: EncoderConfig) -> EncoderConfig:
    """The shape without binarization."""
    return replace(config, model_type="bert") if config.binarization else config


def _held(config: EncoderConfig) -> SequenceClassifier:
    """The backbone and the layer that pools, on the meta device."""
    with torch.device("meta"):
        model = SequenceClassifier(config)
    model.head.out = None
    return model


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def published_bytes(config: EncoderConfig) -> float:
    """The size of a binarized encoder as papers give it."""
    total = config.vocab_size * config.hidden_size / 8
    for name, t in _held(_as_floats(config)).backbone.named_parameters():
        if name.startswith("layers.") and t.dim() == 2:
            total += t.numel() / 8
        elif t.dim() == 1:
            total += t.numel() * 4
    return total


def loadable_bytes(config: EncoderConfig) -> int:
    """The tensors of a binarized encoder's packed form, pooler included."""
    model = _held(config)
    replace_modules(model)
    return _bytes(model.state_dict().values())


def _times(whole: float, part: float) -> str:
    tenths = math.floor(10 * whole / part + 0.5)  # 56.25 is published as 56.3
    return f"{tenths / 10:.1f}x"


def _binarized_rows(config: EncoderConfig, tokens: int) -> Iterator[tuple[str, str]]:
    dense_bytes = _bytes(_held(_as_floats(config)).parameters())
    published, loadable = published_bytes(config), loadable_bytes(config)
    yield "size in fp32", f"{dense_bytes / MIB:.1f} MiB, pooler included"
    yield (
        "size as published",
        f"{published / MIB:.1f} MiB, {_times(dense_bytes, published)} smaller: bits of layers and "
        "words, fp32 biases and LayerNorms",
    )
    yield (
        "size to load",
        f"{loadable / MIB:.1f} MiB, {_times(dense_bytes, loadable)} smaller: also positions, types, "
        "pooler, scales, thresholds",
    )
    dense = sum(count for count, _ in flops(config, tokens))
    elements = tokens * config.hidden_size
    norms = 2 * config.num_layers * (_EPILOGUE + _LAYER_NORM) + _EPILOGUE + _LAYER_NORM
    rest = norms * elements
    total = counted(flops(config, tokens)) + rest
    cells = round(2 * dense / 1e9) / 2, round(total / 1e9, 1)
    if cells[1]:  # of small shapes nothing is left
        yield (
            "FLOPs as published",
            f"{cells[1]} G, {_times(*cells)} fewer: {cells[0]} / {cells[1]}, the cells of a table",
        )
    yield (
        "FLOPs counted",
        f"{total / 1e9:.3f} G, {_times(dense, total)} fewer: {dense / 1e9:.2f} G of 1-bit products "
        f"/ 64, and {rest / 1e9:.3f} G that stay fp32",
    )


def report(path: str, tokens: int | None = None) -> dict[str, str]:
    """What `taut info MODEL` prints: {what: value}, in its order. No weights are read.

    Args:
        path: a checkpoint directory or a model id.
        tokens: of the text whose FLOPs are counted; None: 128, or as many as the model takes.

    Raises:
        OSError, ValueError: files that are missing or unusable, more tokens than the model takes.
    """
    directory = checkpoint.resolve(path)
    config = checkpoint.read_config(directory)
    most = config.max_tokens if config.architecture.positions else None
    if tokens is None:
        tokens = TOKENS if most is None else min(TOKENS, most)
    if most is not None and tokens > most:
        raise ValueError(f"tokens must be at most {most}, got {tokens}")
    quantization = quantized_files.quantization_config(directory)
    file_bytes = sum(file.stat().st_size for file in checkpoint.weight_files(directory))
    return dict(account(config, quantization, file_bytes, tokens))


def account(
    config: EncoderConfig, quantization: dict | None, file_bytes: int, tokens: int
) -> Iterator[tuple[str, str]]:
    """The rows of `report`, from what config.json says and how large the weights' files are."""
    scheme = None if quantization is None else quantization.get("scheme")
    yield (
        "model",
        f"{config.model_type}, {config.num_layers} layers of {config.hidden_size}, "
        f"{config.num_heads} heads, FFN of {config.intermediate_size}, {config.vocab_size} words",
    )
    parameters = sum(p.numel() for p in _held(_as_floats(config)).backbone.parameters())
    yield (
        "parameters",
        f"{parameters / 1e6:.1f} M, {4 * parameters / MIB:.1f} MiB in fp32, no heads",
    )
    size = f"{file_bytes / MIB:.1f} MiB"
    if scheme is None:
        yield "file", f"{size} of floats" + (" to be binarized" if config.binarization else "")
    else:
        yield "file", f"{size} of {scheme}, {_times(4 * parameters, file_bytes)} smaller"
    products = list(flops(config, tokens, (quantization or {}).get("linears")))
    dense = sum(count for count, _ in products)
    yield "FLOPs in fp32", f"{dense / 1e9:.2f} G for a text of {tokens} tokens, matrix products"
    if config.binarization:
        yield from _binarized_rows(config, tokens)
    elif scheme is not None:
        total = counted(products)
        yield (
            "FLOPs counted",
            f"{total / 1e9:.2f} G, {_times(dense, total)} fewer: a b / 64 for products of a and b bits",
        )
