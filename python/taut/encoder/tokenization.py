"""Texts -> packed token batches, ahead of the computation and without padding."""

import itertools
import reprlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from taut.encoder.fields import LARGEST, Fields, write_json

Text = str | tuple[str, str]

CHUNK = 256  # texts per call of the tokenizer: enough for its threads, soon enough for the first
CHUNKS_AHEAD = 2
_CONFIG = "tokenizer_config.json"


class TokenBatch(NamedTuple):
    """Packed sequences, ready for an encoder.

    input_ids (total_tokens,), cu_seqlens (batch + 1,), positions (total_tokens,) and
    token_type_ids (total_tokens,) or None, all int32 on the CPU.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    token_type_ids: torch.Tensor | None


class Flat(NamedTuple):
    """Token ids of consecutive texts, one behind the other."""

    ids: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray


def _listed(op: str, name: str, values: Iterable, wanted: str) -> list:
    """A list of what any iterable that has an order holds."""
    try:
        if isinstance(values, str | bytes | Mapping | Set):
            raise TypeError
        iterator = iter(values)
    except TypeError:
        got = type(values).__name__
        raise TypeError(f"{op}: {name} must be a list of {wanted}, got {got}") from None
    return list(iterator)


def check_texts(op: str, texts: Iterable[Text], pairs: bool = False) -> list[Text]:
    """A list of str (and pairs of str), whatever kinds of list, pair and str came.

    Raises:
        TypeError, ValueError: naming the first index of what is no text.
    """
    wanted = "str or pairs of str" if pairs else "str"
    checked = []
    for index, text in enumerate(_listed(op, "texts", texts, wanted)):
        if not isinstance(text, str) and not (pairs and _is_pair(text)):
            got = type(text).__name__
            raise TypeError(f"{op}: texts must be {wanted}, got {got} at index {index}")
        parts = tuple(map(str, (text,) if isinstance(text, str) else text))
        try:
            for part in parts:
                part.encode()
        except UnicodeEncodeError as error:
            got = error.object[error.start]
            raise ValueError(
                f"{op}: texts must be Unicode, got the lone surrogate {got!r} at index {index}"
            ) from None
        checked.append(parts[0] if isinstance(text, str) else parts)
    return checked


def _is_pair(text) -> bool:
    return (
        isinstance(text, tuple | list | np.ndarray)
        and len(text) == 2
        and isinstance(text[0], str)
        and isinstance(text[1], str)
    )


def _flatten(lists: Iterable[list[int]], total: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int32, count=total)


def _batch(parts: list[Flat]) -> TokenBatch:
    ids, types, lengths = (
        None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)
    )
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    positions = np.arange(len(ids), dtype=np.int32) - np.repeat(offsets[:-1], lengths)
    return TokenBatch(
        torch.from_numpy(ids),
        torch.from_numpy(offsets),
        torch.from_numpy(positions),
        None if types is None else torch.from_numpy(types),
    )


class TextTokenizer:
    """A tokenizer.json with truncation at `max_length` and no padding.

    Args:
        tokenizer: the tokenizer; its truncation and padding are set here.
        max_length: tokens per text, special tokens included.
        lower_case: lower-case texts first.
        token_types: pairs get token type ids.
        config: the contents of tokenizer_config.json, kept for other readers of the checkpoint.

    Raises:
        ValueError: max_length has no room for a token beside the special ones.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        *,
        lower_case: bool = False,
        token_types: bool = True,
        config: dict | None = None,
    ) -> None:
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if not isinstance(max_length, int) or not special < max_length <= LARGEST:
            raise ValueError(
                f"TextTokenizer: max_length must be an int above {special}, the number of special "
                f"tokens, got {max_length!r}"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.max_length = max_length
        self._lower_case, self._token_types = lower_case, token_types
        self._config = {**(config or {}), "model_max_length": max_length}

    @classmethod
    def read(
        cls, directory: Path, limit: int | None, wanted: int | None, **options
    ) -> "TextTokenizer":
        """Read a checkpoint's tokenizer.

        Args:
            directory: holds tokenizer.json, and perhaps tokenizer_config.json.
            limit: tokens the model can take at most; None if there is no end.
            wanted: tokens to cut texts to; None leaves it to tokenizer_config.json and the limit.
            options: as for the class.

        Returns:
            The tokenizer, cutting texts to the least of both numbers of tokens.

        Raises:
            FileNotFoundError: there is no tokenizer.json.
            ValueError: a file is corrupt (it is named), or there is no room for a token.
        """
        path = directory / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{directory} has no tokenizer.json; `tokenizer` can name a checkpoint that has"
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path} is not a valid tokenizer: {error}") from None
        config = Fields.read_optional(directory / _CONFIG)
        if wanted is None:
            wanted = config.values.get("model_max_length")
            if wanted is not None and not (isinstance(wanted, int | float) and wanted >= 1):
                config.refuse("model_max_length", "a number from 1 on", wanted)
        lengths = [length for length in (limit, wanted) if length is not None]
        return cls(tokenizer, int(min(lengths, default=512)), config=config.values, **options)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into the directory."""
        self._tokenizer.save(str(directory / "tokenizer.json"))
        write_json(directory / _CONFIG, self._config)

    def _encode(self, texts: list[Text]) -> Flat:
        if self._lower_case:
            texts = [
                text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())
                for text in texts
            ]
        try:
            encodings = self._tokenizer.encode_batch_fast(texts)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"the tokenizer cannot encode the texts: {error}") from None
        lengths = np.fromiter(map(len, encodings), dtype=np.int32, count=len(encodings))
        total = int(lengths.sum())
        types = None
        if self._token_types and not isinstance(texts[0], str):
            types = _flatten((encoding.type_ids for encoding in encodings), total)
        return Flat(_flatten((encoding.ids for encoding in encodings), total), types, lengths)

    def flats(self, texts: list[Text]) -> Iterator[Flat]:
        """The texts' tokens in chunks, the next ones being made while the caller computes.

        All of `texts` must be strings, or all pairs.

        Raises:
            ValueError: the tokenizer fails, or max_length has no room for pairs.
        """
        special = self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if texts and not isinstance(texts[0], str) and self.max_length <= special:
            raise ValueError(
                f"TextTokenizer: max_length must be above {special} for pairs, the number of "
                f"special tokens, got {self.max_length}"
            )
        chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
        if len(texts) <= CHUNK:
            yield from map(self._encode, chunks)
            return
        with ThreadPoolExecutor(1, "taut-tokenizer") as worker:
            pending = deque(
                worker.submit(self._encode, chunk)
                for chunk in itertools.islice(chunks, CHUNKS_AHEAD)
            )
            try:
                while pending:
                    flat = pending.popleft().result()
                    if (chunk := next(chunks, None)) is not None:
                        pending.append(worker.submit(self._encode, chunk))
                    yield flat
            finally:
                for future in pending:
                    future.cancel()


def check_ids(
    op: str, ids: Iterable[Sequence[int]], vocabulary: int, longest: int | None
) -> list[np.ndarray]:
    """Each text's token ids as int32.

    Raises:
        TypeError, ValueError: naming the text whose ids are no ints, none at all, more than
            `longest`, or outside of the vocabulary.
    """
    rows = _listed(op, "ids", ids, "lists of ints")
    return [
        _int32(f"{op}: ids[{index}]", row, vocabulary, longest) for index, row in enumerate(rows)
    ]


def _int32(name: str, row: Sequence[int], vocabulary: int, longest: int | None) -> np.ndarray:
    is_array = isinstance(row, np.ndarray | torch.Tensor)
    try:
        values = np.asarray(row)
        integers = values.size == 0 or values.dtype.kind in "iu"
    except (TypeError, ValueError, RuntimeError):  # ragged, or a tensor numpy has no type for
        integers = False
    # numpy would take True among ints for 1.
    if not integers or values.ndim != 1 or not is_array and bool in map(type, row):
        got = f"{tuple(row.shape)} of {row.dtype}" if is_array else reprlib.repr(row)
        raise TypeError(f"{name} must be a list of ints, got {got}")
    if values.size == 0:
        raise ValueError(f"{name} must have at least one id, got none")
    if longest is not None and values.size > longest:
        raise ValueError(f"{name} must have at most {longest} ids, got {values.size}")
    if values.min() < 0 or values.max() >= vocabulary:
        at = int(((values < 0) | (values >= vocabulary)).argmax())
        raise ValueError(f"{name} must be in [0, {vocabulary}), got {values[at]} at index {at}")
    return values.astype(np.int32)


def flats_of_ids(ids: list[np.ndarray]) -> Iterator[Flat]:
    """What `TextTokenizer.flats` gives, from token ids."""
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        yield Flat(np.concatenate(chunk), None, np.array([len(row) for row in chunk], np.int32))


def batches(flats: Iterable[Flat], batch_tokens: int) -> Iterator[TokenBatch]:
    """Consecutive texts in batches of at most `batch_tokens` tokens, or of one longer text."""
    parts, used = [], 0
    for flat in flats:
        ends = np.cumsum(flat.lengths)
        start = start_token = 0
        while start < len(ends):
            room = start_token + batch_tokens - used
            stop = int(np.searchsorted(ends, room, side="right"))
            if stop <= start and not parts:
                stop = start + 1
            if stop > start:
                stop_token = int(ends[stop - 1])
                tokens = slice(start_token, stop_token)
                types = None if flat.types is None else flat.types[tokens]
                parts.append(Flat(flat.ids[tokens], types, flat.lengths[start:stop]))
                used += stop_token - start_token
                start, start_token = stop, stop_token
            if start < len(ends):
                yield _batch(parts)
                parts, used = [], 0
    if parts:
        yield _batch(parts)
