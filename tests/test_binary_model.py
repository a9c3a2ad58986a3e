"""Binarized encoders: the authors' checkpoints, both forms against formulas, files, training."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import taut
from binary_models import FIELDS, SHAPE, draw, random_tensors, save_checkpoint
from encoder_models import make_tokenizer, randomize, save_random
from helpers import compiled_whole, cu_seqlens_of
from taut import accounting, binarize
from taut.cli import app
from taut.encoder import EncoderConfig, MaskedLM, SequenceClassifier, TokenClassifier
from taut.encoder.binary import BinaryLinear, step_scale
from taut.encoder.packed_binary import BitAttention, BitLinear
from taut.reference.binary_gemm import compare, unpack_bits

KINDS = ("bibert", "bit")
TEXTS = ["the cat sat", "", "rain on the mat", "the quick model sat on tokens"]


def float_config(**changes):
    return EncoderConfig.from_dict({**SHAPE, "model_type": "bert", **changes})


def student_of(kind, cls=SequenceClassifier, **changes):
    """A random trainable model with scales that fit, and a batch."""
    ids, cu = torch.randint(0, SHAPE["vocab_size"], (30,)), cu_seqlens_of((7, 1, 22))
    student = binarize.prepare(cls(float_config(**changes)), kind)
    binarize.initialize_scales(student, ids, cu)
    return student, ids, cu


@pytest.fixture(scope="module", params=KINDS)
def authors(request, tmp_path_factory):
    """(kind, directory, sequences, logits by the formulas)."""
    sequences = [torch.randint(0, SHAPE["vocab_size"], (n,)) for n in (5, 1, 14)]
    tensors, logits, reference = draw(request.param, sequences)
    assert reference.zeros["context"] > 0
    assert request.param == "bit" or reference.zeros["inner"] > 0, "GELU must underflow somewhere"
    directory = tmp_path_factory.mktemp("authors") / request.param
    save_checkpoint(directory, request.param, tensors)
    return request.param, directory, sequences, logits


# ---- the authors' checkpoints


@torch.no_grad()
def test_both_forms_compute_what_the_formulas_say(authors, isa, tmp_path):
    _, directory, sequences, want = authors
    ids, cu = torch.cat(sequences), cu_seqlens_of([len(s) for s in sequences])
    trainable = SequenceClassifier.from_pretrained(directory)
    packed = binarize.convert(trainable)
    for model in (trainable, packed):
        torch.testing.assert_close(model(ids, cu), want, atol=5e-6, rtol=1e-5)
    packed.save_pretrained(tmp_path / "packed")
    again = SequenceClassifier.from_pretrained(tmp_path / "packed")
    assert torch.equal(again(ids, cu), packed(ids, cu))
    each = [again(s, cu_seqlens_of((len(s),))) for s in sequences]
    assert torch.equal(torch.cat(each), again(ids, cu))


def test_a_trainable_checkpoint_comes_back_to_the_bit(authors, tmp_path):
    _, directory, sequences, _ = authors
    model = SequenceClassifier.from_pretrained(directory)
    model.save_pretrained(tmp_path / "again")
    saved = torch.load(directory / "pytorch_model.bin")
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    assert tensors.keys() <= saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in tensors)
    again = SequenceClassifier.from_pretrained(tmp_path / "again")
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


def test_dead_parameters_are_ignored(tmp_path):
    """move_q, move_k and move_v of BiT are applied and overwritten in the authors' code."""
    tensors = random_tensors("bit")
    dead = [name for name in tensors if ".move_" in name]
    assert len(dead) == 3 * SHAPE["num_hidden_layers"]
    save_checkpoint(tmp_path / "a", "bit", tensors)
    save_checkpoint(tmp_path / "b", "bit", {n: t for n, t in tensors.items() if n not in dead})
    a, b = (taut.Encoder.from_pretrained(tmp_path / name).encode(TEXTS) for name in "ab")
    assert torch.equal(a, b)


def test_files_of_signs_are_refused(tmp_path):
    tensors = random_tensors("bibert")
    for name, t in tensors.items():
        if "encoder" in name and name.endswith(("query.weight", "dense.weight")):
            tensors[name] = t.sign()
    save_checkpoint(tmp_path / "quant", "bibert", tensors)
    with pytest.raises(ValueError, match="layers.0.query has signs only: BiBERT's quant/ files"):
        taut.Encoder.from_pretrained(tmp_path / "quant")


@pytest.mark.parametrize(
    "kind, field, value",
    (("bibert", "weight_bits", 2), ("bibert", "input_bits", 8), ("bit", "input_bits", 4),
     ("bit", "weight_quant_method", "uniform"), ("bit", "weight_layerwise", False),
     ("bit", "hidden_act", "gelu"), ("bit", "sym_quant_ffn_attn", True)),
)  # fmt: skip
def test_other_quantizers_are_refused(kind, field, value):
    raw = {**SHAPE, **FIELDS[kind], field: value}
    with pytest.raises(ValueError, match=f"config.json: {field} must be .*, got {value!r}"):
        EncoderConfig.from_dict(raw)


# ---- thresholds


def units_of(signs, channels):
    return unpack_bits(signs, channels).int()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_thresholds_say_what_the_floats_say_for_every_sum(kind):
    """Exhaustive, with dead channels, ties at 0 and GELU's underflow among them."""
    channels, largest = 96, 64
    up = BinaryLinear(64, channels, kind)
    down = BinaryLinear(channels, 64, kind, "ternary" if kind == "bibert" else "steps")
    config = float_config(hidden_size=64, num_attention_heads=1, intermediate_size=channels)
    layer = binarize.prepare(taut.Encoder(config), kind).backbone.layers[0]
    layer.up, layer.down = up, down
    up.weight.normal_()
    up.weight[:3] = 0
    up.bias.normal_(std=4)
    up.bias[0], up.bias[1], up.bias[2], up.bias[3:20] = 0.0, 1.0, -9.0, 0.0
    if kind == "bit":
        down.move.bias.normal_()
        down.move.bias[5:9] = torch.tensor([9.0, -9.0, 0.0, 0.5])
    target = BitLinear(64, channels, "rails", moved=kind == "bit")
    scale, bias = binarize._fill(target, up)
    sums = binarize._whole(largest)
    want = down.units(layer.activate(sums * scale + bias))
    thresholds = binarize._thresholds(want)
    assert torch.equal(
        units_of(compare(sums.expand(-1, channels), thresholds), channels), want.int()
    )
    if kind == "bibert":
        assert set(want.unique().tolist()) == {-1, 0, 1}
        assert (want[0] == 0).any() and (want[64, 3:20] == 0).all()


# ---- training


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_starts_from_its_teacher_and_learns(kind):
    torch.manual_seed(0)  # whether it learns in few steps is a matter of luck
    teacher = SequenceClassifier(float_config())
    randomize(teacher)
    before = copy.deepcopy(teacher.state_dict())
    student = binarize.prepare(teacher, kind, dropout=0.1)
    assert student.training and student.config.hidden_dropout == 0.1
    qkv = torch.cat(
        [getattr(student.backbone.layers[1], n).weight for n in ("query", "key", "value")]
    )
    assert torch.equal(qkv, before["backbone.layers.1.qkv.weight"])
    assert torch.equal(student.head.dense.weight, before["head.dense.weight"])
    ids, cu = torch.randint(0, SHAPE["vocab_size"], (30,)), cu_seqlens_of((7, 3, 20))
    binarize.initialize_scales(student, ids, cu)
    assert student.training
    labels, losses = torch.tensor([0, 1, 1]), []
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for step in range(30):
        loss = torch.nn.functional.cross_entropy(student(ids, cu), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in student.named_parameters():
                assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.5 * losses[0]
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    student.eval()
    packed = binarize.convert(student)
    with torch.no_grad():
        torch.testing.assert_close(packed(ids, cu), student(ids, cu), atol=0.1, rtol=0.1)


def test_gradients_of_a_bit_layer():
    """By hand: input and its scale and shift, weight and bias."""
    x, grad = torch.randn(2, 9, 12).double()
    linear = BinaryLinear(12, 12, "bit").double()
    with torch.no_grad():
        linear.move.bias.normal_(std=0.3)
        linear.input_clip_val.fill_(0.7)
    x.requires_grad_()
    linear(x).backward(grad)
    moved, alpha = (x + linear.move.bias).detach(), 0.7
    weight = linear.weight.detach()
    binary = weight.abs().mean() * (weight - weight.mean()).sign()
    dx = grad @ binary
    torch.testing.assert_close(x.grad, dx * (moved.abs() <= alpha))
    torch.testing.assert_close(linear.move.bias.grad, (dx * (moved.abs() <= alpha)).sum(0))
    dalpha = (dx * moved.sign()).sum() / math.sqrt(moved.numel())
    torch.testing.assert_close(linear.input_clip_val.grad, dalpha)
    torch.testing.assert_close(linear.weight.grad, grad.T @ (alpha * moved.sign()))
    torch.testing.assert_close(linear.bias.grad, grad.sum(0))


def test_scales_have_the_least_error():
    student, ids, cu = student_of("bit")
    linear, seen = student.backbone.layers[0].query, []
    student.backbone.layers[0].query.register_forward_hook(lambda m, x, y: seen.append(x[0]))
    student.eval()(ids, cu)
    torch.testing.assert_close(linear.input_clip_val.detach(), seen[0].abs().mean())
    x = torch.rand(1000) ** 4
    alpha = step_scale(x)
    errors = [(a * (x > a / 2) - x).square().sum() for a in (alpha, 0.9 * alpha, 1.1 * alpha)]
    assert errors[0] <= min(errors[1:])


# ---- the packed form


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_packed_modules_keep_their_dtypes_and_compute_in_every_dtype(kind):
    student, ids, cu = student_of(kind, taut.Encoder)
    packed = binarize.convert(student)
    want = packed(ids, cu)
    half = copy.deepcopy(packed).to(torch.bfloat16)
    for module in half.modules():
        if isinstance(module, (BitLinear, BitAttention)):
            assert all(t.dtype != torch.bfloat16 for t in module.buffers())
    got = half(ids, cu)
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float(), want, dim=1).min() > 0.8
    assert torch.equal(
        half.float().backbone.layers[0].out.scale, packed.backbone.layers[0].out.scale
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_of_bits_is_like_any_other(kind, tmp_path):
    save_random(tmp_path / "float", "bert", hidden_size=128, num_attention_heads=2)
    student = binarize.prepare(taut.Encoder.from_pretrained(tmp_path / "float"), kind)
    binarize.initialize_scales(student, torch.randint(0, 90, (20,)), cu_seqlens_of((20,)))
    packed = binarize.convert(student)
    packed.save_pretrained(tmp_path / "bits")
    again = taut.Encoder.from_pretrained(tmp_path / "bits")
    want = packed.encode(TEXTS)
    assert torch.equal(again.encode(TEXTS), want)
    assert torch.equal(torch.cat([again.encode([text]) for text in TEXTS]), want)
    torch.testing.assert_close(student.encode(TEXTS), want, atol=1e-3, rtol=1e-3)
    assert again.quantization == {"scheme": "bits", "layers": {}}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_models_compile_whole(kind):
    student, ids, cu = student_of(kind, taut.Encoder)
    with torch.no_grad():
        packed = binarize.convert(student)
        want = packed(ids, cu)  # first: BiT's scales become numbers then
        compiled = compiled_whole(packed)
        torch.testing.assert_close(compiled(ids, cu), want)


def test_token_classifiers_and_encoders_of_classifiers(tmp_path):
    student, ids, cu = student_of("bibert", TokenClassifier)
    with torch.no_grad():
        packed = binarize.convert(student)
        torch.testing.assert_close(packed(ids, cu), student.eval()(ids, cu))
    packed.save_pretrained(tmp_path / "bits")
    make_tokenizer().save(str(tmp_path / "bits" / "tokenizer.json"))
    encoder = taut.Encoder.from_pretrained(tmp_path / "bits")  # which has no use for the head
    with torch.no_grad():
        assert torch.equal(encoder(ids, cu), packed.backbone(ids, cu))


def test_damaged_files_are_refused_by_name(tmp_path):
    student, _, _ = student_of("bit", taut.Encoder)
    binarize.convert(student).save_pretrained(tmp_path / "bits")
    make_tokenizer().save(str(tmp_path / "bits" / "tokenizer.json"))
    path = tmp_path / "bits" / "model.safetensors"
    tensors = load_file(path)
    name = "backbone.layers.1.up.thresholds"
    for wrong, message in (
        (tensors[name][:1], rf"{name} must be \(3, 192\), got \(1, 192\)"),
        (tensors[name].float(), f"{name} must be torch.int32, got torch.float32"),
        (None, rf"{name} must be \(3, 192\), is missing"),
    ):
        rest = {n: t for n, t in tensors.items() if n != name}
        save_file(rest if wrong is None else {**rest, name: wrong.contiguous()}, path)
        with pytest.raises(ValueError, match=message):
            taut.Encoder.from_pretrained(tmp_path / "bits")


def test_refusals():
    student, _, _ = student_of("bibert", taut.Encoder)
    packed = binarize.convert(student)
    distil = EncoderConfig.from_dict({"model_type": "distilbert", "vocab_size": 9, "dim": 64,
                                      "n_layers": 1, "n_heads": 1, "hidden_dim": 64})  # fmt: skip
    wide = binarize.prepare(taut.Encoder(float_config(num_attention_heads=4)), "bibert")
    for call, message in (
        (lambda: binarize.prepare(taut.Encoder(float_config()), "ternary"),
         "binarize: kind must be one of bibert, bit, got 'ternary'"),
        (lambda: binarize.prepare(taut.Encoder(distil), "bit"),
         "binarize: model_type must be bert, got distilbert"),
        (lambda: binarize.prepare(MaskedLM(float_config()), "bit"),
         "binarize: model must be a float Encoder or classifier"),
        (lambda: binarize.convert(taut.Encoder(float_config())),
         "binarize: model must be a trainable binarized"),
        (lambda: binarize.convert(packed), "binarize: model must be a trainable binarized"),
        (lambda: binarize.convert(wide), "binarize: heads must have 64 channels, got 32"),
        (lambda: student.quantize("w8a8"), "quantize: the encoder must not be binarized"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


# ---- accounting and commands

BERT_BASE = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512,
}  # fmt: skip


def account(kind, quantization, file_mib, tokens=128):
    config = EncoderConfig.from_dict({**BERT_BASE, "model_type": kind})
    return dict(accounting.account(config, quantization, int(file_mib * 2**20), tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_numbers_and_the_honest_ones(kind):
    rows = account(kind, {"scheme": "bits"}, 15.4)
    assert rows["FLOPs as published"].startswith("0.4 G, 56.3x fewer: 22.5 / 0.4")
    assert rows["size as published"].startswith("13.4 MiB, 31.2x smaller")
    loadable = {"bibert": "15.4 MiB, 27.1x smaller", "bit": "15.7 MiB, 26.6x smaller"}[kind]
    assert rows["size to load"].startswith(loadable)
    assert rows["size in fp32"].startswith("417.6 MiB")
    assert rows["FLOPs in fp32"].startswith("22.35 G for a text of 128 tokens")
    assert "22.35 G of 1-bit products / 64" in rows["FLOPs counted"]
    assert rows["file"] == "15.4 MiB of bits, 27.0x smaller"


def test_dense_and_low_bit_models_are_counted():
    rows = account("bert", None, 415.4)
    assert rows["file"] == "415.4 MiB of floats" and "FLOPs counted" not in rows
    linears = {
        f"layers.{i}.{name}": {"bits": 2, "activation_bits": 8}
        for i in range(12)
        for name in ("qkv", "out", "up", "down")
    }
    rows = account("bert", {"scheme": "w2a8", "linears": linears}, 30)
    attention = 12 * 4 * 128 * 128 * 768 / 1e9
    want = (22.35 - attention) * 2 * 8 / 64 + attention
    assert rows["FLOPs counted"].startswith(f"{want:.2f} G")
    more = account("bert", None, 1, tokens=512)["FLOPs in fp32"]
    assert more.startswith(f"{4 * (22.35 - attention) + 16 * attention:.1f}")


def test_commands(authors, tmp_path):
    kind, directory, *_ = authors
    run = CliRunner().invoke
    bits, texts, out = tmp_path / "bits", tmp_path / "texts.txt", tmp_path / "out.npy"
    texts.write_text("\n".join(TEXTS))
    result = run(app, ["binarize", str(directory), "--output", str(bits)])
    assert result.exit_code == 0, result.output
    assert f"SequenceClassifier, {kind}" in result.output
    assert float(result.output.split("random ids:")[1]) < 0.1
    result = run(app, ["info", str(bits), "--tokens", "32"])
    assert result.exit_code == 0 and "FLOPs counted" in result.output, result.output
    assert "a text of 32 tokens" in result.output
    assert "a text of 40 tokens" in run(app, ["info", str(bits)]).output  # all it takes
    too_many = run(app, ["info", str(bits), "--tokens", "10000"]).exception
    assert isinstance(too_many, taut.text_io.InputError) and "tokens must be at most" in str(
        too_many
    )
    result = run(app, ["encode", str(texts), "--model", str(bits), "--output", str(out)])
    assert result.exit_code == 0 and out.exists(), result.output
    assert SequenceClassifier.from_pretrained(bits).predict(TEXTS).shape == (len(TEXTS), 3)
    config = json.loads((bits / "config.json").read_text())
    assert config["quantization_config"]["embeddings.word"] == "bits"
    for arguments in (["binarize", str(directory), "--output", str(bits)], ["info", str(tmp_path)]):
        assert isinstance(run(app, arguments).exception, taut.text_io.InputError)
