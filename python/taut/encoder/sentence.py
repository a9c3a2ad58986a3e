"""How a checkpoint wants its texts turned into embeddings: the files of sentence-transformers."""

from dataclasses import dataclass
from pathlib import Path

from taut.encoder.fields import Fields, read_json, write_json

_POOLING_FLAGS = {  # sentence-transformers up to version 5
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING = {"cls": "cls", "max": "max", "mean": "mean", "lasttoken": "last"}
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceSettings:
    """From hidden states to one embedding per text.

    Args:
        pooling: a mode of `taut.pool`.
        normalize: scale embeddings to length 1.
        max_length: texts are cut to this many tokens; None leaves it to tokenizer and model.
        lower_case: texts are lower-cased before the tokenizer sees them.
        prompt: put before every text.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""


def _pooling_mode(path: Path) -> str:
    fields = Fields.read(path)
    modes = fields.values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if fields.get(flag, bool, False)]
        modes = modes or ["mean"]
    mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    if not isinstance(mode, str) or mode not in _POOLING:
        fields.refuse("pooling", f"one of {', '.join(_POOLING)}", mode)
    if not fields.get("include_prompt", bool, True):
        fields.refuse("include_prompt", "true", False)
    return _POOLING[mode]


def read_settings(directory: Path) -> tuple[Path, SentenceSettings]:
    """Where the transformer's own files are, and what modules.json puts behind it.

    Raises:
        ValueError: naming the file and the module or setting the encoder does not have.
    """
    modules_path = directory / "modules.json"
    if not modules_path.exists():
        return directory, SentenceSettings()
    transformer, pooling, normalize = directory, "mean", False
    for module in read_json(modules_path, list):
        fields = Fields(modules_path, module)
        kind = fields.get("type", str).rpartition(".")[2]
        if kind not in _MODULES:
            fields.refuse("type", f"one of {', '.join(_MODULES)}", kind)
        path = fields.get("path", str)
        outside = Path(path).is_absolute() or ".." in Path(path).parts
        if outside or (kind != "Normalize" and not (directory / path).is_dir()):
            fields.refuse("path", "a directory in the checkpoint", path)
        if kind == "Transformer":
            transformer = directory / path
        elif kind == "Pooling":
            pooling = _pooling_mode(directory / path / "config.json")
        else:
            normalize = True
    text = Fields.read_optional(transformer / "sentence_bert_config.json")
    limited = text.values.get("max_seq_length") is not None
    return transformer, SentenceSettings(
        pooling=pooling,
        normalize=normalize,
        max_length=text.integer("max_seq_length") if limited else None,
        lower_case=text.get("do_lower_case", bool, False),
        prompt=_prompt(directory / "config_sentence_transformers.json"),
    )


def _prompt(path: Path) -> str:
    fields = Fields.read_optional(path)
    name = fields.get("default_prompt_name", str, "")
    if not name:
        return ""
    return Fields(f"{path}: prompts", fields.get("prompts", dict)).get(name, str)


def write_settings(directory: Path, settings: SentenceSettings, hidden_size: int) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if settings.normalize:
        kinds.append(("2_Normalize", "Normalize"))
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    for path, _ in kinds[1:]:
        (directory / path).mkdir()
    flags = {flag: _POOLING.get(mode) == settings.pooling for flag, mode in _POOLING_FLAGS.items()}
    write_json(
        directory / "1_Pooling/config.json", {"word_embedding_dimension": hidden_size, **flags}
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": settings.max_length, "do_lower_case": settings.lower_case},
    )
    if settings.prompt:
        write_json(
            directory / "config_sentence_transformers.json",
            {"prompts": {"default": settings.prompt}, "default_prompt_name": "default"},
        )
