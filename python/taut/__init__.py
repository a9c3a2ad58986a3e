"""taut: padding-free, low-bit and binarized transformer-encoder kernels for PyTorch."""

from taut import registry as registry
from taut.ops.norm import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
__version__ = "0.1.0"
