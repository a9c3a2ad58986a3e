"""The `taut` command."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from taut.text_io import (
    InputError,
    OutputError,
    check_output,
    load_encoder,
    read_texts,
    write_embeddings,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Padding-free transformer encoders.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("taut"))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _dtype(name: str):
    import torch

    if name not in _DTYPES:
        message = f"must be one of {', '.join(_DTYPES)}, got {name!r}"
        raise typer.BadParameter(message, param_hint="'--dtype'")
    return getattr(torch, _DTYPES[name])


@app.command()
def encode(
    input: Annotated[str, typer.Argument(help="File of texts, one per line; - for stdin.")],
    model: Annotated[str, typer.Option(help="Checkpoint directory or model id.")],
    output: Annotated[Path, typer.Option(help="File to write: .npy, .safetensors or .jsonl.")],
    jsonl_field: Annotated[
        str | None,
        typer.Option(help="Read JSONL and take this field [default: text for *.jsonl]."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16 [default: fp32; of a quantized model: its own]."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per batch [default: the encoder's own].")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(help="L2-normalise the embeddings [default: as the checkpoint says]."),
    ] = None,
    progress: Annotated[
        bool | None, typer.Option(help="Progress bar [default: on a terminal].")
    ] = None,
) -> None:
    """Embed the texts of INPUT and write one vector per text, in order."""
    check_output(output, input)
    if jsonl_field is None and input.endswith(".jsonl"):
        jsonl_field = "text"
    texts = read_texts(input, jsonl_field)
    wanted = None if dtype is None else _dtype(dtype)
    encoder = load_encoder(model, dtype=wanted, device=device)
    show = sys.stderr.isatty() if progress is None else progress
    options = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    try:
        embeddings = encoder.encode(texts, normalize=normalize, show_progress=show, **options)
    except ValueError as error:
        raise InputError(f"cannot encode {input} with {model}: {error}") from None
    write_embeddings(output, embeddings.cpu().numpy())
    typer.echo(f"{len(texts)} embeddings of {embeddings.shape[1]} written to {output}", err=True)


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint [default: all-MiniLM-L6-v2 from its package].")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=16, help="Texts measured side by side with transformers.")
    ] = 256,
    corpus: Annotated[int, typer.Option(min=16, help="Texts embedded for the search.")] = 100_000,
) -> None:
    """Embed the standard library's docstrings, search them, and compare with transformers."""
    from taut.demo import run

    run(model, sample, corpus)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Checkpoint directory or model id.")],
    output: Annotated[Path, typer.Option(help="Directory to write; must not exist yet.")],
    scheme: Annotated[
        str, typer.Option(help="w8a8, w4a8, w4a8-g32, w2a8, ternary, w4a16, nf4, ... or auto.")
    ] = "w8a8",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=SCHEME for some layers: 'layers.0.*=w8a8'. May be repeated."),
    ] = None,
    average_bits: Annotated[
        float | None,
        typer.Option(help="Choose 2, 4 or 8 bits for each matrix by how sensitive it is."),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="File of texts, docstrings (Python's own), or random (token ids).")
    ] = "docstrings",
    dtype: Annotated[str, typer.Option(help="Of the rest: fp32, bf16 or fp16.")] = "bf16",
    progress: Annotated[
        bool | None, typer.Option(help="Progress bar [default: on a terminal].")
    ] = None,
) -> None:
    """Write MODEL over low-bit weights, whole or not at all."""
    from taut.quantize_command import run

    show = sys.stderr.isatty() if progress is None else progress
    run(model, scheme, output, layer or [], average_bits, calibration, _dtype(dtype), show)


@app.command()
def bench(
    ops: Annotated[
        list[str] | None, typer.Argument(help="Ops, their files' stems, or encode [default: all].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and rounds.")] = False,
    json: Annotated[Path | None, typer.Option(help="File to write the record to.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Earlier record; exit 1 if anything got slower.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Report with plots to write, one file.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Fresh interpreters that share a run [default: 5; on a GPU 1]."),
    ] = None,
) -> None:
    """Measure every op beside what else there is for the job, with its error."""
    from taut.bench.command import run

    raise typer.Exit(run(ops or [], quick, json, compare, html, processes))


@app.command()
def binarize(
    model: Annotated[str, typer.Argument(help="BiBERT or BiT: directory or model id.")],
    output: Annotated[Path, typer.Option(help="Directory to write; must not exist yet.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Checkpoint whose tokenizer.json to take [default: MODEL].")
    ] = None,
) -> None:
    """Write MODEL, whose latent weights are floats, over packed bits, whole or not at all."""
    from taut.binarize_command import run

    run(model, output, tokenizer)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory or model id.", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the text that is counted [default: 128, or all the model takes].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Size and FLOPs of MODEL; without one, versions, instruction sets, and which native libraries
    loaded or why not."""
    if model is None:
        if tokens is not None:
            raise InputError("--tokens needs a MODEL")
        from taut.info import report

        facts = report()
    else:
        from taut.accounting import report

        try:
            facts = report(model, tokens)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot account for {model}: {error}") from None
    for name, value in facts.items():
        typer.echo(f"{name:<20} {value}")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong use or unusable input."""
    try:
        try:
            app()
        finally:
            print(end="", flush=True)  # which knows a standard output that is closed
    except (InputError, OutputError, OSError, MemoryError) as error:
        if isinstance(error, OSError):  # of standard output, which Python flushes again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # whose reader has seen enough
            message = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"taut: {message}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
