"""Side files of a checkpoint, mutated in every way that a table holds: what comes out names the file."""

import json
from pathlib import Path

import pytest

import taut
from encoder_models import CONFIGS, save_random
from taut.encoder import EncoderConfig, SentenceSettings
from taut.encoder.sentence import write_settings

# Files that are no JSON, no UTF-8, or no object at all.
BROKEN = (
    b"", b"{", b"null", b"3", b'"x"', b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 200_000,
    b"9" * 5000,
)  # fmt: skip
VALUES = (None, True, -1, 0, 1.5, 1000, 10**9, 10**30, float("nan"), float("inf"), "x", "\0", "", [], [None], {},
          {"x": None}, [[]])  # fmt: skip
FILES = {  # file -> keys to drop and to replace
    "config.json": (
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
        "hidden_dropout_prob", "hidden_act", "position_embedding_type", "id2label", "num_labels",
        "is_decoder", "add_cross_attention", "tie_word_embeddings", "pad_token_id",
    ),
    "modules.json": (),
    "1_Pooling/config.json": ("pooling_mode", "pooling_mode_mean_tokens", "include_prompt"),
    "sentence_bert_config.json": ("max_seq_length", "do_lower_case"),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name"),
    "tokenizer.json": ("model", "post_processor", "normalizer", "truncation", "added_tokens"),
    "tokenizer_config.json": ("model_max_length",),
    "model.safetensors.index.json": ("weight_map",),
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model"
    save_random(path, "bert")
    write_settings(path, SentenceSettings("cls", True, 20, True, "query: "), 64)
    (path / "tokenizer_config.json").write_text('{"model_max_length": 30}')
    tensors = path / "model.safetensors"
    tensors.rename(path / "part.safetensors")
    index = {"weight_map": {"x": "part.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    taut.Encoder.from_pretrained(path)
    return path


def mutants(path: Path, name: str):
    """Bytes that the file may be replaced by; None: it is missing."""
    yield None
    yield from BROKEN
    good = json.loads((path / name).read_text())
    if isinstance(good, list):
        yield from (json.dumps(value).encode() for value in VALUES)
        for index, entry in enumerate(good):
            for key in (None, "type", "path"):
                for value in VALUES:
                    changed = value if key is None else {**entry, key: value}
                    yield json.dumps([*good[:index], changed, *good[index + 1 :]]).encode()
        return
    for key in FILES[name]:
        yield json.dumps({k: v for k, v in good.items() if k != key}).encode()
        for value in VALUES:
            yield json.dumps({**good, key: value}).encode()


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_named_or_loads(checkpoint, name):
    refused = 0
    file = checkpoint / name
    for mutant in list(mutants(checkpoint, name)):
        file.unlink(missing_ok=True)
        if mutant is not None:
            file.write_bytes(mutant)
        try:
            taut.Encoder.from_pretrained(checkpoint).encode(["the cat"])
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            message = str(error)
            assert Path(name).name in message, (mutant and mutant[:200], message[:500])
    assert refused >= len(BROKEN)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_every_config_is_checked(kind):
    good = CONFIGS[kind]().to_dict()
    assert EncoderConfig.from_dict(good).num_heads == 4
    for key in good:
        for value in VALUES:
            try:
                config = EncoderConfig.from_dict({**good, key: value})
            except ValueError as error:
                assert str(error).startswith("config.json: "), error
            else:
                assert config.max_tokens > 0 and 0 <= config.eps < 1


@pytest.mark.parametrize("key", ("is_decoder", "add_cross_attention"))
def test_a_decoder_is_refused(checkpoint, key):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: True}))
    with pytest.raises(ValueError, match=f"config.json: {key} must be false, got True"):
        taut.Encoder.from_pretrained(checkpoint)


def test_sizes_are_held_against_the_tensors_before_they_are_allocated(checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 2**31 - 1}))
    message = r"word_embeddings.weight must be \(2147483647, 64\), got \(90, 64\)"
    with pytest.raises(ValueError, match=f"does not fit its config.json:\n.*{message}"):
        taut.Encoder.from_pretrained(checkpoint)
