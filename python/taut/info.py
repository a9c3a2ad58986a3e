"""What this installation is and can do: the text behind `taut info`."""

import platform

import torch

import taut
from taut import _native
from taut.registry import GPU_KERNELS


def report() -> dict[str, str]:
    """{what: value}, in the order to print."""
    module = _native.libraries.module
    facts = {
        "taut": taut.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    for name in ("cpu", "cuda"):
        cause = _native.libraries.causes.get(name)
        facts[f"libtaut_{name}"] = "loaded" if cause is None else f"not loaded: {cause}"
    if module is not None:
        facts["compiler"] = module.compiler
        facts["instruction sets"] = ", ".join(module.available_isas())
        facts["in use"] = module.active_isa()
    for server in ("native", "triton"):
        served = [name for name, found in GPU_KERNELS.items() if found == server]
        facts[f"{server} on GPUs"] = ", ".join(served) if served else "nothing"
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = "not installed"
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        )
    else:
        facts["gpu"] = "none that this torch can use"
    return facts
