"""The JSON files of a checkpoint: read whole, every field checked as it is taken."""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LARGEST = 2**31 - 1  # offsets and token ids are int32

_WORDS = {str: "a string", bool: "true or false", dict: "an object", list: "an array"}


def read_json(path: Path, kind: type = dict) -> dict | list:
    """Raises ValueError naming the file if it is no JSON, or no `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold {_WORDS[kind]}, got {type(value).__name__}")
    return value


def write_json(path: Path, value: dict | list) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Fields:
    """The fields of one JSON object. One that is null counts as missing.

    Args:
        source: the file, as errors shall name it.
        values: what it holds.
    """

    def __init__(self, source: str | Path, values: Any) -> None:
        self.source, self.values = source, values
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: must hold objects, got {reprlib.repr(values)}")

    @classmethod
    def read(cls, path: Path) -> "Fields":
        return cls(path, read_json(path))

    @classmethod
    def read_optional(cls, path: Path) -> "Fields":
        return cls.read(path) if path.exists() else cls(path, {})

    def refuse(self, key: str, wanted: str, got: Any) -> None:
        """Raises the ValueError for a field that is not what is wanted."""
        raise ValueError(f"{self.source}: {key} must be {wanted}, got {reprlib.repr(got)}")

    def _take(self, key: str, default: Any, accepts: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if not accepts(value):
            self.refuse(key, wanted, value)
        return value

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The field, or the default where it is missing."""
        return self._take(key, default, lambda value: isinstance(value, kind), _WORDS[kind])

    def choice(self, key: str, accepted: Any, default: str | None = None) -> str:
        """The field, a string that must be among the accepted ones."""

        def accepts(value):
            return isinstance(value, str) and value in accepted

        return self._take(key, default, accepts, f"one of {', '.join(accepted)}")

    def integer(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST
    ) -> int:
        """The field, an integer from `least` to `most`."""

        def accepts(value):
            return type(value) is int and least <= value <= most

        wanted = str(least) if least == most else f"an integer from {least} to {most}"
        return self._take(key, default, accepts, wanted)

    def fraction(self, key: str, default: float) -> float:
        """The field, a number in [0, 1)."""

        def accepts(value):
            return type(value) in (int, float) and 0 <= value < 1

        return self._take(key, default, accepts, "a number in [0, 1)")
