"""taut: padding-free, low-bit and binarized transformer-encoder kernels for PyTorch."""

from taut import registry as registry
from taut.ops.attention import varlen_attention, varlen_attention_qkvpacked
from taut.ops.norm import layer_norm

__all__ = ["layer_norm", "varlen_attention", "varlen_attention_qkvpacked"]
__version__ = "0.1.0"
