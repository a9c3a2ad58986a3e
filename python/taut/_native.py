"""Loads the native libraries and remembers why one is missing.

Importing taut never fails and never prints because of a missing library: ops then run on their
reference, and the first such call warns once with the cause.
"""

import ctypes
import os
import warnings
from pathlib import Path

import torch

_PACKAGE_DIR = Path(__file__).parent
ENVIRONMENT_ISA = "TAUT_CPU_ISA"
ENVIRONMENT_CUDA = "TAUT_CUDA_KERNELS"


class _Libraries:
    def __init__(self) -> None:
        self.causes: dict[str, str] = {}
        self.module = None
        self.cuda = None
        self._warned: set[str] = set()

    def load(self) -> None:
        self._load_cpu()
        wanted = os.environ.get(ENVIRONMENT_CUDA, "auto")
        if wanted not in ("auto", "native", "triton"):
            raise ValueError(f"{ENVIRONMENT_CUDA} must be auto, native or triton, got {wanted!r}")
        if torch.version.cuda is None:
            self.causes["cuda"] = "this torch was built without CUDA"
        elif wanted == "triton":
            self.causes["cuda"] = f"{ENVIRONMENT_CUDA}=triton"
        else:
            self._load_cuda()
        if wanted == "native" and self.cuda is None:
            raise ValueError(f"{ENVIRONMENT_CUDA}=native: {self.causes['cuda']}")

    def _load_cpu(self) -> None:
        if not (_PACKAGE_DIR / "libtaut_cpu.so").exists():
            self.causes["cpu"] = "libtaut_cpu.so was not built into this installation"
            return
        try:
            from taut import _C  # linked to libtaut_cpu, whose ops register as it loads
        except ImportError as error:
            self.causes["cpu"] = f"taut._C did not load: {error}"
            return
        self.module = _C
        if wanted := os.environ.get(ENVIRONMENT_ISA):
            try:
                _C.set_active_isa(wanted)
            except ValueError as error:
                raise ValueError(f"{ENVIRONMENT_ISA}: {error}") from None

    def _load_cuda(self) -> None:
        path = _PACKAGE_DIR / "libtaut_cuda.so"
        if not path.exists():
            self.causes["cuda"] = f"{path.name} was not built into this installation"
            return
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            self.causes["cuda"] = f"{path.name} did not load: {error.__cause__ or error}"
            return
        self.cuda = ctypes.CDLL(str(path))
        self.cuda.taut_cuda_last_variant.restype = ctypes.c_char_p

    def warn_reference(self, op: str, device_type: str) -> None:
        """Says once per device type that an op runs on the slow reference, and why."""
        if device_type in self._warned:
            return
        self._warned.add(device_type)
        cause = self.causes.get(device_type, f"taut has no kernels for device {device_type!r}")
        warnings.warn(
            f"{op} runs on the plain-torch reference on {device_type}: {cause}", stacklevel=4
        )


libraries = _Libraries()


def available_isas() -> list[str]:
    """Instruction sets the native CPU library can use on this machine, lowest first."""
    return libraries.module.available_isas() if libraries.module else []


def last_variant(op: str) -> str | None:
    """Which native CPU kernel the last call of `op` ran, as 'isa' or 'isa/path'; None if none."""
    return libraries.module.last_variants().get(op) if libraries.module else None


def last_cuda_variant(op: str) -> str | None:
    """Whose kernel the last call of `op` that reached libtaut_cuda ran: 'native', 'native/hopper',
    'triton'."""
    if libraries.cuda is None:
        return None
    variant = libraries.cuda.taut_cuda_last_variant(op.encode())
    return variant if variant is None else variant.decode()
