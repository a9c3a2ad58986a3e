"""Checkpoints of quantized models: config.json with a `quantization_config`, and model.safetensors.

model.safetensors holds the state dict under the names of our modules: of a low-bit linear `codes` in
the logical packing of `taut.formats`, `scale` and what else it has; of the word table `codes` (int8)
and `scale`. The rest of config.json is the original's, `dtype` that of the tensors not quantized.
Of an encoder of packed bits (`packed_binary.py`) the scheme is "bits" and there are no linears.

    "quantization_config": {
      "quant_method": "taut",
      "version": 1,
      "scheme": "w8a8",                     what `quantize` was asked for
      "layers": {"layers.0.*": "w4a8"},     and for which layers otherwise
      "linears": {"layers.0.qkv": {"bits": 8, "in_features": 384, "group_size": 0, ...}},
      "embeddings.word": "w8a16"            or "float" or "bits"
    }
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from taut.encoder.checkpoint import SAFETENSORS, read_json, write_json
from taut.encoder.packed_binary import BitEmbedding, replace_modules
from taut.encoder.quantize import WORD_TABLE, connect
from taut.encoder.quantized import LINEARS, QuantizedLayer
from taut.lowbit_nn import LowbitEmbedding
from taut.nn import LowbitLinear

if TYPE_CHECKING:
    from taut.encoder.pretrained import Pretrained

METHOD, VERSION = "taut", 1
BITS = "bits"  # the scheme of packed binarized encoders
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def quantization_config(directory: Path) -> dict | None:
    """What config.json says of our own quantization, or None.

    Raises:
        ValueError: it was written by a version this one does not read, or is damaged.
    """
    path = directory / "config.json"
    found = read_json(path).get("quantization_config") if path.exists() else None
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        return None
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path}: quantization_config.version must be {VERSION}, got {found.get('version')!r}"
        )
    if not isinstance(found.get("linears"), dict):
        raise ValueError(f"{path}: quantization_config.linears must be a dict")
    return found


def saved_dtype(directory: Path) -> torch.dtype:
    """The dtype that config.json names."""
    name = read_json(directory / "config.json").get("dtype")
    if name not in _DTYPES:
        accepted = ", ".join(_DTYPES)
        raise ValueError(f"{directory}/config.json: dtype must be one of {accepted}, got {name!r}")
    return _DTYPES[name]


def save(model: "Pretrained", directory: Path) -> None:
    """Write config.json and model.safetensors."""
    backbone = model.backbone
    linears = {
        name: module.settings()
        for name, module in backbone.named_modules()
        if isinstance(module, LowbitLinear)
    }
    table = {LowbitEmbedding: "w8a16", BitEmbedding: BITS}.get(
        type(backbone.embeddings.word), "float"
    )
    config = {
        **{key: value for key, value in model.config.raw.items() if key != "torch_dtype"},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "quantization_config": {
            "quant_method": METHOD,
            "version": VERSION,
            **model.quantization,
            "linears": linears,
            WORD_TABLE: table,
        },
    }
    write_json(directory / "config.json", config)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, directory / SAFETENSORS, metadata={"format": "pt"})


def load(model: "Pretrained", quantization: dict, directory: Path) -> None:
    """Turn a model with uninitialised weights on the CPU into the saved one.

    Raises:
        FileNotFoundError: there is no model.safetensors.
        ValueError: it is damaged, or naming every tensor that is missing, misshapen or unknown.
    """
    path = directory / SAFETENSORS
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no {SAFETENSORS}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    problems: list[str] = []
    if quantization.get("scheme") == BITS:
        replace_modules(model)
    else:
        _replace_linears(model, quantization, tensors, problems)
    if model.head is None:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("head.")}
    problems += _copy(model.state_dict(), tensors)
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{directory} does not fit its config.json:\n  {listed}")
    model.backbone.requires_grad_(False)
    model.quantization = {key: quantization.get(key) for key in ("scheme", "layers")}


def _replace_linears(model: "Pretrained", quantization: dict, tensors, problems) -> None:
    """Low-bit linears and the word table in the place of float ones."""
    backbone, linears = model.backbone, quantization["linears"]
    for i, layer in enumerate(backbone.layers):
        backbone.layers[i] = layer = QuantizedLayer(layer)
        for name in LINEARS:
            settings = linears.get(f"layers.{i}.{name}")
            if settings is not None:
                prefix = f"backbone.layers.{i}.{name}."
                linear = _linear(getattr(layer, name), settings, tensors, prefix, problems)
                setattr(layer, name, linear)
    if quantization.get(WORD_TABLE) != "float":
        rows, columns = backbone.embeddings.word.weight.shape
        codes, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, 1)
        backbone.embeddings.word = LowbitEmbedding(codes, scale)
    connect(backbone)


def _linear(linear, settings, tensors, prefix, problems):
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        quantized = LowbitLinear.from_settings(settings, found)
        quantized.weight.dequantize()
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        problems.append(f"{prefix[:-1]} must be a low-bit linear, does not fit: {error}")
        return linear
    expected = (linear.out_features, linear.in_features)
    if (quantized.out_features, quantized.in_features) != expected:
        got = (quantized.out_features, quantized.in_features)
        problems.append(f"{prefix[:-1]} must be {expected}, got {got}")
    return quantized


def _copy(targets: dict, sources: dict) -> list[str]:
    """Copies every tensor; what does not fit is named in the answer."""
    problems = [f"{name} is unknown" for name in sources if name not in targets]
    for name, target in targets.items():
        source = sources.get(name)
        if source is None:
            problems.append(f"{name} must be {tuple(target.shape)}, is missing")
        elif source.shape != target.shape:
            problems.append(f"{name} must be {tuple(target.shape)}, got {tuple(source.shape)}")
        elif source.dtype != target.dtype and not target.is_floating_point():
            problems.append(f"{name} must be {target.dtype}, got {source.dtype}")
        elif source.data_ptr() != target.data_ptr():
            target.copy_(source)
    return problems
