"""The one table of ops. A reader starts here.

An op `taut::<name>` belongs to a stem, and the stem names its file in every room:

    reference/<stem>.py       what the op means, in plain torch: function <name>, and its argument
                              checks: function check_<name>
    ops/<stem>.py             the public function and its gradient
    csrc/cpu/<stem>.cpp       the CPU launcher, registered by the native library itself
    csrc/cuda/<stem>.cu       the CUDA launcher, likewise
    triton_kernels/<stem>.py  the Triton launcher: function <name>

Schemas are defined here and nowhere else. Where no library registers a kernel for a device, the
reference runs and says so once. Every fake below gives shapes and dtypes only.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from taut import _binary_fakes
from taut._native import libraries

_library = torch.library.Library("taut", "DEF")

# Every argument costs about 0.2 us per call from Python; one left at its default costs nothing.
_ATTENTION_OPTIONS = (
    "float softmax_scale, Tensor? alibi_slopes=None, Tensor? relative_bias=None, "
    "bool causal=False, SymInt[] window_size=[-1, -1], float softcap=0.0, float[]? clip=None, "
    "float dropout_p=0.0, SymInt dropout_seed=0"
)
_ATTENTION_BACKWARD_OPTIONS = (
    "float softmax_scale, Tensor? alibi_slopes, Tensor? relative_bias, bool causal, "
    "SymInt[] window_size, float softcap, float[]? clip, float dropout_p, SymInt dropout_seed"
)


@dataclass(frozen=True)
class Op:
    """One row: what the dispatcher needs to know, and where the rest is found."""

    name: str
    stem: str
    schema: str
    fake: Callable
    triton: bool = True  # triton_kernels/<stem>.py has a launcher of this name

    @functools.cached_property
    def reference(self) -> Callable:
        return getattr(importlib.import_module(f"taut.reference.{self.stem}"), self.name)

    @functools.cached_property
    def triton_launcher(self) -> Callable:
        return getattr(importlib.import_module(f"taut.triton_kernels.{self.stem}"), self.name)

    @functools.cached_property
    def check(self) -> Callable | None:
        """check_<name> of the reference: the op's arguments -> TypeError, ValueError or nothing."""
        module = importlib.import_module(f"taut.reference.{self.stem}")
        return getattr(module, f"check_{self.name}", None)

    @functools.cached_property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.taut, self.name).default

    @functools.cached_property
    def entry(self) -> Callable:
        """The overload without its Python frame, for eager calls."""
        return self.overload._op

    def complete(self, args: tuple) -> tuple:
        """`args` with the schema's defaults behind them: the dispatcher drops those on the way to
        a kernel written in Python."""
        missing = self.overload._schema.arguments[len(args) :]
        return (*args, *(argument.default_value for argument in missing))


def _rows(x, dtype=torch.float32):
    return x.new_empty((x.shape[0],), dtype=dtype)


def _fake_packing(x, *_):
    tokens = torch.library.get_ctx().new_dynamic_size()
    cu_seqlens = x.new_empty((x.shape[0] + 1,), dtype=torch.int32)
    return (
        cu_seqlens,
        x.new_empty((tokens,), dtype=torch.int32),
        x.new_empty((tokens,), dtype=torch.int32),
    )


def _fake_varlen_attention(q, k, v, *_):
    out = q.new_empty(q.shape)
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_option_gradients(alibi_slopes, relative_bias, like):
    def gradient(t):
        return like.new_empty((0,) if t is None else t.shape, dtype=torch.float32)

    return gradient(alibi_slopes), gradient(relative_bias)


def _fake_varlen_attention_backward(
    grad_out, q, k, v, out, lse, cu_q, cu_k, scale, slopes, rel, *_
):
    gradients = tuple(t.new_empty(t.shape) for t in (q, k, v))
    return (*gradients, *_fake_option_gradients(slopes, rel, q))


def _fake_varlen_attention_qkvpacked(qkv, *_):
    tokens, _three, heads, head_dim = qkv.shape
    out = qkv.new_empty((tokens, heads, head_dim))
    return out, qkv.new_empty((heads, tokens), dtype=torch.float32)


def _fake_varlen_attention_qkvpacked_backward(
    grad_out, qkv, bias, out, lse, cu_seqlens, scale, slopes, rel, *_
):
    dbias = qkv.new_empty((0,) if bias is None else bias.shape)
    return (qkv.new_empty(qkv.shape), dbias, *_fake_option_gradients(slopes, rel, qkv))


def _fake_layer_norm(x, residual, bias, weight, norm_bias, eps, return_sum):
    total = x.new_empty(x.shape if return_sum else (0,))
    return x.new_empty(x.shape), total, _rows(x), _rows(x)


def _fake_layer_norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd):
    columns = x.new_empty((x.shape[1],))
    return x.new_empty(x.shape), columns, torch.empty_like(columns), torch.empty_like(columns)


def _fake_rms_norm(x, residual, bias, weight, eps, return_sum):
    total = x.new_empty(x.shape if return_sum else (0,))
    return x.new_empty(x.shape), total, _rows(x)


def _fake_rms_norm_backward(grad_out, grad_sum, x, residual, bias, weight, rstd):
    columns = x.new_empty((x.shape[1],))
    return x.new_empty(x.shape), columns, torch.empty_like(columns)


def _fake_bias_glu(x, bias, activation):
    return x.new_empty((x.shape[0], x.shape[1] // 2))


def _fake_activation_backward(grad_out, x, bias, activation):
    return x.new_empty(x.shape), x.new_empty((x.shape[1],))


def _fake_embed_layer_norm(input_ids, positions, token_type_ids, word, *_):
    rows = input_ids.shape[0]
    out = word.new_empty((rows, word.shape[1]))
    mean = word.new_empty((rows,), dtype=torch.float32)
    return out, mean, torch.empty_like(mean)


def _fake_embed_layer_norm_backward(
    grad_out, input_ids, positions, token_type_ids, word, position, token_type, weight, *_
):
    def gradient(t):
        return word.new_empty((0,) if t is None else t.shape)

    columns = word.new_empty((word.shape[1],))
    return (
        gradient(word),
        gradient(position),
        gradient(token_type),
        columns,
        torch.empty_like(columns),
    )


def _fake_pool(x, cu_seqlens, mode, normalize):
    return x.new_empty((cu_seqlens.shape[0] - 1, x.shape[1]))


PANEL = 64  # output channels per panel of a packed weight: see ops/dense_gemm.py


def _fake_pack_weight(weight):
    rows, columns = weight.shape
    panels = (rows + PANEL - 1) // PANEL
    if weight.dtype == torch.bfloat16:
        return weight.new_empty((panels, (columns + 1) // 2, PANEL, 2))
    return weight.new_empty((panels, columns, PANEL))


def _fake_unpack_weight(packed, out_features, in_features):
    return packed.new_empty((out_features, in_features))


def _fake_packed_linear(x, packed, bias, out_features, activation):
    return x.new_empty((x.shape[0], out_features))


def _fake_packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    return residual.new_empty(residual.shape)


_LOWBIT = (
    "Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? zero_point, "
    "Tensor? codebook, Tensor? bias, SymInt out_features, int bits, int group_size, int x_bits"
)


def _groups(columns, group_size):
    return (columns + group_size - 1) // group_size if group_size else 1


def _fake_quantized(x, columns, group_size=0):
    rows = x.shape[0]
    q = x.new_empty((rows, columns), dtype=torch.int8)
    return q, x.new_empty((rows, _groups(columns, group_size)), dtype=torch.float32)


def _fake_quantize_per_token(
    x, channel_scale=None, channel_shift=None, bits=8, grid="absmax", hadamard=False, group_size=0
):
    return _fake_quantized(x, x.shape[1], group_size)


def _fake_pack_lowbit(codes, bits, in_features):
    panels, blocks = (codes.shape[0] + PANEL - 1) // PANEL, (in_features + 63) // 64
    return codes.new_empty((panels, blocks, 2 * bits, PANEL, 4))


def _fake_unpack_lowbit(packed, bits, out_features, in_features):
    return packed.new_empty((out_features, (in_features * bits + 7) // 8))


def _fake_lowbit_linear(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", residual=None, x_zero_point=0.0, out_dtype=None,
):  # fmt: skip
    return x.new_empty((x.shape[0], out_features), dtype=out_dtype or x.dtype)


def _fake_lowbit_linear_quantize(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    epilogue="none", out_bits=8, out_group_size=0,
):  # fmt: skip
    return _fake_quantized(x, out_features, out_group_size)


def _fake_lowbit_linear_layer_norm(
    x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits, group_size, x_bits,
    residual, weight, norm_bias, eps, quantize=False,
):  # fmt: skip
    out = residual.new_empty(residual.shape)
    if quantize:
        return (out, *_fake_quantized(x, out_features))
    return out, x.new_empty((0, 0), dtype=torch.int8), scale.new_empty((0, 0))


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            "pack_mask",
            "packing",
            "(Tensor attention_mask) -> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
            _fake_packing,
        ),
        Op(
            "pack_lengths",
            "packing",
            "(Tensor lengths, SymInt padded_length) "
            "-> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
            _fake_packing,
        ),
        Op(
            "gather_rows",
            "packing",
            "(Tensor x, Tensor indices) -> Tensor",
            lambda x, indices: x.new_empty((indices.shape[0], *x.shape[1:])),
        ),
        Op(
            "scatter_rows",
            "packing",
            "(Tensor x, Tensor indices, SymInt rows) -> Tensor",
            lambda x, indices, rows: x.new_empty((rows, *x.shape[1:])),
        ),
        Op(
            "varlen_attention",
            "attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
            f"{_ATTENTION_OPTIONS}) -> (Tensor out, Tensor logsumexp)",
            _fake_varlen_attention,
        ),
        Op(
            "varlen_attention_backward",
            "attention",
            "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens_q, Tensor cu_seqlens_k, {_ATTENTION_BACKWARD_OPTIONS}) "
            "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dslopes, Tensor drelative_bias)",
            _fake_varlen_attention_backward,
        ),
        Op(
            "varlen_attention_qkvpacked",
            "attention",
            f"(Tensor qkv, Tensor? bias, Tensor cu_seqlens, {_ATTENTION_OPTIONS}) "
            "-> (Tensor out, Tensor logsumexp)",
            _fake_varlen_attention_qkvpacked,
        ),
        Op(
            "varlen_attention_qkvpacked_backward",
            "attention",
            "(Tensor grad_out, Tensor qkv, Tensor? bias, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens, {_ATTENTION_BACKWARD_OPTIONS}) "
            "-> (Tensor dqkv, Tensor dbias, Tensor dslopes, Tensor drelative_bias)",
            _fake_varlen_attention_qkvpacked_backward,
        ),
        Op(
            "layer_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, Tensor? norm_bias, "
            "float eps, bool return_sum) -> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)",
            _fake_layer_norm,
        ),
        Op(
            "layer_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor mean, Tensor rstd) "
            "-> (Tensor dx, Tensor dbias, Tensor dweight, Tensor dnorm_bias)",
            _fake_layer_norm_backward,
        ),
        Op(
            "rms_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, float eps, "
            "bool return_sum) -> (Tensor out, Tensor sum, Tensor rstd)",
            _fake_rms_norm,
        ),
        Op(
            "rms_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dbias, Tensor dweight)",
            _fake_rms_norm_backward,
        ),
        Op(
            "bias_activation",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            lambda x, bias, activation: x.new_empty(x.shape),
        ),
        Op(
            "bias_activation_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
            _fake_activation_backward,
        ),
        Op(
            "bias_glu",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            _fake_bias_glu,
        ),
        Op(
            "bias_glu_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
            _fake_activation_backward,
        ),
        Op(
            "embed_layer_norm",
            "embedding",
            "(Tensor input_ids, Tensor? positions, Tensor? token_type_ids, Tensor word, "
            "Tensor? position, Tensor? token_type, Tensor? weight, Tensor? norm_bias, float eps) "
            "-> (Tensor out, Tensor mean, Tensor rstd)",
            _fake_embed_layer_norm,
        ),
        Op(
            "embed_layer_norm_backward",
            "embedding",
            "(Tensor grad_out, Tensor input_ids, Tensor? positions, Tensor? token_type_ids, "
            "Tensor word, Tensor? position, Tensor? token_type, Tensor? weight, Tensor mean, "
            "Tensor rstd) -> (Tensor dword, Tensor dposition, Tensor dtoken_type, "
            "Tensor dweight, Tensor dnorm_bias)",
            _fake_embed_layer_norm_backward,
        ),
        Op(
            "pool",
            "pooling",
            "(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
            _fake_pool,
        ),
        Op(
            "pool_backward",
            "pooling",
            "(Tensor grad_out, Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
            lambda grad_out, x, cu_seqlens, mode, normalize: x.new_empty(x.shape),
        ),
        Op("pack_weight", "dense_gemm", "(Tensor weight) -> Tensor", _fake_pack_weight, False),
        Op(
            "unpack_weight",
            "dense_gemm",
            "(Tensor packed, SymInt out_features, SymInt in_features) -> Tensor",
            _fake_unpack_weight,
            False,
        ),
        Op(
            "packed_linear",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, SymInt out_features, str activation) "
            "-> Tensor",
            _fake_packed_linear,
        ),
        Op(
            "packed_linear_layer_norm",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, Tensor residual, Tensor? weight, "
            "Tensor? norm_bias, float eps) -> Tensor",
            _fake_packed_linear_layer_norm,
        ),
        Op(
            "quantize_per_token",
            "quantize",
            "(Tensor x, Tensor? channel_scale=None, Tensor? channel_shift=None, int bits=8, "
            "str grid='absmax', bool hadamard=False, int group_size=0) "
            "-> (Tensor q, Tensor scale)",
            _fake_quantize_per_token,
        ),
        Op(
            "layer_norm_quantize",
            "quantize",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, Tensor? norm_bias, "
            "Tensor? quant_weight, Tensor? quant_bias, float eps, int bits=8) "
            "-> (Tensor out, Tensor q, Tensor scale)",
            lambda x, *_: (x.new_empty(x.shape), *_fake_quantized(x, x.shape[1])),
        ),
        Op(
            "kronecker",
            "quantize",
            "(Tensor x, Tensor left, Tensor right) -> Tensor",
            lambda x, left, right: x.new_empty(x.shape),
        ),
        Op(
            "pack_lowbit",
            "lowbit_gemm",
            "(Tensor codes, int bits, SymInt in_features) -> Tensor",
            _fake_pack_lowbit,
            False,
        ),
        Op(
            "unpack_lowbit",
            "lowbit_gemm",
            "(Tensor packed, int bits, SymInt out_features, SymInt in_features) -> Tensor",
            _fake_unpack_lowbit,
            False,
        ),
        Op(
            "lowbit_linear",
            "lowbit_gemm",
            f"({_LOWBIT}, str epilogue='none', Tensor? residual=None, float x_zero_point=0.0, "
            "ScalarType? out_dtype=None) -> Tensor",
            _fake_lowbit_linear,
        ),
        Op(
            "lowbit_linear_quantize",
            "lowbit_gemm",
            f"({_LOWBIT}, str epilogue='none', int out_bits=8, int out_group_size=0) "
            "-> (Tensor q, Tensor scale)",
            _fake_lowbit_linear_quantize,
        ),
        Op(
            "lowbit_linear_layer_norm",
            "lowbit_gemm",
            f"({_LOWBIT}, Tensor residual, Tensor? weight, Tensor? norm_bias, float eps, "
            "bool quantize=False) -> (Tensor out, Tensor q, Tensor scale)",
            _fake_lowbit_linear_layer_norm,
        ),
        Op(
            "pack_bits",
            "binary_gemm",
            "(Tensor x, Tensor? threshold=None, int rails=1, str tie='strict') -> Tensor",
            _binary_fakes.pack_bits,
        ),
        Op(
            "unpack_bits",
            "binary_gemm",
            "(Tensor bits, SymInt columns) -> Tensor",
            _binary_fakes.unpack_bits,
        ),
        Op(
            "binary_linear",
            "binary_gemm",
            "(Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? bias, "
            "SymInt out_features, SymInt in_features, str epilogue='none', "
            "Tensor? residual=None, ScalarType? out_dtype=None) -> Tensor",
            _binary_fakes.binary_linear,
        ),
        Op(
            "binary_linear_bits",
            "binary_gemm",
            "(Tensor x, Tensor packed, Tensor thresholds, SymInt out_features, "
            "SymInt in_features) -> Tensor",
            _binary_fakes.binary_linear_bits,
        ),
        Op(
            "binary_linear_layer_norm",
            "binary_gemm",
            "(Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? bias, "
            "SymInt in_features, Tensor residual, Tensor? weight, Tensor? norm_bias, float eps, "
            "Tensor? bit_threshold=None) -> (Tensor out, Tensor bits)",
            _binary_fakes.binary_linear_layer_norm,
        ),
        Op(
            "binary_attention",
            "binary_attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, str mode='bool', "
            "str tie='strict', float softmax_scale=0.125, float alpha=0.0, "
            "Tensor? thresholds=None, int rails=2) -> Tensor",
            _binary_fakes.binary_attention,
        ),
        Op(
            "binary_qk_attention",
            "binary_attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float softmax_scale=0.125, "
            "Tensor? alibi_slopes=None, Tensor? v_scale=None, ScalarType? out_dtype=None) "
            "-> Tensor",
            _binary_fakes.binary_qk_attention,
        ),
    )
}


def _reference_with_warning(op: Op) -> Callable:
    def run(*args):
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        libraries.warn_reference(op.name, device)
        args = op.complete(args)
        if op.check is not None:
            op.check(*args)
        return op.reference(*args)

    return run


_TRITON_SERVES_GPU = (torch.version.cuda or torch.version.hip) and find_spec("triton")


def _define(op: Op) -> None:
    _library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op.name, _reference_with_warning(op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"taut::{op.name}", op.fake, lib=_library)
    if op.triton and _TRITON_SERVES_GPU:
        _library.impl(op.name, lambda *args: op.triton_launcher(*op.complete(args)), "CUDA")
    _ = op.overload, op.entry  # now: torch.compile cannot trace a cached_property's first use


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give op `name` its gradient; called once, from ops/<stem>.py."""
    torch.library.register_autograd(
        f"taut::{name}", backward, setup_context=setup_context, lib=_library
    )
    if f"{name}_backward" in OPS:

        def refuse(ctx, *_):
            raise RuntimeError(f"{name}: second derivatives are not supported")

        torch.library.register_autograd(f"taut::{name}_backward", refuse, lib=_library)


for _op in OPS.values():
    _define(_op)
libraries.load()
