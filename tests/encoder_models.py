"""Small random checkpoints for tests of the encoder, and the transformers models they came from."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

import taut

SIZES = {"vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FFN = {"intermediate_size": 96, "max_position_embeddings": 40, "pad_token_id": 1}
DISTIL = {"vocab_size": 90, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}

CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZES, **FFN),
    "bert-relu": lambda: transformers.BertConfig(**SIZES, **FFN, hidden_act="relu"),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, **FFN, type_vocab_size=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, **FFN, type_vocab_size=1),
    "camembert": lambda: transformers.CamembertConfig(**SIZES, **FFN, type_vocab_size=1),
    "distilbert": lambda: transformers.DistilBertConfig(
        **DISTIL, max_position_embeddings=40, pad_token_id=1
    ),
    "albert": lambda: transformers.AlbertConfig(**SIZES, **FFN, embedding_size=32),
    "electra": lambda: transformers.ElectraConfig(**SIZES, **FFN, embedding_size=32),
    "electra-wide": lambda: transformers.ElectraConfig(**SIZES, **FFN, embedding_size=64),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES, **FFN),
}
WORDS = ("the", "cat", "sat", "on", "mat", "rain", "##ed", "##s", "quick", "model", "tokens")


def make_tokenizer() -> tokenizers.Tokenizer:
    """WordPiece over letters and a few words; [PAD] is 1, as RoBERTa has it."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = [*special, *letters, *(f"##{c}" for c in letters), *WORDS]
    vocab = {token: index for index, token in enumerate(entries)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def randomize(model: torch.nn.Module) -> None:
    """Every parameter random, LayerNorms and biases too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)


def save_random(path: Path, kind: str, auto=transformers.AutoModel, **config) -> torch.nn.Module:
    """Save a random transformers model with a tokenizer under `path`; returns the model."""
    settings = CONFIGS[kind]()
    for name, value in config.items():
        setattr(settings, name, value)
    model = auto.from_config(settings, attn_implementation="eager")
    randomize(model)
    model.save_pretrained(path)
    make_tokenizer().save(str(path / "tokenizer.json"))
    return model.eval()


def save_alibi(path: Path, layout: str, heads: int = 4) -> dict[str, torch.Tensor]:
    """Save a random ALiBi + GLU checkpoint in MosaicBERT's or JinaBERT's layout."""
    hidden, inner, vocabulary = 16 * heads, 96, 90
    config = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "type_vocab_size": 2,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
    }
    if layout == "mosaic":
        config |= {"alibi_starting_size": 512}
    else:
        config |= {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}
    shapes = {
        "embeddings.word_embeddings.weight": (vocabulary, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        if layout == "mosaic":
            shapes[f"{at}.attention.self.Wqkv.weight"] = (3 * hidden, hidden)
            shapes[f"{at}.attention.self.Wqkv.bias"] = (3 * hidden,)
        else:
            for part in ("query", "key", "value"):
                shapes[f"{at}.attention.self.{part}.weight"] = (hidden, hidden)
                shapes[f"{at}.attention.self.{part}.bias"] = (hidden,)
        shapes[f"{at}.attention.output.dense.weight"] = (hidden, hidden)
        shapes[f"{at}.mlp.gated_layers.weight"] = (2 * inner, hidden)
        shapes[f"{at}.mlp.wo.weight"] = (hidden, inner)
        for name in ("attention.output.dense.bias", "mlp.wo.bias"):
            shapes[f"{at}.{name}"] = (hidden,)
        for name in ("attention.output.LayerNorm", "mlp.layernorm"):
            shapes[f"{at}.{name}.weight"] = shapes[f"{at}.{name}.bias"] = (hidden,)
    tensors = {name: 0.15 * torch.randn(shape) for name, shape in shapes.items()}
    for name in tensors:
        if "norm.weight" in name.lower():
            tensors[name] += 1
    path.mkdir(exist_ok=True)
    prefix = "bert." if layout == "mosaic" else ""
    save_file({prefix + name: t for name, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(path / "tokenizer.json"))
    return tensors


def plain_alibi(tensors: dict, ids: torch.Tensor, heads: int, slopes: list[float]) -> torch.Tensor:
    """What the two ALiBi architectures compute for one sequence, in plain torch and fp64."""
    tensors = {name: t.double() for name, t in tensors.items()}
    functional = torch.nn.functional

    def linear(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(x, name):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-12)

    types = tensors["embeddings.token_type_embeddings.weight"][0]
    x = norm(tensors["embeddings.word_embeddings.weight"][ids] + types, "embeddings.LayerNorm")
    rows = torch.arange(len(ids))
    distance = (rows[:, None] - rows[None, :]).abs()
    bias = -torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distance
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        if f"{at}.attention.self.Wqkv.weight" in tensors:
            qkv = linear(x, f"{at}.attention.self.Wqkv").chunk(3, 1)
        else:
            qkv = [linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        q, k, v = (t.view(len(ids), heads, -1).transpose(0, 1) for t in qkv)
        scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5 + bias
        context = (scores.softmax(-1) @ v).transpose(0, 1).reshape(x.shape)
        x = norm(
            linear(context, f"{at}.attention.output.dense") + x, f"{at}.attention.output.LayerNorm"
        )
        gated, straight = linear(x, f"{at}.mlp.gated_layers").chunk(2, 1)
        x = norm(
            linear(functional.gelu(gated) * straight, f"{at}.mlp.wo") + x, f"{at}.mlp.layernorm"
        )
    return x


def encoder_of(tmp_path, kind="bert", scheme=None, dtype=torch.float32):
    """A small random encoder of an architecture, quantized where a scheme is given."""
    if kind in ("mosaic", "jina"):
        save_alibi(tmp_path / kind, kind)
    else:
        save_random(tmp_path / kind, kind, hidden_size=64, intermediate_size=256)
    encoder = taut.Encoder.from_pretrained(tmp_path / kind, max_length=40, dtype=dtype)
    return encoder.quantize(scheme, dtype=dtype) if scheme else encoder
