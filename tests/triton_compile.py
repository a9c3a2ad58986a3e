"""Compiles every kernel the Triton launchers start, ahead of time: no GPU is needed.

    python tests/triton_compile.py cuda:80 hip:gfx942

Calls each launcher on CPU tensors with a driver that names a target and launches nothing, so that
each kernel is compiled exactly as its launcher asks for it. Prints a line for each: target, kernel,
bytes of shared memory. A process of its own, because Triton reads TRITON_INTERPRET at import.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from taut.registry import OPS


class CompileOnlyDriver:
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # kernels are cached per device

    def get_current_stream(self, device) -> int:
        return 0


def launch(op: str, *args):
    return OPS[op].triton_launcher(*OPS[op].complete(args))


def norm_calls(dtype):
    x, residual = torch.randn(2, 40, 384).to(dtype)
    bias, weight, norm_bias = torch.randn(3, 384).to(dtype)
    mean, rstd = torch.randn(2, 40)
    launch("layer_norm", x, residual, bias, weight, norm_bias, 1e-5, True)
    launch("layer_norm_backward", x, x, x, residual, bias, weight, mean, rstd)
    launch("rms_norm", x, None, None, weight, 1e-5, False)
    launch("rms_norm_backward", x, None, x, None, None, weight, rstd)


def activation_calls(dtype):
    x, bias = torch.randn(40, 384).to(dtype), torch.randn(384).to(dtype)
    for activation in ("gelu", "tanh"):
        launch("bias_activation", x, bias, activation)
        launch("bias_activation_backward", x, x, bias, activation)
        launch("bias_glu", x, None, activation)
        launch("bias_glu_backward", x[:, :192], x, None, activation)


def packing_calls():
    launch("pack_mask", torch.ones(3, 40))
    launch("pack_lengths", torch.tensor([3, 5]), 8)
    x, indices = torch.randn(9, 24), torch.arange(5)
    launch("gather_rows", x, indices)
    launch("scatter_rows", x[:5], indices, 9)


def embedding_calls(dtype):
    ids = torch.zeros(40, dtype=torch.int64)
    word, weight, mean = torch.randn(9, 384).to(dtype), torch.randn(384).to(dtype), torch.randn(40)
    tables = ids, ids, ids, word, word, word, weight
    launch("embed_layer_norm", *tables, weight, 1e-5)
    launch("embed_layer_norm_backward", torch.randn(40, 384).to(dtype), *tables, mean, mean)


def pooling_calls(dtype):
    x, cu_seqlens = torch.randn(40, 384).to(dtype), torch.tensor([0, 17, 40]).int()
    for mode in ("cls", "mean", "max"):
        launch("pool", x, cu_seqlens, mode, True)
        launch("pool_backward", x[:2], x, cu_seqlens, mode, True)


def gemm_calls(dtype):
    packed = torch.randn(6, 64, 64, 2) if dtype == torch.bfloat16 else torch.randn(6, 128, 64)
    x, residual, bias = torch.randn(40, 128).to(dtype), torch.randn(40, 384).to(dtype), None
    packed = packed.to(dtype)
    launch("packed_linear", x, packed, torch.randn(384), 384, "gelu")
    launch("packed_linear_layer_norm", x, packed, bias, residual, bias, bias, 1e-5)


def attention_calls(dtype, head_dim):
    q, (k, v) = torch.randn(80, 2, head_dim).to(dtype), torch.randn(2, 80, 1, head_dim).to(dtype)
    cu_seqlens = torch.tensor([0, 17, 80]).int()
    rest = (cu_seqlens, None, None, None, None, False, -1, -1, 0.0, None, 0.0, 0)
    launch("varlen_attention", q, k, v, *rest)
    launch("varlen_attention_backward", q, q, k, v, q, torch.zeros(2, 80), *rest)


def attention_calls_with_every_option(dtype, head_dim):
    qkv, bias = torch.randn(80, 3, 2, head_dim).to(dtype), torch.zeros(3, 2, head_dim).to(dtype)
    slopes, relative_bias = torch.ones(2, 2), torch.zeros(2, 9)
    rest = (
        torch.tensor([0, 17, 80]).int(), 0.1, slopes, relative_bias, False, 5, 7, 2.0,
        (1.03, -0.03), 0.1, 1 << 40,
    )  # fmt: skip
    launch("varlen_attention_qkvpacked", qkv, bias, *rest)
    out = qkv[:, 0]
    launch("varlen_attention_qkvpacked_backward", out, qkv, bias, out, torch.zeros(2, 80), *rest)


def every_call():
    packing_calls()
    for dtype in (torch.bfloat16, torch.float32):
        norm_calls(dtype)
        activation_calls(dtype)
        embedding_calls(dtype)
        pooling_calls(dtype)
        gemm_calls(dtype)
    attention_calls(torch.float16, 256)  # the widest heads: the most shared memory
    attention_calls(torch.float32, 256)
    attention_calls_with_every_option(torch.bfloat16, 64)


def compile_for(target: GPUTarget) -> None:
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        print(target.backend, target.arch, self.__name__, kernel.metadata.shared, flush=True)

    triton.runtime.driver.set_active(CompileOnlyDriver(target))
    JITFunction.run = compile_only
    try:
        every_call()
    finally:
        JITFunction.run = run


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        backend, arch = argument.split(":")
        hip = backend == "hip"
        compile_for(GPUTarget(backend, arch if hip else int(arch), 64 if hip else 32))
