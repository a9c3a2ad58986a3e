"""Encoders to compare with, from texts or token ids to normalised mean embeddings.

A setup takes a checkpoint's folder and a device and gives a function of a `Corpus`. All pad its
batches to their longest text, but for `unpadded`: what a skilled user writes in plain torch.
"""

import contextlib
import functools
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from taut import Encoder
from taut.demo import every_nth, stdlib_docstrings

CALIBRATION = 100  # texts that OpenVINO's ranges are taken from


class Corpus(NamedTuple):
    """Texts in their order, the token ids they give, and how many of them make a batch."""

    texts: list[str]
    ids: list[list[int]]
    batch: int = 32  # transformers' and sentence-transformers' habit

    def batches(self) -> list[list[list[int]]]:
        """The ids of each batch."""
        return [self.ids[i : i + self.batch] for i in range(0, len(self.ids), self.batch)]


Embed = Callable[[Corpus], torch.Tensor]


def in_batches(hidden_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device) -> Embed:
    """Embeds padded batches by hidden_of(input_ids, attention_mask), each (batch, longest)."""

    def embed(corpus):
        rows = []
        for batch in corpus.batches():
            longest = max(map(len, batch))
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            lengths = torch.tensor([len(row) for row in batch])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            padded, mask, lengths = (t.to(device) for t in (padded, mask, lengths))
            hidden = hidden_of(padded, mask).float()
            mean = (hidden * mask[..., None]).sum(1) / lengths[:, None]
            rows.append(functional.normalize(mean, dim=1))
        return torch.cat(rows).cpu()

    return embed


def unpadded(path: Path, device: str, dtype: torch.dtype) -> Embed:
    """BERT without padding: linears over all tokens of a batch, SDPA per sequence."""
    encoder = Encoder.from_pretrained(path)
    heads, layers = encoder.config.num_heads, encoder.config.num_layers
    eps = encoder.config.eps
    p = {k.removeprefix("backbone."): v.to(device, dtype) for k, v in encoder.state_dict().items()}

    def linear(x, name):
        return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def embed_batch(ids):
        lengths = [len(row) for row in ids]
        flat = torch.tensor([i for row in ids for i in row], device=device)
        positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        x = p["embeddings.word.weight"][flat] + p["embeddings.position.weight"][positions]
        x = norm(x + p["embeddings.token_type.weight"][0], "embeddings.norm")
        for i in range(layers):
            layer = f"layers.{i}"
            qkv = linear(x, f"{layer}.qkv").view(len(flat), 3, heads, -1)
            context = []
            for part in qkv.split(lengths):
                q, k, v = part.permute(1, 2, 0, 3).unsqueeze(1)
                context.append(functional.scaled_dot_product_attention(q, k, v)[0])
            context = torch.cat(context, 1).transpose(0, 1).flatten(1)
            x = norm(linear(context, f"{layer}.out") + x, f"{layer}.attention_norm")
            up = functional.gelu(linear(x, f"{layer}.up"))
            x = norm(linear(up, f"{layer}.down") + x, f"{layer}.output_norm")
        wide = torch.promote_types(dtype, torch.float32)
        pooled = torch.stack([part.to(wide).mean(0) for part in x.split(lengths)])
        return functional.normalize(pooled, dim=1)

    def embed(corpus):
        return torch.cat([embed_batch(ids) for ids in corpus.batches()]).cpu()

    return embed


def _bert(path: Path, dtype=torch.float32, attention="sdpa"):
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(path, attn_implementation=attention, dtype=dtype).eval()


def _compiled(model):
    from torch._inductor import config

    config.freezing = True
    return torch.compile(model, dynamic=True)


def _hidden_states(model, device) -> Embed:
    return in_batches(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state, device
    )


def transformers(path, device, dtype, attention="sdpa", compiled=False) -> Embed:
    model = _bert(path, dtype, attention).to(device)
    return _hidden_states(_compiled(model) if compiled else model, device)


def sentence_transformers(path, device) -> Embed:
    """From texts: it sorts them by length itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device=device)
    return lambda corpus: model.encode(
        corpus.texts, batch_size=corpus.batch, convert_to_tensor=True, normalize_embeddings=True,
        show_progress_bar=False,
    ).cpu()  # fmt: skip


def torchao(path, device) -> Embed:
    """int8 weights and activations quantized per token, compiled with frozen weights."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = _bert(path).to(device)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return _hidden_states(_compiled(model), device)


class _Exported(torch.nn.Module):
    """(input_ids, attention_mask) -> hidden states, as exporters want it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(1000, 2000, (2, 16)), torch.ones(2, 16, dtype=torch.long)


@functools.cache
def _folders() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="taut-bench-")


def new_folder() -> Path:
    """Removed when the process ends."""
    return Path(tempfile.mkdtemp(dir=_folders().name))


@functools.cache
def _onnx_file(path: Path) -> Path:
    file = new_folder() / "model.onnx"
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in (*names, "hidden")}
    torch.onnx.export(
        _Exported(_bert(path, attention="eager")), _example(), str(file), input_names=names,
        output_names=["hidden"], dynamic_axes=axes, dynamo=False,
    )  # fmt: skip
    return file


def onnxruntime(path, int8=False) -> Embed:
    """int8: weights per channel, activations quantized as they come."""
    import onnxruntime as ort

    file = _onnx_file(path)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = file.with_name("int8.onnx")
        quantize_dynamic(file, quantized, per_channel=True, weight_type=QuantType.QInt8)
        file = quantized
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise keep the cores from the contenders whose turn comes next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def hidden_of(ids, mask):
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        return torch.from_numpy(session.run(None, feed)[0])

    return in_batches(hidden_of, "cpu")


def openvino(path, precision) -> Embed:
    """precision: f32, bf16, or int8 (NNCF's static ranges, the rest in bf16)."""
    import openvino

    model = openvino.convert_model(_Exported(_bert(path)), example_input=_example())
    if precision == "int8":
        import nncf

        texts = [d.text for d in every_nth(stdlib_docstrings(), CALIBRATION)]
        batch = Encoder.from_pretrained(path, max_length=256).tokenize(texts)
        rows = batch.input_ids.long().split(batch.cu_seqlens.diff().tolist())
        batches = [(row[None].numpy(), torch.ones_like(row)[None].numpy()) for row in rows]
        model = nncf.quantize(
            model, nncf.Dataset(batches), subset_size=CALIBRATION,
            model_type=nncf.ModelType.TRANSFORMER,
        )  # fmt: skip
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" else "bf16",
    }
    compiled = openvino.compile_model(model, "CPU", settings)

    def hidden_of(ids, mask):
        return torch.from_numpy(compiled([ids.numpy(), mask.numpy()])[0])

    return in_batches(hidden_of, "cpu")


def _serve(connection, setup: Callable[..., Embed], arguments: tuple) -> None:
    embed = setup(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            corpus = connection.recv()
            try:
                connection.send(embed(corpus))
            except Exception as error:
                connection.send(error)


def in_its_own_process(setup: Callable[..., Embed], *arguments) -> Embed:
    """The embedder that setup(*arguments) makes, in an interpreter of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, setup, arguments), daemon=True)
    process.start()
    theirs.close()

    def embed(corpus):
        ours.send(corpus)
        answer = ours.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return embed


def ctranslate2(path, compute_type) -> Embed:
    """In a process of its own: its threads are a second team of torch's OpenMP, behind which that
    lets all threads of the process sleep instead of wait for the next call."""
    import ctranslate2

    folder = new_folder() / "model"
    ctranslate2.converters.TransformersConverter(str(path)).convert(str(folder))
    return in_its_own_process(_ctranslate2_of, str(folder), compute_type, torch.get_num_threads())


def _ctranslate2_of(folder: str, compute_type: str, threads: int) -> Embed:
    import ctranslate2

    encoder = ctranslate2.Encoder(
        folder, device="cpu", compute_type=compute_type, intra_threads=threads, inter_threads=1
    )

    def embed(corpus):
        rows = []
        for batch in corpus.batches():
            hidden = torch.from_numpy(np.array(encoder.forward_batch(batch).last_hidden_state))
            means = [h[: len(row)].float().mean(0) for h, row in zip(hidden, batch, strict=True)]
            rows.append(functional.normalize(torch.stack(means), dim=1))
        return torch.cat(rows)

    return embed


FP32, BF16 = torch.float32, torch.bfloat16
SETUPS: dict[str, Callable[[Path, str], Embed]] = {
    "torch unpadded fp32": partial(unpadded, dtype=FP32),
    "torch unpadded bf16": partial(unpadded, dtype=BF16),
    "transformers eager fp32": partial(transformers, dtype=FP32, attention="eager"),
    "transformers sdpa fp32": partial(transformers, dtype=FP32),
    "transformers sdpa bf16": partial(transformers, dtype=BF16),
    "transformers compiled fp32": partial(transformers, dtype=FP32, compiled=True),
    "transformers compiled bf16": partial(transformers, dtype=BF16, compiled=True),
    "sentence-transformers fp32, from texts": sentence_transformers,
    "torchao int8 compiled": torchao,
    "onnxruntime fp32": lambda path, device: onnxruntime(path),
    "onnxruntime int8": lambda path, device: onnxruntime(path, int8=True),
    "openvino fp32": lambda path, device: openvino(path, "f32"),
    "openvino bf16": lambda path, device: openvino(path, "bf16"),
    "openvino int8": lambda path, device: openvino(path, "int8"),
    "ctranslate2 fp32": lambda path, device: ctranslate2(path, "float32"),
    "ctranslate2 int8": lambda path, device: ctranslate2(path, "int8"),
}
