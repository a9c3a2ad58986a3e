"""taut: padding-free, low-bit and binarized transformer-encoder kernels for PyTorch."""

from taut import registry as registry
from taut.encoder import Encoder
from taut.ops.dense_gemm import pack_weight, packed_linear, packed_linear_layer_norm, unpack_weight
from taut.ops.norm import layer_norm

__all__ = [
    "Encoder",
    "layer_norm",
    "pack_weight",
    "packed_linear",
    "packed_linear_layer_norm",
    "unpack_weight",
]
__version__ = "0.1.0"
