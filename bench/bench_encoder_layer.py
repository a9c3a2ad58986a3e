"""An encoder layer in one call, against the same ops one by one and the unpadded layer in plain
torch."""

import torch
from torch.nn import functional

from taut import Encoder
from taut.encoder import EncoderConfig
from taut.encoder.native_layer import run_natively
from taut.encoder.quantized import Activations
from taut.reference import encoder_layer as reference

from .cases import DTYPES, Case, Work, allowed_error, by_name, largest_difference
from .lengths import of_tokens

ALLOWED_INT8 = 0.05  # of LayerNorm's outputs: a value beside the edge between two integers


def _encoder(hidden: int, dtype: torch.dtype) -> Encoder:
    config = {
        "model_type": "bert", "vocab_size": 64, "hidden_size": hidden, "num_hidden_layers": 1,
        "num_attention_heads": 12, "intermediate_size": 4 * hidden,
    }  # fmt: skip
    encoder = Encoder(EncoderConfig.from_dict(config)).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder.to(dtype)


def _plain(layer, lengths: list[int], hidden: torch.Tensor) -> torch.Tensor:
    """In torch's own calls, SDPA per sequence."""
    dtype = hidden.dtype

    def linear(x, part):
        return functional.linear(x, part.weight.to(dtype), part.bias.to(dtype))

    def norm(x, part):
        weight, bias = part.weight.to(dtype), part.bias.to(dtype)
        return functional.layer_norm(x, weight.shape, weight, bias, part.eps)

    qkv = linear(hidden, layer.qkv).view(len(hidden), 3, layer.heads, -1)
    context = []
    for part in qkv.split(lengths):
        q, k, v = part.permute(1, 2, 0, 3).unsqueeze(1)
        context.append(functional.scaled_dot_product_attention(q, k, v)[0])
    context = torch.cat(context, 1).transpose(0, 1).flatten(1)
    middle = norm(linear(context, layer.out) + hidden, layer.attention_norm)
    inner = functional.gelu(linear(middle, layer.up))
    return norm(linear(inner, layer.down) + middle, layer.output_norm)


def build(case: Case, device: torch.device) -> Work:
    size, tokens = case.axes["columns"], case.axes["tokens"]
    lengths = [tokens] if tokens <= 64 else of_tokens("natural", tokens)
    low = case.dtype == "int8"
    dtype = torch.bfloat16 if low else DTYPES[case.dtype]
    with torch.inference_mode(False), torch.no_grad():
        encoder = _encoder(size, torch.float32 if low else dtype)
    plain_layer = encoder.backbone.layers[0].to(dtype)
    own = encoder.quantize("w8a8", dtype=dtype) if low else encoder
    layer = own.backbone.layers[0]
    hidden = torch.randn(sum(lengths), size).to(dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()

    def tensor(out):
        return out if isinstance(out, torch.Tensor) else out.hidden

    state = Activations(hidden) if low else hidden

    plain = _plain(plain_layer, lengths, hidden)
    exact = _plain(plain_layer, lengths, hidden.double())
    wanted, allowed = exact, allowed_error(plain, exact)
    if low:
        prepared = layer.native().layer
        q, scale = layer.qkv.operand(hidden)
        args = hidden, q, scale, cu_seqlens, None, None, [prepared.number]
        wanted, allowed = reference.encoder_layers(*args).double(), ALLOWED_INT8

    def check(wanted, allowed):
        return lambda _, out: {
            "error": largest_difference(tensor(out), wanted), "allowed_error": allowed
        }  # fmt: skip

    products = 2 * (4 * size * size + 8 * size * size) * len(hidden)
    peer = "torch bf16" if low else "torch"
    return Work(
        runs={
            "taut": lambda: run_natively([layer], hidden, cu_seqlens, None, None),
            "taut one by one": lambda: tensor(layer(state, cu_seqlens)),
            peer: lambda: _plain(plain_layer, lengths, hidden),
        },
        check=by_name(
            {"": check(wanted, allowed), peer: check(exact, allowed_error(plain, exact))}
        ),
        tokens=len(hidden),
        flops=products + 4 * size * sum(n * n for n in lengths),
        own={peer: {"dtype": "bf16", "roof": "bf16"}} if low else {},
    )


CASES = [
    Case(
        op="encoder_layers",
        text=f"{tokens} tokens, {columns} columns",
        dtype=dtype,
        axes={"tokens": tokens, "columns": columns},
        contenders=("taut", "taut one by one", "torch bf16" if dtype == "int8" else "torch"),
        build=build,
        roof=dtype,
        quick=(tokens, columns) == (16, 384),
        devices=("cpu",),
        mode="inference mode",
    )
    for dtype in ("fp32", "bf16", "int8")
    for columns in (384, 768)
    for tokens in (16, 64, 1024)
]


def test_encoder_layer(contender, replay):
    replay(contender)
