"""The public models: sentence embeddings, and the three classic heads."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from tqdm import tqdm

from taut.encoder.pretrained import BATCH_TOKENS, Pretrained
from taut.encoder.tokenization import (
    Flat,
    Text,
    TokenBatch,
    batches,
    check_ids,
    check_texts,
    flats_of_ids,
)
from taut.ops.pooling import pool
from taut.reference._check import check_choice
from taut.reference.pooling import MODES

UNLIMITED = 2**31 - 1  # tokens of a batch that must hold all texts: offsets are int32


def _check_batch_tokens(op: str, batch_tokens: int) -> None:
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ValueError(f"{op}: batch_tokens must be a positive int, got {batch_tokens!r}")


def _results(count: int, columns: int) -> torch.Tensor:
    """Room for what all batches give, whatever torch's default dtype and device are."""
    return torch.empty(count, columns, dtype=torch.float32, device="cpu")


def _trains(module: torch.nn.Module) -> bool:
    """Whether it or a part of it is in training mode; `modules()` takes ten times as long."""
    waiting = [module]
    for part in waiting:
        if part is not None:
            if part.training:
                return True
            waiting += part._modules.values()
    return False


class Encoder(Pretrained):
    """Texts to embeddings, or packed token ids to hidden states.

    On the CPU, in fp32 and bf16 (the dtype of the weights, or of torch.autocast), without gradients
    and outside of torch.compile, what a text gives is the same, bit for bit, whatever else is in
    the batch. Elsewhere torch's own matrix products run, which do not promise that.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (total_tokens, hidden_size) of packed sequences; see `Backbone.forward`."""
        return self.backbone(
            input_ids, cu_seqlens, token_type_ids=token_type_ids, positions=positions
        )

    def _flats(self, op: str, texts: list[str]) -> Iterator[Flat]:
        prompt = self.settings.prompt
        texts = [prompt + text for text in texts] if prompt else texts
        return self._text_tokenizer(op).flats(texts)

    def tokenize(self, texts: Iterable[str]) -> TokenBatch:
        """One packed batch of all texts, for `forward`.

        Args:
            texts: at least one text.

        Returns:
            input_ids, cu_seqlens, positions and token_type_ids (None), int32 on the CPU.

        Raises:
            TypeError, ValueError: texts is a str, holds something else, or is empty.
        """
        texts = check_texts("tokenize", texts)
        if not texts:
            raise ValueError("tokenize: texts must have at least one text, got none")
        return next(batches(self._flats("tokenize", texts), UNLIMITED))

    def token_counts(self, texts: Iterable[str]) -> list[int]:
        """How many tokens `encode` computes for each text, special tokens included.

        Args:
            texts: the texts.

        Returns:
            One count per text.

        Raises:
            TypeError: texts is a str, or holds something else.
        """
        texts = check_texts("token_counts", texts)
        return [n for flat in self._flats("token_counts", texts) for n in flat.lengths.tolist()]

    @torch.inference_mode()
    def encode(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
        pooling: str | None = None,
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Embed texts.

        On the CPU in fp32 and bf16 a text's embedding is the same, bit for bit, whatever texts come
        with it. The encoder is in eval mode afterwards.

        Args:
            texts: a list or any other ordered iterable of str; longer ones are cut to the model's length, "" is embedded too.
            batch_tokens: tokens computed at a time.
            normalize: scale embeddings to length 1; None does as the checkpoint says.
            pooling: "mean", "cls", "max" or "last"; None does as the checkpoint says.
            show_progress: show a progress bar.

        Returns:
            (len(texts), hidden_size), fp32, on the CPU, in the order of texts.

        Raises:
            TypeError: texts is a str, or holds something else (its index is named).
            ValueError: an unknown pooling, batch_tokens below 1, or a text with a lone surrogate.
        """
        texts = check_texts("encode", texts)
        flats = self._flats("encode", texts)
        return self._embed(
            "encode", flats, len(texts), batch_tokens, normalize, pooling, show_progress
        )

    @torch.inference_mode()
    def encode_ids(
        self,
        ids: Iterable[Sequence[int]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
        pooling: str | None = None,
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Embed texts that are token ids already.

        Args:
            ids: the token ids of each text, special tokens included: lists, arrays or tensors of
                ints, none empty, none too long for the model.
            batch_tokens, normalize, pooling, show_progress: as for `encode`.

        Returns:
            (len(ids), hidden_size), fp32, on the CPU, in the order of ids.

        Raises:
            TypeError: ids of a text that are no ints (the text is named).
            ValueError: no ids, or an id or a text's length that the model does not have; as for
                `encode`.
        """
        longest = self.config.max_tokens if self.config.architecture.positions else None
        rows = check_ids("encode_ids", ids, self.config.vocab_size, longest)
        flats = flats_of_ids(rows)
        return self._embed(
            "encode_ids", flats, len(rows), batch_tokens, normalize, pooling, show_progress
        )

    def _embed(self, op, flats, count, batch_tokens, normalize, pooling, show_progress):
        _check_batch_tokens(op, batch_tokens)
        mode = self.settings.pooling if pooling is None else pooling
        check_choice(op, "pooling", mode, MODES)
        normalize = self.settings.normalize if normalize is None else bool(normalize)
        if _trains(self):
            self.eval()
        with torch.inference_mode(False):  # a plain tensor, that may be trained on
            out = _results(count, self.config.hidden_size)
        done = 0
        with tqdm(total=count, unit="text") if show_progress else nullcontext() as progress:
            for batch in batches(flats, batch_tokens):
                hidden, cu_seqlens = self._hidden(batch)
                pooled = pool(hidden.float(), cu_seqlens, mode, normalize)
                out[done : done + len(pooled)] = pooled
                done += len(pooled)
                if progress is not None:
                    progress.update(len(pooled))
        return out


class _WithHead(Pretrained):
    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of packed sequences; arguments as for `Backbone.forward`."""
        hidden = self.backbone(
            input_ids, cu_seqlens, token_type_ids=token_type_ids, positions=positions
        )
        return self.head(hidden, cu_seqlens)


class SequenceClassifier(_WithHead):
    """A class per text or pair of texts; loads `*ForSequenceClassification`, rerankers among them.

    `forward` gives logits (batch, num_labels).
    """

    task = "sequence"

    @torch.inference_mode()
    def predict(self, texts: Iterable[Text], *, batch_tokens: int = BATCH_TOKENS) -> torch.Tensor:
        """Logits of texts, or of pairs of texts. The classifier is in eval mode afterwards.

        Args:
            texts: all of them str, or all of them pairs (query, passage).
            batch_tokens: tokens computed at a time.

        Returns:
            (len(texts), num_labels), fp32, on the CPU, in the order of texts.

        Raises:
            TypeError: naming the index of what is neither text nor pair, or not like the first.
        """
        texts = check_texts("predict", texts, pairs=True)
        mixed = [i for i, text in enumerate(texts) if type(text) is not type(texts[0])]
        if mixed:
            raise TypeError(f"predict: texts must be all str or all pairs, differs at {mixed[0]}")
        _check_batch_tokens("predict", batch_tokens)
        self.eval()
        with torch.inference_mode(False):  # a plain tensor, that may be trained on
            out = _results(len(texts), self.config.num_labels)
        done = 0
        flats = self._text_tokenizer("predict").flats(texts)
        for batch in batches(flats, batch_tokens):
            logits = self.head(*self._hidden(batch))
            out[done : done + len(logits)] = logits
            done += len(logits)
        return out


class TokenClassifier(_WithHead):
    """A class per token; loads `*ForTokenClassification`.

    `forward` gives logits (total_tokens, num_labels).
    """

    task = "token"


class MaskedLM(_WithHead):
    """Word logits per token; loads `*ForMaskedLM`.

    `forward` gives logits (total_tokens, vocab_size).
    """

    task = "masked_lm"
