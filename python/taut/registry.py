"""The one table of ops. A reader starts here.

An op `taut::<name>` belongs to a stem, and the stem names its file in every room:

    reference/<stem>.py       what the op means, in plain torch: function <name>, and its argument
                              checks: function check_<name>
    fakes/<stem>.py           shapes and dtypes of what it gives: function <name>
    ops/<stem>.py             the public function and its gradient
    csrc/cpu/<stem>.cpp       the CPU launcher, registered by the native library itself
    csrc/cuda/<stem>.cu       the CUDA launcher, likewise
    triton_kernels/<stem>.py  the Triton launcher: function <name>

Schemas are defined here and nowhere else. Where no library registers a kernel for a device, the
reference runs and says so once: see op.py.
"""

from collections.abc import Callable

import torch

from taut._native import libraries
from taut.op import Op, define, library, register_gpu

# Every argument costs about 0.2 us per call from Python; one left at its default costs nothing.
# A list at its default is copied and converted all the same: hence the window's two numbers.
_ATTENTION_OPTIONS = (
    "float? softmax_scale=None, Tensor? alibi_slopes=None, Tensor? relative_bias=None, "
    "bool causal=False, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, "
    "float[]? clip=None, float dropout_p=0.0, SymInt dropout_seed=0, Tensor? plan=None"
)
_FOR_INFERENCE = (
    "packed weights are for inference (torch.no_grad or detach), "
    "torch.nn.functional.linear is for training"
)
_ROUNDED = (
    "what is rounded has no gradient (torch.no_grad or detach), "
    "taut.qat and taut.straight_through are for training"
)
_LOWBIT = (
    "Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? zero_point, "
    "Tensor? codebook, Tensor? bias, SymInt out_features, int bits, int group_size, int x_bits"
)

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            "pack_mask",
            "packing",
            "(Tensor attention_mask) -> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
        ),
        Op(
            "pack_lengths",
            "packing",
            "(Tensor lengths, SymInt padded_length) "
            "-> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
        ),
        Op("gather_rows", "packing", "(Tensor x, Tensor indices) -> Tensor"),
        Op("scatter_rows", "packing", "(Tensor x, Tensor indices, SymInt rows) -> Tensor"),
        Op(
            "attention_plan",
            "attention",
            "(Tensor cu_seqlens_q, Tensor? cu_seqlens_k, SymInt total_q, SymInt total_k) -> Tensor",
            triton=False,  # it orders the work of native kernels
        ),
        Op(
            "varlen_attention",
            "attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor? cu_seqlens_k=None, "
            f"{_ATTENTION_OPTIONS}) -> (Tensor out, Tensor logsumexp)",
            autocast=True,
        ),
        Op(
            "varlen_attention_backward",
            "attention",
            "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens_q, Tensor? cu_seqlens_k=None, {_ATTENTION_OPTIONS}) "
            "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dslopes, Tensor drelative_bias)",
        ),
        Op(
            "varlen_attention_qkvpacked",
            "attention",
            f"(Tensor qkv, Tensor? bias, Tensor cu_seqlens, {_ATTENTION_OPTIONS}) "
            "-> (Tensor out, Tensor logsumexp)",
            autocast=True,
        ),
        Op(
            "varlen_attention_qkvpacked_backward",
            "attention",
            "(Tensor grad_out, Tensor qkv, Tensor? bias, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens, {_ATTENTION_OPTIONS}) "
            "-> (Tensor dqkv, Tensor dbias, Tensor dslopes, Tensor drelative_bias)",
        ),
        Op(
            "layer_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, Tensor? norm_bias, "
            "float eps, bool return_sum) -> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)",
            autocast=True,
        ),
        Op(
            "layer_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor mean, Tensor rstd) "
            "-> (Tensor dx, Tensor dbias, Tensor dweight, Tensor dnorm_bias)",
        ),
        Op(
            "rms_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, float eps, "
            "bool return_sum) -> (Tensor out, Tensor sum, Tensor rstd)",
            autocast=True,
        ),
        Op(
            "rms_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dbias, Tensor dweight)",
        ),
        Op(
            "bias_activation",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            autocast=True,
        ),
        Op(
            "bias_activation_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
        ),
        Op(
            "bias_glu",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            autocast=True,
        ),
        Op(
            "bias_glu_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
        ),
        Op(
            "embed_layer_norm",
            "embedding",
            "(Tensor input_ids, Tensor? positions, Tensor? token_type_ids, Tensor word, "
            "Tensor? position, Tensor? token_type, Tensor? weight, Tensor? norm_bias, float eps) "
            "-> (Tensor out, Tensor mean, Tensor rstd)",
        ),
        Op(
            "lowbit_embed_layer_norm",
            "embedding",
            "(Tensor input_ids, Tensor? positions, Tensor? token_type_ids, Tensor word, "
            "Tensor word_scale, Tensor? position, Tensor? token_type, Tensor weight, "
            "Tensor? norm_bias, float eps) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "embed_layer_norm_backward",
            "embedding",
            "(Tensor grad_out, Tensor input_ids, Tensor? positions, Tensor? token_type_ids, "
            "Tensor word, Tensor? position, Tensor? token_type, Tensor? weight, Tensor mean, "
            "Tensor rstd) -> (Tensor dword, Tensor dposition, Tensor dtoken_type, "
            "Tensor dweight, Tensor dnorm_bias)",
        ),
        Op("pool", "pooling", "(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor"),
        Op(
            "pool_backward",
            "pooling",
            "(Tensor grad_out, Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
        ),
        Op(
            "pack_weight",
            "dense_gemm",
            "(Tensor weight) -> Tensor",
            triton=False,
            refuses_grad=_FOR_INFERENCE,
        ),
        Op(
            "unpack_weight",
            "dense_gemm",
            "(Tensor packed, SymInt out_features, SymInt in_features) -> Tensor",
            triton=False,
            refuses_grad=_FOR_INFERENCE,
        ),
        Op(
            "packed_linear",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, SymInt out_features, "
            "str activation='none') -> Tensor",
            autocast=True,
            refuses_grad=_FOR_INFERENCE,
        ),
        Op(
            "packed_linear_layer_norm",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, Tensor residual, Tensor? weight, "
            "Tensor? norm_bias, float eps) -> Tensor",
            autocast=True,
            refuses_grad=_FOR_INFERENCE,
        ),
        Op(
            "quantize_per_token",
            "quantize",
            "(Tensor x, Tensor? channel_scale=None, Tensor? channel_shift=None, int bits=8, "
            "str grid='absmax', bool hadamard=False, int group_size=0) "
            "-> (Tensor q, Tensor scale)",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "layer_norm_quantize",
            "quantize",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, Tensor? norm_bias, "
            "Tensor? quant_weight, Tensor? quant_bias, float eps, int bits=8) "
            "-> (Tensor out, Tensor q, Tensor scale)",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "kronecker",
            "quantize",
            "(Tensor x, Tensor left, Tensor right) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "pack_lowbit",
            "lowbit_gemm",
            "(Tensor codes, int bits, SymInt in_features) -> Tensor",
            triton=False,
        ),
        Op(
            "unpack_lowbit",
            "lowbit_gemm",
            "(Tensor packed, int bits, SymInt out_features, SymInt in_features) -> Tensor",
            triton=False,
        ),
        Op(
            "lowbit_linear",
            "lowbit_gemm",
            f"({_LOWBIT}, str epilogue='none', Tensor? residual=None, float x_zero_point=0.0, "
            "ScalarType? out_dtype=None) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "lowbit_linear_quantize",
            "lowbit_gemm",
            f"({_LOWBIT}, str epilogue='none', int out_bits=8, int out_group_size=0) "
            "-> (Tensor q, Tensor scale)",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "lowbit_linear_layer_norm",
            "lowbit_gemm",
            f"({_LOWBIT}, Tensor residual, Tensor? norm_weight, Tensor? norm_bias, float eps, "
            "bool quantize=False, Tensor? quant_weight=None, Tensor? quant_bias=None) "
            "-> (Tensor out, Tensor q, Tensor scale)",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "encoder_layers",
            "encoder_layer",
            "(Tensor hidden, Tensor? q, Tensor? scale, Tensor cu_seqlens, Tensor? alibi_slopes, "
            "Tensor? relative_bias, int[] layers) -> Tensor",
            triton=False,  # GPUs run ahead of Python
            refuses_grad=_FOR_INFERENCE,
        ),
        Op(
            "pack_bits",
            "binary_gemm",
            "(Tensor x, Tensor? threshold=None, int rails=1, str tie='strict') -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op("unpack_bits", "binary_gemm", "(Tensor bits, SymInt columns) -> Tensor"),
        Op(
            "binary_linear",
            "binary_gemm",
            "(Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? bias, "
            "SymInt out_features, SymInt in_features, str epilogue='none', "
            "Tensor? residual=None, ScalarType? out_dtype=None) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "binary_linear_bits",
            "binary_gemm",
            "(Tensor x, Tensor packed, Tensor thresholds, SymInt out_features, "
            "SymInt in_features) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "binary_linear_layer_norm",
            "binary_gemm",
            "(Tensor x, Tensor? x_scale, Tensor packed, Tensor scale, Tensor? bias, "
            "SymInt in_features, Tensor residual, Tensor? norm_weight, Tensor? norm_bias, "
            "float eps, Tensor? bit_threshold=None) -> (Tensor out, Tensor bits)",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "binary_attention",
            "binary_attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, str mode='bool', "
            "str tie='strict', float softmax_scale=0.125, float alpha=0.0, "
            "Tensor? thresholds=None, int rails=2) -> Tensor",
            refuses_grad=_ROUNDED,
        ),
        Op(
            "binary_qk_attention",
            "binary_attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float softmax_scale=0.125, "
            "Tensor? alibi_slopes=None, Tensor? v_scale=None, ScalarType? out_dtype=None) "
            "-> Tensor",
            refuses_grad=_ROUNDED,
        ),
    )
}


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give op `name` its gradient; called once, from ops/<stem>.py."""
    torch.library.register_autograd(
        f"taut::{name}", backward, setup_context=setup_context, lib=library
    )
    object.__setattr__(OPS[name], "has_gradient", True)
    if f"{name}_backward" in OPS:

        def refuse(ctx, *_):
            raise RuntimeError(f"{name}: second derivatives are not supported")

        torch.library.register_autograd(f"taut::{name}_backward", refuse, lib=library)


for _op in OPS.values():
    define(_op)
# No op, but how `prepared_layers.py` hands a layer's parts to the native library.
library.define(
    "keep_layer(int number, Tensor?[] qkv, Tensor?[] out, Tensor?[] up, Tensor?[] down, "
    "int[] formats, Tensor?[] attention_norm, Tensor?[] output_norm, int heads, str activation, "
    "bool glu, bool quantize_up, int inner_group_size, float attention_eps, float output_eps, "
    "bool quantize) -> ()"
)
libraries.load()
GPU_KERNELS = {op.name: register_gpu(op) for op in OPS.values()}
