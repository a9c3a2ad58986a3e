"""`taut binarize`: the packed form of a BiBERT or BiT checkpoint, the authors' or one of taut's own."""

from pathlib import Path

import torch

from taut import Encoder, binarize
from taut.encoder import SequenceClassifier, checkpoint
from taut.text_io import InputError

_CLASSIFIER = "classifier.weight"
_SAMPLE_SEQUENCES, _SAMPLE_LENGTH = 8, 32


def run(model: str, output: Path, tokenizer: str | None) -> None:
    """The whole command; prints to standard output."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty directory")
    try:
        files = checkpoint.TensorFiles(checkpoint.resolve(model))
        kind = Encoder if files.find(_CLASSIFIER, "") is None else SequenceClassifier
        trained = kind.from_pretrained(model, tokenizer=tokenizer)
        packed = binarize.convert(trained)
        packed.save_pretrained(output)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot binarize {model}: {error}") from None
    size = sum(file.stat().st_size for file in checkpoint.weight_files(output))
    print(f"{output}: {kind.__name__}, {trained.config.model_type}, {size / 2**20:.1f} MiB")
    print(f"greatest difference of outputs on random ids: {_difference(trained, packed):.1e}")


@torch.inference_mode()
def _difference(trained, packed) -> float:
    config = trained.config
    length = min(_SAMPLE_LENGTH, config.max_tokens)
    generator = torch.Generator().manual_seed(0)
    count = _SAMPLE_SEQUENCES * length
    ids = torch.randint(0, config.vocab_size, (count,), generator=generator, dtype=torch.int32)
    cu_seqlens = torch.arange(0, count + 1, length, dtype=torch.int32)
    outputs = [model(ids, cu_seqlens) for model in (trained, packed)]
    return (outputs[0] - outputs[1]).abs().max().item()
