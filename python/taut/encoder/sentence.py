"""How a checkpoint wants its texts turned into embeddings: the files of sentence-transformers."""

from dataclasses import dataclass
from pathlib import Path

from taut.encoder.checkpoint import read_json, write_json

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


def _optional_json(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _pooling_mode(path: Path) -> str:
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLING:
        accepted = ", ".join(_POOLING)
        raise ValueError(f"{path}: pooling must be one of {accepted}, got {', '.join(modes)}")
    if not config.get("include_prompt", True):
        raise ValueError(f"{path}: include_prompt must be true, got false")
    return _POOLING[modes[0]]


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
        kind = module["type"].rpartition(".")[2]
        if kind not in _MODULES:
            raise ValueError(
                f"{modules_path}: module types must be {', '.join(_MODULES)}, got {kind}"
            )
        path = module["path"]
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{modules_path}: paths must stay in the checkpoint, got {path}")
        if kind == "Transformer":
            transformer = directory / path
        elif kind == "Pooling":
            pooling = _pooling_mode(directory / path / "config.json")
        else:
            normalize = True
    text = _optional_json(transformer / "sentence_bert_config.json")
    prompts = _optional_json(directory / "config_sentence_transformers.json")
    default = prompts.get("default_prompt_name")
    return transformer, SentenceSettings(
        pooling=pooling,
        normalize=normalize,
        max_length=text.get("max_seq_length"),
        lower_case=bool(text.get("do_lower_case")),
        prompt=prompts["prompts"][default] if default else "",
    )


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
