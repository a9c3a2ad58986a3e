"""encoder_layers against the ops it is made of, to the bit, and where those run instead of it."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from attention_cases import DTYPES
from encoder_models import encoder_of
from helpers import cu_seqlens_of
from taut import qat
from taut._native import last_variant
from taut.encoder import native_layer
from taut.encoder.model import Layer
from taut.encoder.native_layer import NativeLayer
from taut.nn import LowbitLinear
from taut.ops import encoder_layer as op

LENGTHS = (3, 0, 1, 40, 17)
TEXTS = ["the cat sat", "", "rain " * 60, "the quick model", "a"]


@pytest.fixture
def natively(monkeypatch):
    """How many layers ran in the op since the last call of it."""
    runs = []

    def watched(hidden, cu_seqlens, layers, **options):
        runs.append(len(layers))
        return op.encoder_layers(hidden, cu_seqlens, layers, **options)

    monkeypatch.setattr(native_layer, "encoder_layers", watched)

    def count():
        found = sum(runs)
        runs.clear()
        return found

    return count


@pytest.fixture
def composed(monkeypatch):
    """encode by the single ops."""

    def run(encoder):
        with monkeypatch.context() as patch:
            patch.setattr(NativeLayer, "native", lambda *_: None)
            return encoder.encode(TEXTS)

    return run


ENCODERS = (
    ("bert", None), ("mpnet", None), ("mosaic", None), ("albert", None), ("bert-relu", "w8a8"),
    ("bert", "w8a8"), ("mpnet", "w8a8"), ("mosaic", "w8a8-g0"), ("bert", "w4a8"),
    ("bert", "w4a8-g32"), ("bert", "ternary"), ("bert", "w4a16"), ("bert", "nf4"),
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, scheme", ENCODERS)
def test_gives_what_its_ops_give_one_by_one(isa, tmp_path, natively, composed, kind, scheme, dtype):
    encoder = encoder_of(tmp_path, kind, scheme, dtype)
    got = encoder.encode(TEXTS)
    assert natively() == encoder.config.num_layers and last_variant("encoder_layers") == isa
    assert torch.equal(got, composed(encoder))


@pytest.mark.parametrize("scheme", ("w8a8-g0", "w4a16"))
def test_layers_of_different_kinds(tmp_path, natively, composed, scheme):
    """Dense beside low-bit linears, inside a layer and from layer to layer."""
    parts = ("layers.0.up", "layers.1.qkv", "layers.1.down")
    encoder = encoder_of(tmp_path).quantize(scheme, layers=dict.fromkeys(parts, "float"))
    got = encoder.encode(TEXTS)
    assert natively() == 2
    assert torch.equal(got, composed(encoder))


def test_where_the_ops_run_one_by_one(tmp_path, natively):
    encoder = encoder_of(tmp_path)
    ids, cu = torch.randint(0, 80, (9,)), cu_seqlens_of((9,))

    def count(model=encoder):
        model(ids, cu)
        return natively()

    assert count() == 0  # gradients wanted
    with torch.no_grad():
        assert count() == 2
        with torch.autocast("cpu", torch.bfloat16):
            assert count() == 0
        seen = []
        for watched in (encoder.backbone.layers[0].qkv, encoder.backbone.layers[1]):
            hook = watched.register_forward_hook(lambda *_: seen.append(1))
            assert count() == 0 and len(seen) == 1
            seen.clear()
            hook.remove()
            assert count() == 2
        for own in (encoder.backbone.layers[1].down, encoder.backbone.layers[1]):
            own.forward = own.forward  # as wrappers of a module do
            assert count() == 0
            del own.forward
        encoder.backbone.layers[0].__class__ = type("Own", (Layer,), {})
        assert count() == 0
        encoder.backbone.layers[0].__class__ = Layer
        everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert count() == 0
        everywhere.remove()
        pruned = copy.deepcopy(encoder)
        prune.l1_unstructured(pruned.backbone.layers[0].attention_norm, "weight", 0.5)
        assert count(pruned) == 0
        by_layer = copy.deepcopy(encoder)
        by_layer.backbone.layers[1].compile(
            backend=lambda graph, _: seen.append(1) or graph.forward
        )
        assert count(by_layer) == 0 and seen
        assert count(encoder.train()) == 0
        encoder.eval()
        compiled = torch.compile(encoder, backend="eager")
        torch.testing.assert_close(compiled(ids, cu), encoder(ids, cu), rtol=1e-4, atol=1e-4)
        natively()
        assert count(encoder.quantize("w4a4")) == 0  # rotates what it quantizes
        trainable = qat.prepare(encoder, "w8a8").eval()
        assert count(trainable) == 0
        bare = qat.convert(trainable.backbone).eval()  # quantizes what bf16 has rounded
        assert isinstance(bare.layers[0].up, LowbitLinear) and count(bare) == 0


@pytest.mark.parametrize("scheme", (None, "w8a8"))
def test_what_is_recorded_names_no_layer(tmp_path, natively, scheme):
    """The number of a layer means nothing where the record is replayed."""
    encoder = encoder_of(tmp_path, scheme=scheme)
    ids, cu = torch.randint(0, 80, (9,)), cu_seqlens_of((9,))
    with torch.no_grad():
        want = encoder(ids, cu)
        assert natively() == 2
        traced = torch.jit.trace(encoder, (ids, cu), check_trace=False)
        graph = make_fx(encoder)(ids, cu)
        fake = make_fx(encoder, tracing_mode="fake", _allow_non_fake_inputs=True)(ids, cu)
        early = make_fx(encoder, pre_dispatch=True)(ids, cu)
        assert natively() == 0
        for replay in (traced, graph, fake, early):
            assert torch.equal(replay(ids, cu), want)
    records = str(traced.inlined_graph), graph.code, fake.code, early.code
    assert not any("encoder_layers" in record for record in records)


def test_changed_weights_are_seen(tmp_path, natively, composed):
    encoder = encoder_of(tmp_path)
    before = encoder.encode(TEXTS)
    with torch.no_grad():
        encoder.backbone.layers[1].up.weight.mul_(2)
        encoder.backbone.layers[0].attention_norm.weight = torch.nn.Parameter(torch.rand(64))
    after = encoder.encode(TEXTS)
    assert not torch.equal(after, before) and torch.equal(after, composed(encoder))
    with torch.no_grad():
        encoder.backbone.layers[0].output_norm.bias.add_(1)
        encoder.backbone.layers[1].down.bias = torch.nn.Parameter(torch.rand(64))
    assert torch.equal(encoder.encode(TEXTS), composed(encoder))
    encoder.backbone.layers[0].attention_norm.eps = 0.1
    encoder.backbone.layers[1].activation = "relu"
    assert torch.equal(encoder.encode(TEXTS), composed(encoder))
    quantized = encoder.quantize("w8a8", dtype=torch.float32)
    for change in (
        lambda layer: setattr(layer.down, "scale", 2 * layer.down.scale),
        lambda layer: setattr(layer.up, "bias", torch.rand_like(layer.up.bias)),
        lambda layer: layer.up.register_buffer("bias", torch.rand_like(layer.up.bias)),
        lambda layer: setattr(layer.output_norm.weight, "data", torch.rand(64)),
        lambda layer: layer.attention_norm.bias.add_(torch.rand(64)),
        lambda layer: layer.output_norm.weight.mul_(1 + torch.rand(64)),
        lambda layer: layer.to(torch.bfloat16).to(torch.float32),  # rounds the norms
    ):
        before = quantized.encode(TEXTS)
        with torch.no_grad():
            change(quantized.backbone.layers[0])
        after = quantized.encode(TEXTS)
        assert not torch.equal(after, before) and torch.equal(after, composed(quantized))
    moved = quantized.to(torch.bfloat16)
    assert torch.equal(moved.encode(TEXTS), composed(moved))
    natively()
    for again in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS)) and natively() == 4


@pytest.mark.parametrize("scheme", (None, "w8a8", "w4a16-g32"))
def test_norms_may_lack_a_bias(tmp_path, composed, scheme):
    encoder = encoder_of(tmp_path, scheme=scheme)
    for layer in encoder.backbone.layers:
        layer.attention_norm = torch.nn.LayerNorm(64, bias=False).eval()
    assert torch.equal(encoder.encode(TEXTS), composed(encoder))


def test_norms_made_in_inference_mode_are_read_anew(tmp_path, composed):
    encoder = encoder_of(tmp_path, scheme="w8a8")
    with torch.inference_mode():
        norm = encoder.backbone.layers[0].output_norm = torch.nn.LayerNorm(64).eval()
        before = encoder.encode(TEXTS)
        norm.weight.mul_(2)
        norm.bias.add_(torch.rand(64))
        after = encoder.encode(TEXTS)
        assert not torch.equal(after, before) and torch.equal(after, composed(encoder))


@pytest.mark.parametrize("scheme", (None, "w8a8"))
def test_threads_share_an_encoder(tmp_path, scheme):
    encoder = encoder_of(tmp_path, scheme=scheme)
    unused = pickle.dumps(encoder)  # what is made at first use is no part of it
    want = encoder.encode(TEXTS)
    for _ in range(3):
        shared = pickle.loads(unused)
        with ThreadPoolExecutor(4) as threads:
            for out in threads.map(shared.encode, 4 * [TEXTS]):
                assert torch.equal(out, want)


def test_empty_batch(isa, tmp_path, natively):
    for scheme in (None, "w8a8"):
        encoder = encoder_of(tmp_path, scheme=scheme)
        with torch.no_grad():
            out = encoder(torch.zeros(0, dtype=torch.int64), cu_seqlens_of((0, 0)))
        assert out.shape == (0, 64) and natively() == 2
