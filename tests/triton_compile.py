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
    codes, scales = torch.ones(50, 384, dtype=torch.int8), torch.ones(50, 1)
    launch("lowbit_embed_layer_norm", *tables[:3], codes, scales, *tables[4:], weight, 1e-5)
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


def quantize_calls():
    x, vector = torch.randn(40, 384).bfloat16(), torch.ones(384)
    bias = vector.bfloat16()
    launch("quantize_per_token", x, vector, vector, 8, "absmax", False, 0)
    launch("quantize_per_token", x, None, None, 4, "midrise", True, 128)
    launch("quantize_per_token", x, vector, None, 4, "full_range", True, 64)
    launch("layer_norm_quantize", x, x, bias, bias, bias, bias, None, 1e-5, 8)
    launch("kronecker", x, torch.eye(16).bfloat16(), torch.eye(24).bfloat16())
    launch("kronecker", x.float(), torch.eye(4), torch.eye(96))


def lowbit_calls():
    x, q, x_scale = torch.randn(40, 128), torch.ones(40, 128).char(), torch.ones(40, 1)
    residual, vector = torch.randn(40, 384).bfloat16(), torch.ones(384)

    def weight(bits, group_size, zero_point=True, codebook=None):
        packed = torch.zeros(6, 2, 2 * bits, 64, 4, dtype=torch.uint8)
        scale = torch.ones(384, 128 // group_size if group_size else 1)
        zero_point = scale if zero_point else None
        return packed, scale, zero_point, codebook, vector, 384, bits, group_size

    bf16 = "gelu", residual, 0.0, torch.bfloat16
    launch("lowbit_linear", q, x_scale, *weight(2, 0, False), 8, *bf16)
    launch("lowbit_linear", q, x_scale, *weight(8, 32), 8, *bf16)
    launch("lowbit_linear", q, x_scale, *weight(3, 128), 8, "none", None, -0.5, torch.float32)
    launch("lowbit_linear", x.bfloat16(), None, *weight(4, 64), 0, *bf16)
    launch("lowbit_linear", x, None, *weight(8, 0), 0, "none", None, 0.0, None)
    codebook = torch.ones(384, 16)
    launch(
        "lowbit_linear", x.half(), None, *weight(4, 0, False, codebook), 0, "none", None, 0.0, None
    )
    int4 = q, x_scale, *weight(4, 0), 8
    launch("lowbit_linear_quantize", *int4, "gelu", 8, 256)
    launch("lowbit_linear_layer_norm", *int4, residual, None, None, 1e-5, True)


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


def binary_calls(dtype):
    x = torch.randn(40, 130).to(dtype)
    for rails, tie in ((1, "strict"), (2, "geq")):
        launch("pack_bits", x, torch.randn(130), rails, tie)
        launch("unpack_bits", torch.zeros((40, 3) if rails == 1 else (40, 2, 3)).long(), 130)
    bits, two_rails = torch.zeros(40, 3).long(), torch.zeros(40, 2, 3).long()
    packed, scale = torch.zeros(2, 3, 64).long(), torch.randn(70)
    residual, codes = torch.randn(40, 70).to(dtype), torch.zeros(40, 130).to(torch.int8)
    for given, x_scale in ((bits, None), (two_rails, None), (codes, torch.ones(40, 1))):
        launch(
            "binary_linear", given, x_scale, packed, scale, scale, 70, 130, "gelu", residual, dtype
        )
    launch("binary_linear_bits", two_rails, packed, torch.zeros(3, 70).int(), 70, 130)
    launch(
        "binary_linear_layer_norm",
        bits, None, packed, scale, None, 130, residual, None, None, 1e-5, scale,
    )  # fmt: skip
    q, cu_seqlens = torch.zeros(80, 2).long(), torch.tensor([0, 17, 80]).int()
    thresholds = torch.zeros(3, 2, 64).int()
    for mode in ("bool", "elastic"):
        launch("binary_attention", q, q, q, cu_seqlens, mode, "strict", 0.1, 0.1, thresholds, 2)
    v = torch.randn(80, 2, 64).to(dtype)
    launch("binary_qk_attention", q, q, v, cu_seqlens, 0.1, torch.ones(2), None, None)
    codes = torch.zeros(80, 2, 64).to(torch.int8)
    launch("binary_qk_attention", q, q, codes, cu_seqlens, 0.1, None, torch.ones(80, 1), dtype)


def every_call():
    packing_calls()
    for dtype in (torch.bfloat16, torch.float32):
        norm_calls(dtype)
        activation_calls(dtype)
        embedding_calls(dtype)
        pooling_calls(dtype)
        gemm_calls(dtype)
        binary_calls(dtype)
    quantize_calls()
    lowbit_calls()
    attention_calls(torch.float16, 256)  # the widest heads: the most shared memory
    attention_calls(torch.float32, 256)
    attention_calls_with_every_option(torch.bfloat16, 64)


def compile_for(target: GPUTarget) -> None:
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        int8 = kernel.asm.get("ptx", "").count(".s32.s8.s8.s32")  # of mma.sync
        print(target.backend, target.arch, self.__name__, kernel.metadata.shared, int8, flush=True)

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
