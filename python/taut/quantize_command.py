"""`taut quantize`: a checkpoint over low-bit weights, and what it costs in accuracy."""

from collections.abc import Sequence
from pathlib import Path

import torch

from taut import Encoder
from taut.demo import every_nth, stdlib_docstrings
from taut.encoder.checkpoint import SAFETENSORS
from taut.schemes import parse_scheme
from taut.text_io import InputError, read_texts

_CALIBRATION_TEXTS = 512
_SAMPLE = 128


def _layers(pairs: Sequence[str]) -> dict[str, str]:
    layers = {}
    for pair in pairs:
        pattern, separator, scheme = pair.partition("=")
        if not separator:
            raise InputError(f"--layer must be PATTERN=SCHEME, got {pair!r}")
        layers[pattern] = scheme
    return layers


def _calibration(source: str, docstrings: list[str]) -> list[str] | None:
    if source == "random":
        return None
    return every_nth(docstrings if source == "docstrings" else read_texts(source, None),
                     _CALIBRATION_TEXTS)  # fmt: skip


def run(
    model: str,
    scheme: str,
    output: Path,
    layers: Sequence[str],
    average_bits: float | None,
    calibration: str,
    dtype: torch.dtype,
    show_progress: bool,
) -> None:
    """The whole command; prints to standard output."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty directory")
    chosen = _layers(layers)
    try:
        for name in (scheme, *chosen.values()):
            if name != "auto":
                parse_scheme(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    docstrings = [docstring.text for docstring in stdlib_docstrings()]
    texts = _calibration(calibration, docstrings[::2])
    try:
        encoder = Encoder.from_pretrained(model)
        if average_bits is not None:
            from taut.encoder.sensitivity import choose_schemes

            found = choose_schemes(
                encoder, average_bits, calibration=texts, show_progress=show_progress
            )
            chosen = {**found, **chosen}
        quantized = encoder.quantize(
            scheme,
            layers=chosen,
            dtype=dtype,
            calibration=texts,
            show_progress=show_progress,
        )
        quantized.save_pretrained(output)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot quantize {model}: {error}") from None
    sample = every_nth(docstrings[1::2], _SAMPLE)
    cosine = torch.nn.functional.cosine_similarity(encoder.encode(sample), quantized.encode(sample))
    before = sum(p.numel() * p.element_size() for p in encoder.parameters())
    after = (output / SAFETENSORS).stat().st_size
    if average_bits is not None:
        for name, scheme_of_layer in chosen.items():
            print(f"  {name:<20} {scheme_of_layer}")
    print(f"{output}: {scheme}, {before / 1e6:.1f} MB in fp32 -> {after / 1e6:.1f} MB")
    print(
        f"cosine to fp32 on {len(sample)} docstrings: mean {cosine.mean():.5f}, "
        f"worst {cosine.min():.5f}"
    )
