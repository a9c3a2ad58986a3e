"""Synthetic BiBERT and BiT checkpoints in the authors' layouts, and what they compute: fake-quantized
floats, in plain torch and fp64, from the formulas of the papers and the authors' code."""

import json
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from encoder_models import make_tokenizer

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
BIBERT_FIELDS = {
    "quantize_act": True, "weight_bits": 1, "embedding_bits": 1, "input_bits": 1, "clip_val": 2.5,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
BIT_FIELDS = {
    "weight_bits": 1, "input_bits": 1, "weight_quant_method": "bwn", "hidden_act": "relu",
    "input_quant_method": "elastic", "sym_quant_qkvo": True, "sym_quant_ffn_attn": False,
    "embed_layerwise": False, "weight_layerwise": True, "input_layerwise": True,
    "not_quantize_attention": False, "num_labels": 3,
}  # fmt: skip
FIELDS = {"bibert": BIBERT_FIELDS | {"num_labels": 3}, "bit": BIT_FIELDS}
LINEARS = (
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip


def _linear(tensors, name, rows, columns):
    tensors[f"{name}.weight"] = 0.15 * torch.randn(rows, columns) + 0.02
    tensors[f"{name}.bias"] = 0.3 * torch.randn(rows)


def _norm(tensors, name, columns):
    tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(columns)
    tensors[f"{name}.bias"] = 0.2 * torch.randn(columns)


def _elastic(tensors, name):
    """What every linear layer of BiT has besides."""
    columns = tensors[f"{name}.weight"].shape[1]
    tensors[f"{name}.input_clip_val"] = torch.rand(()) + 0.5
    tensors[f"{name}.move.bias"] = 0.2 * torch.randn(columns)


def random_tensors(kind: str) -> dict[str, torch.Tensor]:
    """A state dict with the authors' names and shapes, and with what they save in vain."""
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    tensors = {}
    for table, rows in (("word", "vocab_size"), ("position", "max_position_embeddings"),
                        ("token_type", "type_vocab_size")):  # fmt: skip
        rows = 0.5 * torch.randn(SHAPE[rows], hidden)
        tensors[f"bert.embeddings.{table}_embeddings.weight"] = rows
    tensors["bert.embeddings.word_embeddings.weight"][0] = 0  # padding
    _norm(tensors, "bert.embeddings.LayerNorm", hidden)
    for i in range(SHAPE["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        for name in LINEARS:
            sizes = {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
            _linear(tensors, f"{layer}.{name}", *sizes.get(name, (hidden, hidden)))
        tensors[f"{layer}.intermediate.dense.bias"][::4] -= 6.0  # GELU underflows
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            _norm(tensors, f"{layer}.{name}", hidden)
        for name in ("query", "key", "value", "attn"):
            tensors[f"{layer}.attention.self.clip_{name}"] = torch.rand(()) / 2 + 0.5
        if kind == "bit":
            tensors[f"{layer}.attention.self.clip_attn"] = torch.tensor(0.17)
            for name in LINEARS:
                _elastic(tensors, f"{layer}.{name}")
            tensors[f"{layer}.attention.output.dense.move.bias"][::2] = 0  # sign(0)
            tensors[f"{layer}.output.dense.move.bias"][::8] = 2.0  # steps that are always up
            for part in "qkv":
                tensors[f"{layer}.attention.self.move_{part}.bias"] = 9 * torch.randn(hidden)
    _linear(tensors, "bert.pooler.dense", hidden, hidden)
    if kind == "bit":
        _elastic(tensors, "bert.pooler.dense")
    else:
        for name in [
            name.removesuffix(".weight") for name in tensors if name.endswith("dense.weight")
        ]:
            tensors[f"{name}.scale"] = torch.tensor(7.0)
            tensors[f"{name}.gate"] = torch.ones(1)
            tensors[f"{name}.weight_clip_val"] = tensors[f"{name}.act_clip_val"] = torch.ones(2)
    _linear(tensors, "classifier", 3, hidden)
    return tensors


def save_checkpoint(path, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    torch.save(tensors, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps({**SHAPE, **FIELDS[kind]}))
    make_tokenizer().save(str(path / "tokenizer.json"))


@dataclass
class Reference:
    """logits = Reference(kind, tensors)(ids) of one sequence; then `margin` is how near the closest
    value came to where it would have become another bit, `zeros` counts the signs of 0 by place."""

    kind: str
    tensors: dict[str, torch.Tensor]
    margin: float = math.inf

    def __post_init__(self):
        self.tensors = {name: t.double() for name, t in self.tensors.items()}
        self.zeros = {"context": 0, "inner": 0}

    def _near(self, x):
        self.margin = min(self.margin, x.abs().min().item())
        return x

    def _norm(self, x, name):
        weight, bias = (self.tensors[f"{name}.{leaf}"] for leaf in ("weight", "bias"))
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-12)

    def _moved(self, x, name):
        return x + self.tensors[f"{name}.move.bias"] if self.kind == "bit" else x

    def _product(self, signs, name):
        """Binary input, without its scale, times binary weight, scaled, plus bias."""
        w = self.tensors[f"{name}.weight"]
        if self.kind == "bibert":
            weight = w.abs().mean(1, keepdim=True) * (w - w.mean(1, keepdim=True)).sign()
        else:
            weight = w.abs().mean() * (w - w.mean()).sign()
            weight = weight * self.tensors[f"{name}.input_clip_val"]
        return functional.linear(signs, weight, self.tensors[f"{name}.bias"])

    def _linear(self, x, name):
        return self._product(self._near(self._moved(x, name)).sign(), name)

    def _words(self, ids):
        w = self.tensors["bert.embeddings.word_embeddings.weight"]
        mean = w.mean(1, keepdim=True) if self.kind == "bibert" else w.mean()
        return (w.abs().mean(1, keepdim=True) * (w - mean).sign())[ids]

    def _attention(self, x, layer):
        name = f"{layer}.attention.self"
        q, k, v = (
            self._near(self._linear(x, f"{name}.{part}"))
            .sign()
            .unflatten(1, (-1, 64))
            .transpose(0, 1)
            for part in ("query", "key", "value")
        )
        dot = q @ k.transpose(1, 2)
        if self.kind == "bibert":
            context = (dot > 0).double() @ v
        else:
            aq, ak, av, ap = (
                self.tensors[f"{name}.clip_{part}"] for part in ("query", "key", "value", "attn")
            )
            p = (aq * ak * dot / 8).softmax(2)
            self._near(p / ap - 0.5)
            context = ap * av * ((p / ap).round().clamp(0, 1) @ v)
        return context.transpose(0, 1).flatten(1)

    def _inner(self, y, name):
        """What `output.dense` multiplies."""
        if self.kind == "bibert":
            y = self._near(y).float()  # in which GELU underflows
            signs = (y * 0.5 * (1.0 + torch.erf(y / math.sqrt(2.0)))).sign().double()
            self.zeros["inner"] += int((signs == 0).sum())
            return signs
        alpha = self.tensors[f"{name}.input_clip_val"]
        x = self._moved(y.relu(), name)
        self._near(x / alpha - 0.5)
        return (x / alpha).round().clamp(0, 1)

    def __call__(self, ids):
        x = self._words(ids) + self.tensors["bert.embeddings.token_type_embeddings.weight"][0]
        x = x + self.tensors["bert.embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x, "bert.embeddings.LayerNorm")
        for i in range(SHAPE["num_hidden_layers"]):
            layer = f"bert.encoder.layer.{i}"
            name = f"{layer}.attention.output"
            context = self._moved(self._attention(x, layer), f"{name}.dense").sign()
            self.zeros["context"] += int((context == 0).sum())
            x = self._norm(self._product(context, f"{name}.dense") + x, f"{name}.LayerNorm")
            inner = self._linear(x, f"{layer}.intermediate.dense")
            name = f"{layer}.output"
            inner = self._inner(inner, f"{name}.dense")
            x = self._norm(self._product(inner, f"{name}.dense") + x, f"{name}.LayerNorm")
        pooled = self._linear(x[:1], "bert.pooler.dense").tanh()
        return functional.linear(
            pooled, self.tensors["classifier.weight"], self.tensors["classifier.bias"]
        )


def draw(kind: str, sequences: list[torch.Tensor]):
    """Tensors none of whose values comes near a tie in fp32, and the logits of the sequences."""
    for _ in range(50):
        tensors = random_tensors(kind)
        reference = Reference(kind, tensors)
        logits = torch.cat([reference(ids) for ids in sequences])
        if reference.margin > 2e-6:
            return tensors, logits.float(), reference
    raise AssertionError(f"margin {reference.margin}: every draw had a value near a tie")
