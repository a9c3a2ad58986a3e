"""Compiles every kernel the Triton launchers start, ahead of time: no GPU is needed.

    python tests/triton_compile.py cuda:80 hip:gfx942

Calls each launcher on CPU tensors with a driver that names the target and launches nothing, so
that each kernel is compiled exactly as the launcher asks for it. Prints one line per kernel. Runs
as its own process because TRITON_INTERPRET, which the other tests set, is read at import.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from triton_calls import CALLS


class CompileOnlyDriver:
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # kernels are cached per device: one cache per target

    def get_current_stream(self, device) -> int:
        return 0


def compile_for(target: GPUTarget) -> None:
    compiled = set()
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if self.__name__ not in compiled:
            compiled.add(self.__name__)
            print(target.backend, target.arch, self.__name__, len(kernel.kernel), flush=True)

    triton.runtime.driver.set_active(CompileOnlyDriver(target))
    JITFunction.run = compile_only
    try:
        for call in CALLS:
            call()
    finally:
        JITFunction.run = run


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        backend, arch = argument.split(":")
        hip = backend == "hip"
        compile_for(GPUTarget(backend, arch if hip else int(arch), 64 if hip else 32))
