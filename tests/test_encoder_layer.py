"""encoder_layers against its reference, and against the ops it is made of, to the bit."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

import taut
from attention_cases import DTYPES
from encoder_models import save_alibi, save_random
from helpers import assert_close_by_comparison, cu_seqlens_of
from taut import qat
from taut._native import last_variant
from taut.encoder import native_layer
from taut.encoder.model import Layer
from taut.encoder.native_layer import NativeLayer
from taut.nn import LowbitLinear
from taut.ops import encoder_layer as op
from taut.reference import encoder_layer as reference
from taut.reference.dense_gemm import pack_weight, unpack_weight

LENGTHS = (3, 0, 1, 40, 17)
TEXTS = ["the cat sat", "", "rain " * 60, "the quick model", "a"]


def encoder_of(tmp_path, kind="bert", scheme=None, dtype=torch.float32):
    if kind in ("mosaic", "jina"):
        save_alibi(tmp_path / kind, kind)
    else:
        save_random(tmp_path / kind, kind, hidden_size=64, intermediate_size=256)
    encoder = taut.Encoder.from_pretrained(tmp_path / kind, max_length=40, dtype=dtype)
    return encoder.quantize(scheme, dtype=dtype) if scheme else encoder


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


def call_of(encoder):
    """The op's arguments for random tokens, with layers in place of their numbers."""
    own = encoder.eval().backbone.layers
    hidden = torch.randn(sum(LENGTHS) + 2, encoder.config.hidden_size)
    hidden = hidden.to(own[0].output_norm.weight.dtype)
    q = scale = None
    with torch.no_grad():
        found = [layer.native() for layer in own]
        if found[0].quantize_qkv:
            q, scale = own[0].qkv.operand(hidden)
    slopes, layers = encoder.backbone.alibi_slopes, [native.layer for native in found]
    return hidden, q, scale, cu_seqlens_of(LENGTHS), slopes, None, layers


def numbered(args):
    """The same, as the dispatcher takes it."""
    return *args[:-1], [layer.number for layer in args[-1]]


def reference_at(dtype, args):
    """The reference with dense weights, all of it in dtype."""

    def cast(value):
        if isinstance(value, torch.Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        return tuple(map(cast, value)) if isinstance(value, tuple) else value

    def dense(part, out_features, depth):
        packed = pack_weight(unpack_weight(part[0], out_features, depth).to(dtype))
        return packed, *map(cast, part[1:])

    (hidden, q, scale), rest = map(cast, args[:3]), tuple(map(cast, args[3:6]))
    columns = hidden.shape[1]
    for layer in args[-1]:
        parts = layer.parts
        inner = parts.formats[10] // 2 if parts.glu else parts.formats[10]
        linears = map(dense, parts[:4], parts.formats[::5], (columns, columns, columns, inner))
        hidden, q, scale = reference.run_layer(
            hidden, q, scale, *rest, *linears, *map(cast, parts[4:])
        )
    return hidden


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ("bert", "mosaic"))
def test_reference_dense(isa, tmp_path, kind, dtype):
    args = call_of(encoder_of(tmp_path, kind, dtype=dtype))
    with torch.no_grad():
        got = torch.ops.taut.encoder_layers(*numbered(args))
        want = reference.encoder_layers(*numbered(args))
    inside = slice(0, sum(LENGTHS))
    exact = reference_at(torch.float64, args)
    assert_close_by_comparison(got[inside], want[inside], exact[inside], slack=8.0)
    mean = [(t[inside] - exact[inside]).abs().mean() for t in (got, want)]
    assert mean[0] <= 2 * mean[1] + 1e-7


@pytest.mark.parametrize("scheme", ("w8a8", "ternary", "w4a8-g32"))
def test_reference_of_integers(isa, tmp_path, scheme):
    """The same integers but where a value lies beside the edge between two."""
    *args, layers = call_of(encoder_of(tmp_path, scheme=scheme))
    assert layers[0].parts.quantize  # the second layer takes the first one's integers
    first, second = (layer.number for layer in layers)
    for numbers, most, mean in (([first], 0.05, 1e-3), ([first, second], 0.3, 0.015)):
        got = torch.ops.taut.encoder_layers(*args, numbers)
        want = reference.encoder_layers(*args, numbers)
        torch.testing.assert_close(got, want, rtol=0.0, atol=most)
        assert (got - want).abs().mean() < mean


def test_fakes(tmp_path):
    for scheme in (None, "w8a8"):
        args = call_of(encoder_of(tmp_path, scheme=scheme))
        with torch.no_grad():
            torch.library.opcheck(
                torch.ops.taut.encoder_layers.default,
                numbered(args),
                test_utils=("test_schema", "test_faketensor"),
            )


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


def test_layers_are_let_go_of(tmp_path):
    """With the last reference the number is no more, and nor are the tensors kept under it."""
    weight = torch.randn(3)
    alive = weakref.ref(weight.untyped_storage())
    *given, layers = call_of(encoder_of(tmp_path))
    parts = layers[0].parts._replace(output_norm=(weight, None, None, None))
    prepared = op.PreparedLayer(parts)
    number = prepared.number
    del weight, parts
    assert alive() is not None
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert again.number != number and again.parts.heads == prepared.parts.heads
    del prepared, again
    gc.collect()
    assert alive() is None
    with pytest.raises(RuntimeError, match=f"layers must be kept layers, got {number}"):
        torch.ops.taut.encoder_layers(*given, [number])


def test_refuses_bad_arguments(tmp_path):
    hidden, _, _, cu_seqlens, _, _, (layer, _) = call_of(encoder_of(tmp_path))
    parts = layer.parts

    def refused(
        message, hidden=hidden, cu_seqlens=cu_seqlens, error=ValueError, options=None, **to
    ):
        with torch.no_grad(), pytest.raises(error, match=message):
            own = op.PreparedLayer(parts._replace(**to))
            op.encoder_layers(hidden, cu_seqlens, [own], **(options or {}))

    refused(r"encoder_layers: hidden must be \(total_tokens, hidden_size\), got", hidden[0])
    refused("encoder_layers: hidden must be a torch.Tensor, got None", None, error=TypeError)
    refused("encoder_layers: cu_seqlens must not decrease", cu_seqlens=cu_seqlens.flip(0) - 61)
    refused("encoder_layers: heads must divide hidden_size = 64, got 5", heads=5)
    refused("encoder_layers: formats must be 5 numbers of each", formats=parts.formats[:19])
    refused("encoder_layers: qkv must have 192 out_features, got 64", qkv=parts.out,
            formats=(64, *parts.formats[1:]))  # fmt: skip
    refused("encoder_layers, up: packed must be .* pack_weight of a", up=parts.down)
    refused(r"encoder_layers: out must be \(packed, scale, zero_point, codebook, bias\), got 3",
            out=parts.out[:3])  # fmt: skip
    refused("encoder_layers: down must have a scale with low-bit weights, got None",
            formats=(*parts.formats[:15], 64, 8, 0, 8, 0))  # fmt: skip
    refused(
        "encoder_layers, output_norm: bias must be", output_norm=(None, hidden[0, :3], None, None)
    )
    refused("encoder_layers: attention_norm must be", attention_norm=())
    refused("encoder_layers: activation must be one of", activation="swish")
    refused("encoder_layers: inner_group_size must be one of -1, 0, 32", inner_group_size=5)
    refused("encoder_layers: inner_group_size must be -1 unless", inner_group_size=0)
    refused("encoder_layers: scale must be given with q", options={"q": hidden.to(torch.int8)})
    refused("encoder_layers: alibi_slopes must be", options={"alibi_slopes": hidden})
    integers = {"q": hidden.to(torch.int8), "scale": torch.ones(len(hidden), 1)}
    refused("encoder_layers: q must be None with a dense qkv", options=integers)
    refused("encoder_layers: out must have an x_group_size of 0 or group_size = 0, got 48",
            formats=(*parts.formats[:9], 48, *parts.formats[10:]))  # fmt: skip
    refused("encoder_layers: quantize_up must be False unless", quantize_up=True)
    refused("encoder_layers: x must have contiguous rows", hidden.T.contiguous().T)
    refused("encoder_layers: cu_seqlens must", cu_seqlens=cu_seqlens.repeat(2)[::2])
    elsewhere = (parts.up[0].to("meta"), *parts.up[1:])
    refused(r"encoder_layers: up\[0\] must be on cpu like hidden, got meta", up=elsewhere)
    with torch.no_grad(), pytest.raises(ValueError, match="layers must be at least one, got none"):
        op.encoder_layers(hidden, cu_seqlens, [])
    trained = hidden.clone().requires_grad_()
    detached = [
        tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in part)
        if isinstance(part, tuple)
        else part
        for part in parts
    ]
    frozen = op.PreparedLayer(op.LayerParts(*detached))
    assert op.encoder_layers(hidden, cu_seqlens, [frozen]).shape == hidden.shape
    with pytest.raises(ValueError, match="hidden must be a tensor without gradient"):
        op.encoder_layers(trained, cu_seqlens, [frozen])
    message = r"encoder_layers: qkv\[4\] of layer 1 must be a tensor without gradient"
    with pytest.raises(ValueError, match=message):  # its biases are the encoder's parameters
        op.encoder_layers(hidden, cu_seqlens, [frozen, layer])
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(hidden[0].clone(), hidden[0])
        moved = op.PreparedLayer(parts._replace(output_norm=(dual, None, None, None)))
        message = r"encoder_layers: output_norm\[0\] of layer 0 must have no tangent"
        with pytest.raises(NotImplementedError, match=message):
            op.encoder_layers(hidden, cu_seqlens, [moved])


def test_empty_batch(isa, tmp_path, natively):
    for scheme in (None, "w8a8"):
        encoder = encoder_of(tmp_path, scheme=scheme)
        with torch.no_grad():
            out = encoder(torch.zeros(0, dtype=torch.int64), cu_seqlens_of((0, 0)))
        assert out.shape == (0, 64) and natively() == 2
