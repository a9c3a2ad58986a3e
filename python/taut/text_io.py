"""Texts and models from files, embeddings to files: what the `taut` command reads and writes."""

import codecs
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

STDIN = "-"
OUTPUT_FORMATS = (".npy", ".safetensors", ".jsonl")


class InputError(Exception):
    """What the user gave cannot be used; the message says what and where."""


class OutputError(Exception):
    """What was computed cannot be written, though the place for it looked well before."""


def load_encoder(model: str, **options):
    """`Encoder.from_pretrained`, whose refusals become InputErrors."""
    from taut import Encoder

    try:
        return Encoder.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load model {model}: {error}") from None


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """(line number, line without its newline); a text is one line of UTF-8."""
    name = "standard input" if path == STDIN else path
    if path == STDIN and sys.stdin is None:
        raise InputError(f"cannot read {name}: it is closed")
    try:
        stream = sys.stdin.buffer if path == STDIN else open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    with stream:
        try:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{name}, line {number}: not UTF-8 (byte {raw[error.start]:#04x} at "
                        f"position {error.start})"
                    ) from None
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror}") from None


def read_texts(path: str, jsonl_field: str | None = None) -> list[str]:
    """The texts of a file or of standard input ("-"): one per line, empty lines included; or, with
    `jsonl_field`, that string field of one JSON object per line (blank lines are skipped)."""
    name = "standard input" if path == STDIN else path
    texts = []
    for number, line in _lines(path):
        if jsonl_field is None:
            texts.append(line)
        elif line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}, line {number}: not JSON: {error}") from None
            text = record.get(jsonl_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise InputError(
                    f"{name}, line {number}: expected an object with a string field {jsonl_field!r}"
                )
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name}, line {number}: not Unicode (lone surrogate {text[error.start]!r})"
                ) from None
            texts.append(text)
    if not texts:
        raise InputError(f"{name} holds no texts")
    return texts


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place only if the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_npy(path: Path, embeddings: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add .npy to the temporary name
        np.save(file, embeddings)


def _write_safetensors(path: Path, embeddings: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": embeddings}, path)


def _write_jsonl(path: Path, embeddings: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in embeddings:
            file.write(json.dumps({"embedding": row.tolist()}) + "\n")


_WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = dict(
    zip(OUTPUT_FORMATS, (_write_npy, _write_safetensors, _write_jsonl), strict=True)
)


def check_output(path: Path, source: str) -> None:
    """Refuse, before any work, an output that could not be written at the end, or is the input."""
    if path.suffix not in _WRITERS:
        raise InputError(f"output must end in {', '.join(OUTPUT_FORMATS)}, got {path.name!r}")
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise InputError(f"cannot write {path}: it is the input")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse, before any work, a file that could not be written at the end."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def write_embeddings(path: Path, embeddings: np.ndarray) -> None:
    """fp32 (texts, hidden) as .npy, .safetensors (tensor "embeddings") or .jsonl (one object
    {"embedding": [...]} per text); the file appears whole or not at all."""
    from safetensors import SafetensorError

    try:
        with whole_or_nothing(path) as temporary:
            _WRITERS[path.suffix](temporary, embeddings)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}") from None
