"""What every model of this package shares: a backbone, perhaps a head, a tokenizer, its files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

import torch

from taut.encoder import checkpoint, quantized_files
from taut.encoder.binary import check_latent
from taut.encoder.config import EncoderConfig
from taut.encoder.heads import HEADS
from taut.encoder.model import Backbone
from taut.encoder.sentence import SentenceSettings, read_settings, write_settings
from taut.encoder.tokenization import TextTokenizer, TokenBatch

Model = TypeVar("Model", bound="Pretrained")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BATCH_TOKENS = 4096


def _check_device(name: str, device: str | torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        cause = str(error).split("\n", 1)[0]
        raise ValueError(f"{name}: device must be usable, got {str(device)!r}: {cause}") from None


class Pretrained(torch.nn.Module):
    """A transformer encoder with the head its class names in `task`, from a checkpoint or fresh.

    Args:
        config: the shape (`EncoderConfig.from_dict`); weights start random.
        tokenizer: needed for texts, not for token ids.
        settings: pooling and text settings of a sentence encoder.
    """

    task: ClassVar[str | None] = None

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: TextTokenizer | None = None,
        settings: SentenceSettings | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.settings = settings or SentenceSettings()
        self.backbone = Backbone(config)
        self.head = HEADS[self.task](config) if self.task else None
        self.quantization: dict | None = None  # what `quantize` was asked for
        self._tie()

    def _tie(self) -> None:
        if self.task == "masked_lm" and self.config.tied:
            self.head.decoder.weight = self.backbone.embeddings.word.weight

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path_or_id: str | os.PathLike,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_length: int | None = None,
        tokenizer: str | os.PathLike | None = None,
    ) -> Model:
        """Load a checkpoint in Hugging Face's layout; nothing in it is ever run.

        Args:
            path_or_id: a directory with config.json, safetensors (or pytorch_model.bin) and
                tokenizer.json, perhaps with sentence-transformers' modules.json; or an id that
                huggingface_hub resolves.
            dtype: of the weights: torch.float32, bfloat16 or float16; of a quantized checkpoint
                it concerns the rest. None: float32, or that of the quantized checkpoint.
            device: where the weights go.
            max_length: cut texts to this many tokens instead of what the checkpoint says; with a
                position table its size is the limit, ALiBi encoders take any length.
            tokenizer: directory or id of another checkpoint whose tokenizer to take.

        Returns:
            The model, in eval mode.

        Raises:
            FileNotFoundError: a file of the checkpoint is missing, or no such id.
            TypeError: max_length is no int.
            ValueError: no such dtype or device, no room for a token in max_length; config.json
                asks for what is not supported, a file is corrupt (it is named), or tensors do not
                fit (all of them are named).
        """
        name = f"{cls.__name__}.from_pretrained"
        if dtype is not None and dtype not in DTYPES:
            accepted = ", ".join(map(str, DTYPES))
            raise ValueError(f"{name}: dtype must be one of {accepted}, got {dtype}")
        if max_length is not None and not isinstance(max_length, int):
            raise TypeError(f"{name}: max_length must be an int, got {type(max_length).__name__}")
        _check_device(name, device)
        directory, settings = read_settings(checkpoint.resolve(path_or_id))
        config = checkpoint.read_config(directory)
        if max_length is not None:
            settings = replace(settings, max_length=max_length)
        stretches = settings.max_length is not None and not config.architecture.positions
        text_tokenizer = TextTokenizer.read(
            directory if tokenizer is None else checkpoint.resolve(tokenizer),
            limit=None if stretches else config.max_tokens,
            wanted=settings.max_length,
            lower_case=settings.lower_case,
            token_types=config.type_vocab_size > 1,
        )
        with torch.inference_mode(False), torch.no_grad():
            with torch.device("meta"):
                model = cls(config, text_tokenizer, settings)
            quantization = quantized_files.quantization_config(directory)
            if quantization is None:
                model.to(dtype or torch.float32)
                model._tie()
                sources = checkpoint.Sources(model, config, cls.task, directory)
                model.to_empty(device=device)
                model._tie()
                sources.fill(model)
                if config.binarization:
                    check_latent(model, str(directory))
            else:
                model.to(quantized_files.saved_dtype(directory)).to_empty(device="cpu")
                quantized_files.load(model, quantization, directory)
                model.to(device, dtype)
        return model.eval()

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write a checkpoint that `from_pretrained`, transformers and sentence-transformers read;
        that of a quantized model is for `from_pretrained` only (`quantized_files.py` describes it).

        It appears whole or not at all.

        Args:
            directory: must not exist yet, or be empty.

        Raises:
            FileExistsError: `directory` exists and is not an empty directory.
        """
        with checkpoint.whole_or_nothing(directory) as scratch:
            if self.quantization is None:
                checkpoint.save_parameters(self, self.config, self.task, scratch)
            else:
                quantized_files.save(self, scratch)
            if self.tokenizer is not None:
                self.tokenizer.save(scratch)
            if self.task is None:
                write_settings(scratch, self.settings, self.config.hidden_size)

    def quantize(
        self: Model,
        scheme: str = "w8a8",
        *,
        layers: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        calibration: Sequence[str] | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Model:
        """A copy of the model over low-bit weights, for inference; heads stay as they are.

        Args:
            scheme: of every linear layer, by name (`taut.schemes` has the table), such as "w8a8";
                "auto": the fastest on this machine, never slower than bf16, named afterwards in
                `quantization["scheme"]`. The word table gets 8 bits per entry and a scale per row.
            layers: other schemes for some of them: patterns such as "layers.0.*" or
                "layers.*.down" -> scheme, later ones win; "embeddings.word" is "w8a16" or "float".
            dtype: of everything else, and of the hidden states.
            calibration: texts like those to come; up to 8192 tokens of them are run. Ranges of
                activations come from them, and rounding errors of symmetric integers are
                compensated for them ("GPTQ"), which 4 bits and fewer need. None: random token ids
                give the ranges, and scales have the least squared error of the weights.
            seed: of the random ids.
            show_progress: show a progress bar.

        Returns:
            The quantized model, in eval mode.

        Raises:
            TypeError, ValueError: an unknown scheme or layer, calibration that holds no texts, a
                model that is quantized already or binarized, a MaskedLM.
        """
        from taut.encoder.quantize import quantize

        return quantize(self, scheme, layers, dtype, calibration, seed, show_progress)

    @property
    def device(self) -> torch.device:
        return self.backbone.embeddings.norm.weight.device

    def _hidden(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of a batch and its cu_seqlens, on the device of the weights."""
        if self.device.type != "cpu":
            batch = TokenBatch(*(None if t is None else t.to(self.device) for t in batch))
        hidden = self.backbone(
            batch.input_ids,
            batch.cu_seqlens,
            token_type_ids=batch.token_type_ids,
            positions=batch.positions,
        )
        return hidden, batch.cu_seqlens

    @property
    def max_length(self) -> int:
        """Tokens a text is cut to, special tokens included."""
        return self._text_tokenizer("max_length").max_length

    def _text_tokenizer(self, op: str) -> TextTokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{op}: the encoder must have a tokenizer, got None")
        return self.tokenizer
