"""What holds for a call of every public op: refusals of wrong types and devices, forward-mode
differentiation, torch.autocast."""

import inspect
import re

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

import taut
from helpers import compiled_whole, cu_seqlens_of
from taut.encoder import EncoderConfig, SequenceClassifier
from taut.formats import LowbitWeight, pack_codes
from taut.nn import Linear
from taut.registry import OPS

X, VECTOR, IDS = torch.randn(4, 16), torch.ones(16), torch.tensor([0, 3, 1, 2])
QKV, CU_SEQLENS = torch.randn(4, 3, 2, 16), cu_seqlens_of([1, 3])
PACKED = taut.pack_weight(torch.randn(16, 16))
ATTENTION = {
    "softmax_scale": 0.5,
    "alibi_slopes": torch.ones(2),
    "relative_bias": torch.ones(2, 3),
    "causal": True,
    "window_size": (1, 1),
    "softcap": 1.0,
    "clip": (1.0, 0.0),
    "dropout_p": 0.5,
    "dropout_seed": 1,
    "plan": taut.attention_plan(CU_SEQLENS, total_q=4),
}
NORM = {"x": X, "weight": VECTOR, "residual": X, "bias": VECTOR, "eps": 1e-6, "return_sum": True}
VALID = {
    "pack_mask": {"attention_mask": torch.ones(2, 3)},
    "pack_lengths": {"lengths": IDS, "padded_length": 5},
    "gather_rows": {"x": X, "indices": IDS},
    "scatter_rows": {"x": X, "indices": IDS, "rows": 5},
    "attention_plan": {
        "cu_seqlens_q": CU_SEQLENS, "cu_seqlens_k": CU_SEQLENS, "total_q": 4, "total_k": 4,
    },
    "varlen_attention": {
        **dict(zip("qkv", QKV.unbind(1), strict=True)),
        "cu_seqlens_q": CU_SEQLENS,
        "cu_seqlens_k": CU_SEQLENS,
        **ATTENTION,
    },
    "varlen_attention_qkvpacked": {
        "qkv": QKV, "cu_seqlens": CU_SEQLENS, "bias": torch.ones(3, 2, 16), **ATTENTION,
    },
    "layer_norm": {**NORM, "norm_bias": VECTOR},
    "rms_norm": NORM,
    "bias_activation": {"x": X, "bias": VECTOR, "activation": "silu"},
    "bias_glu": {"x": X, "bias": VECTOR, "activation": "silu"},
    "embed_layer_norm": {
        "input_ids": IDS, "word": X, "positions": IDS, "position": X, "token_type_ids": IDS,
        "token_type": X, "weight": VECTOR, "norm_bias": VECTOR, "eps": 1e-6,
    },
    "pool": {"x": X, "cu_seqlens": CU_SEQLENS, "mode": "max", "normalize": True},
    "pack_weight": {"weight": X},
    "unpack_weight": {"packed": PACKED, "out_features": 16, "in_features": 16},
    "packed_linear": {
        "x": X, "packed": PACKED, "bias": VECTOR, "out_features": 16, "activation": "silu",
    },
    "packed_linear_layer_norm": {
        "x": X, "packed": PACKED, "bias": VECTOR, "residual": X, "weight": VECTOR,
        "norm_bias": VECTOR, "eps": 1e-6,
    },
}  # fmt: skip
INTEGERS, SCALE = torch.ones(4, 16, dtype=torch.int8), torch.ones(4, 1)
CODES = pack_codes(torch.ones(16, 16, dtype=torch.uint8), 4)
WEIGHT = LowbitWeight(CODES, torch.ones(16, 1), None, None, 4, 16)
LOWBIT = {"x": INTEGERS, "weight": WEIGHT, "bias": VECTOR, "activation": "int8", "x_scale": SCALE}
VALID |= {
    "lowbit_embed_layer_norm": {
        **VALID["embed_layer_norm"], "word": INTEGERS, "word_scale": SCALE,
    },
    "quantize_per_token": {
        "x": X, "bits": 4, "grid": "midrise", "channel_scale": VECTOR, "channel_shift": VECTOR,
        "hadamard": False, "group_size": 0,
    },
    "layer_norm_quantize": {
        "x": X, "weight": VECTOR, "norm_bias": VECTOR, "residual": X, "bias": VECTOR,
        "quant_weight": VECTOR, "quant_bias": VECTOR, "eps": 1e-6, "bits": 8,
    },
    "kronecker": {"x": X, "left": torch.ones(2, 2), "right": torch.ones(8, 8)},
    "pack_lowbit": {"codes": CODES, "bits": 4, "in_features": 16},
    "unpack_lowbit": {
        "packed": WEIGHT.packed, "bits": 4, "out_features": 16, "in_features": 16,
    },
    "lowbit_linear": {
        **LOWBIT, "epilogue": "relu", "residual": X, "x_zero_point": -0.5,
        "out_dtype": torch.float32,
    },
    "lowbit_linear_quantize": {**LOWBIT, "epilogue": "relu", "out_bits": 8, "out_group_size": 0},
    "lowbit_linear_layer_norm": {
        **LOWBIT, "residual": X, "norm_weight": VECTOR, "norm_bias": VECTOR, "eps": 1e-6,
        "quantize": True, "quant_weight": VECTOR, "quant_bias": VECTOR,
    },
}  # fmt: skip
SIGNS, BITS = taut.pack_bits(X), taut.pack_binary_weight(taut.pack_bits(torch.randn(16, 16)))
HEADS = torch.randint(1 << 60, (4, 2))
VALID |= {
    "pack_bits": {"x": X, "threshold": VECTOR, "rails": 2, "tie": "geq"},
    "unpack_bits": {"bits": SIGNS, "columns": 16},
    "binary_linear": {
        "x": INTEGERS, "packed": BITS, "scale": VECTOR, "bias": VECTOR, "in_features": 16,
        "x_scale": SCALE, "epilogue": "relu", "residual": X, "out_dtype": torch.float32,
    },
    "binary_linear_bits": {
        "x": SIGNS, "packed": BITS, "thresholds": torch.ones(16, dtype=torch.int32),
        "in_features": 16,
    },
    "binary_linear_layer_norm": {
        "x": INTEGERS, "packed": BITS, "scale": VECTOR, "bias": VECTOR, "residual": X,
        "norm_weight": VECTOR, "norm_bias": VECTOR, "eps": 1e-6, "in_features": 16,
        "x_scale": SCALE, "bit_threshold": VECTOR,
    },
    "binary_attention": {
        **dict.fromkeys("qkv", HEADS), "cu_seqlens": CU_SEQLENS, "mode": "elastic", "tie": "geq",
        "softmax_scale": 0.5, "alpha": 0.5, "thresholds": torch.ones(2, 64, dtype=torch.int32),
        "rails": 1,
    },
}  # fmt: skip
OTHERWISE_GIVEN = {  # parameters that do not go with the rest
    "varlen_attention": {"return_lse"},
    "varlen_attention_qkvpacked": {"return_lse"},
    "binary_attention": {"alibi_slopes", "v_scale", "out_dtype"},
}
PUBLIC = [name for name in OPS if hasattr(taut, name)]
# By the type of the valid value. Whatever has a truth value serves as a bool, as in Python.
WRONG = {
    torch.Tensor: (None, "x", 3.5, object(), [X], X.numpy()),
    int: (None, "x", 3.5, object(), [1], 2**70),
    float: (None, "x", object(), [0.5], 1j, X),
    bool: ("x", object(), [True]),
    LowbitWeight: (None, "x", 3, X),
    torch.dtype: ("x", object(), [torch.float32], X),
    str: (None, 3, 3.5, object(), ["mean"], X),
    tuple: (None, 3, 1.0, "x", object(), ["x", 1], (1, "x"), X, X.numpy()),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_wrong_type_is_named_with_op_and_argument(name):
    function, valid = getattr(taut, name), VALID[name]
    parameters = inspect.signature(function).parameters
    assert valid.keys() == parameters.keys() - OTHERWISE_GIVEN.get(name, set())
    function(**valid)
    for argument, value in valid.items():
        optional = "None" in str(parameters[argument].annotation)
        for wrong in WRONG[type(value)]:
            if wrong is None and optional:
                continue
            with pytest.raises(TypeError) as caught:
                function(**{**valid, argument: wrong})
            message = str(caught.value)
            assert re.fullmatch(f"{name}: {argument} must be .+, got .+", message), message
            assert "\n" not in message


@pytest.mark.parametrize("name", PUBLIC)
def test_a_tensor_elsewhere_is_named(name):
    function, valid = getattr(taut, name), VALID[name]
    tensors = {key: value for key, value in valid.items() if isinstance(value, torch.Tensor)}
    for key, value in tensors.items() if len(tensors) > 1 else ():
        with pytest.raises(ValueError, match=rf"^{name}: \w+ must be on \w+ like \w+, got \w+$"):
            function(**{**valid, key: value.to("meta")})
    everywhere = {**valid, **{key: value.to("meta") for key, value in tensors.items()}}
    # The sizes of two are in the data; weights with tensors of their own have no `to`.
    if name not in ("pack_mask", "pack_lengths") and WEIGHT not in valid.values():
        assert function(**everywhere) is not None
    key, value = next(iter(tensors.items()))
    with pytest.raises(ValueError, match=f"^{name}: {key} must be strided, got torch.sparse_coo$"):
        function(**{**valid, key: value.to_sparse()})


@pytest.mark.parametrize("name", PUBLIC)
def test_forward_mode_is_refused_and_not_silently_zero(name):
    for key, value in VALID[name].items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue

        def run(t, key=key):
            return getattr(taut, name)(**{**VALID[name], key: t})

        message = f"^{name}: {key} must have no tangent, got one; forward-mode differentiation is"
        with pytest.raises(NotImplementedError, match=message):
            torch.func.jvp(run, (value,), (value,))
        with forward_ad.dual_level():
            with pytest.raises(NotImplementedError, match=message):
                run(forward_ad.make_dual(value.clone(), value))
            run(value)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_gradient_is_given_or_refused(name):
    for key, value in VALID[name].items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        arguments = {**VALID[name], key: value.clone().requires_grad_()}
        if OPS[name].refuses_grad:
            with torch.no_grad():
                getattr(taut, name)(**arguments)
            message = (
                f"^{name}: {key} must be a tensor without gradient, got one that requires grad"
            )
            with pytest.raises(ValueError, match=message):
                getattr(taut, name)(**arguments)
            continue
        outputs = pytree.tree_leaves(getattr(taut, name)(**arguments))
        floats = [
            out for out in outputs if isinstance(out, torch.Tensor) and out.is_floating_point()
        ]
        assert not floats or any(out.requires_grad for out in floats), key


@pytest.mark.parametrize("name", ("layer_norm", "rms_norm", "bias_activation", "bias_glu", "pool"))
def test_an_empty_batch_trains(name):
    """The gradient of sum() is an expanded scalar; without elements its strides mean nothing."""
    x = torch.empty(0, 16, requires_grad=True)
    rest = (cu_seqlens_of([]),) if name == "pool" else ()
    getattr(taut, name)(x, *rest).sum().backward()
    assert x.grad.shape == (0, 16)
    getattr(taut, name)(torch.zeros(()).expand(0, 16), *rest)


# ---- autocast


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", [name for name in PUBLIC if OPS[name].autocast])
def test_autocast_computes_what_casting_by_hand_gives(name, dtype):
    function, arguments = getattr(taut, name), dict(VALID[name])
    if "packed" in arguments:
        dtype = torch.bfloat16
        arguments["packed"] = taut.pack_weight(torch.randn(16, 16, dtype=dtype))
    kept = ("alibi_slopes", "relative_bias")
    by_hand = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point()
        and key not in kept else value
        for key, value in arguments.items()
    }  # fmt: skip
    want = function(**by_hand)
    with torch.autocast("cpu", dtype):
        got = function(**arguments)
        mixed = function(
            **{**arguments, "bias": by_hand["bias"]} if "bias" in by_hand else arguments
        )
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(mixed, want, rtol=0, atol=0)


def classifier(**config):
    raw = {"model_type": "bert", "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 2, "intermediate_size": 48, "hidden_dropout_prob": 0.0}
    raw |= {"attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
    return SequenceClassifier(EncoderConfig.from_dict({**raw, **config}))


@pytest.mark.parametrize("config", ({}, {"alibi_starting_size": 8}), ids=("bert", "mosaic"))
@pytest.mark.parametrize("compiled", (False, True))
def test_a_training_step_under_autocast(config, compiled):
    model = classifier(**config).train()
    ids, cu_seqlens = torch.randint(90, (12,)), cu_seqlens_of([5, 7])
    labels = torch.tensor([0, 1])
    forward = compiled_whole(model) if compiled else model

    def gradients(autocast):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = forward(ids, cu_seqlens)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    cosine = torch.nn.functional.cosine_similarity(gradients(True), gradients(False), dim=0)
    assert cosine > 0.9  # 0.97 was seen: the model is small, and its gradients are


def test_inference_under_autocast_runs_on_weights_packed_in_its_dtype():
    layer, x = Linear(16, 24), torch.randn(3, 16)
    with torch.no_grad():
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(x)
        want = Linear.forward(layer.bfloat16(), x.bfloat16())
    assert plain.dtype == torch.float32
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)
