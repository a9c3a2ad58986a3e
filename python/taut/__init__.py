"""taut: padding-free, low-bit and binarized transformer-encoder kernels for PyTorch."""

from taut import registry as registry
from taut.encoder import Encoder
from taut.formats import LowbitWeight
from taut.ops.activation import bias_activation, bias_glu
from taut.ops.attention import attention_plan, varlen_attention, varlen_attention_qkvpacked
from taut.ops.binary_attention import binary_attention
from taut.ops.binary_gemm import (
    binary_linear,
    binary_linear_bits,
    binary_linear_layer_norm,
    pack_binary_weight,
    pack_bits,
    unpack_binary_weight,
    unpack_bits,
)
from taut.ops.dense_gemm import pack_weight, packed_linear, packed_linear_layer_norm, unpack_weight
from taut.ops.embedding import embed_layer_norm, lowbit_embed_layer_norm
from taut.ops.lowbit_gemm import (
    lowbit_linear,
    lowbit_linear_layer_norm,
    lowbit_linear_quantize,
    pack_lowbit,
    unpack_lowbit,
)
from taut.ops.norm import layer_norm, rms_norm
from taut.ops.packing import Packing, gather_rows, pack_lengths, pack_mask, scatter_rows
from taut.ops.pooling import pool
from taut.ops.quantize import kronecker, layer_norm_quantize, quantize_per_token

__all__ = [
    "Encoder",
    "LowbitWeight",
    "Packing",
    "attention_plan",
    "bias_activation",
    "bias_glu",
    "binary_attention",
    "binary_linear",
    "binary_linear_bits",
    "binary_linear_layer_norm",
    "embed_layer_norm",
    "gather_rows",
    "kronecker",
    "layer_norm",
    "layer_norm_quantize",
    "lowbit_embed_layer_norm",
    "lowbit_linear",
    "lowbit_linear_layer_norm",
    "lowbit_linear_quantize",
    "pack_binary_weight",
    "pack_bits",
    "pack_lengths",
    "pack_lowbit",
    "pack_mask",
    "pack_weight",
    "packed_linear",
    "packed_linear_layer_norm",
    "pool",
    "quantize_per_token",
    "rms_norm",
    "scatter_rows",
    "unpack_binary_weight",
    "unpack_bits",
    "unpack_lowbit",
    "unpack_weight",
    "varlen_attention",
    "varlen_attention_qkvpacked",
]
__version__ = "0.1.0"
