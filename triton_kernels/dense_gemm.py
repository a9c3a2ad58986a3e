"""Dense linear layers over the packed weights of ops/dense_gemm.py, with their epilogues fused.

fp32 and bf16, as the packed layout knows no fp16. Channel n of a weight is column n % 64 of panel
n // 64; within a panel fp32 holds (in_features, 64) and bf16 (ceil(in_features / 2), 64, 2): the
two members of a pair of input features are neighbours.
"""

import torch
import triton
import triton.language as tl

from taut.registry import PANEL
from taut.triton_kernels._launch import dot_type, launcher, row_strided, vector
from taut.triton_kernels.activation import activate
from taut.triton_kernels.norm import load_row_vector, normalize_rows

# BLOCK_N divides a panel, so that a tile's channels are adjacent. fp32 has no tensor-core path of
# full precision: smaller tiles keep its fused multiply-adds in registers.
_TILES = {
    torch.bfloat16: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    torch.float32: {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
}
