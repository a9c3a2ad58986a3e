"""encoder_layers as an op: against its reference, its fake, and what it refuses."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.autograd import forward_ad

from attention_cases import DTYPES
from encoder_models import encoder_of
from helpers import assert_close_by_comparison, cu_seqlens_of
from taut.ops import encoder_layer as op
from taut.reference import encoder_layer as reference
from taut.reference.dense_gemm import pack_weight, unpack_weight

LENGTHS = (3, 0, 1, 40, 17)


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
