"""Texts -> packed token batches, ahead of the computation and without padding."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from taut.encoder.checkpoint import read_json, write_json

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


def check_texts(op: str, texts: Sequence[Text], pairs: bool = False) -> list[Text]:
    """A list of texts, or TypeError naming the first that is none."""
    wanted = "str or pairs of str" if pairs else "str"
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"{op}: texts must be a list of {wanted}, got {type(texts).__name__}")
    texts = list(texts)
    for index, text in enumerate(texts):
        if isinstance(text, str) or (pairs and _is_pair(text)):
            continue
        raise TypeError(f"{op}: texts must be {wanted}, got {type(text).__name__} at index {index}")
    return texts


def _is_pair(text) -> bool:
    return (
        isinstance(text, tuple | list)
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
        has_config = (directory / _CONFIG).exists()
        config = read_json(directory / _CONFIG) if has_config else {}
        if wanted is None:
            wanted = config.get("model_max_length")
        lengths = [int(length) for length in (limit, wanted) if length is not None]
        return cls(tokenizer, min(lengths, default=512), config=config, **options)

    def save(self, directory: Path) -> None:
        self._tokenizer.save(str(directory / "tokenizer.json"))
        write_json(directory / _CONFIG, self._config)

    def _encode(self, texts: list[Text]) -> Flat:
        if self._lower_case:
            texts = [
                text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())
                for text in texts
            ]
        encodings = self._tokenizer.encode_batch_fast(texts)
        lengths = np.fromiter(map(len, encodings), dtype=np.int32, count=len(encodings))
        total = int(lengths.sum())
        types = None
        if self._token_types and not isinstance(texts[0], str):
            types = _flatten((encoding.type_ids for encoding in encodings), total)
        return Flat(_flatten((encoding.ids for encoding in encodings), total), types, lengths)

    def flats(self, texts: list[Text]) -> Iterator[Flat]:
        """The texts' tokens in chunks, the next ones being made while the caller computes.

        All of `texts` must be strings, or all pairs.
        """
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


def flats_of_ids(ids: list[Sequence[int]]) -> Iterator[Flat]:
    """What `TextTokenizer.flats` gives, from token ids."""
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        lengths = np.fromiter(map(len, chunk), dtype=np.int32, count=len(chunk))
        yield Flat(_flatten(chunk, int(lengths.sum())), None, lengths)


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
