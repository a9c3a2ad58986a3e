"""taut: padding-free, low-bit and binarized transformer-encoder kernels for PyTorch."""

from taut import registry as registry
from taut.encoder import Encoder
from taut.ops.activation import bias_activation, bias_glu
from taut.ops.attention import attention_plan, varlen_attention, varlen_attention_qkvpacked
from taut.ops.dense_gemm import pack_weight, packed_linear, packed_linear_layer_norm, unpack_weight
from taut.ops.embedding import embed_layer_norm
from taut.ops.norm import layer_norm, rms_norm
from taut.ops.packing import Packing, gather_rows, pack_lengths, pack_mask, scatter_rows
from taut.ops.pooling import pool

__all__ = [
    "Encoder",
    "Packing",
    "attention_plan",
    "bias_activation",
    "bias_glu",
    "embed_layer_norm",
    "gather_rows",
    "layer_norm",
    "pack_lengths",
    "pack_mask",
    "pack_weight",
    "packed_linear",
    "packed_linear_layer_norm",
    "pool",
    "rms_norm",
    "scatter_rows",
    "unpack_weight",
    "varlen_attention",
    "varlen_attention_qkvpacked",
]
__version__ = "0.1.0"
