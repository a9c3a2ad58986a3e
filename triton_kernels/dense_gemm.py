"""Dense linear layers over the packed weights of ops/dense_gemm.py.

Channel n of a weight is column n % 64 of panel n // 64; within a panel fp32 and fp16 hold
(in_features, 64) and bf16 (ceil(in_features / 2), 64, 2): the two members of a pair of input
features are neighbours.
"""

import torch
import triton
import triton.language as tl

from taut.formats import PANEL
from taut.triton_kernels._launch import dot_type, launcher, row_strided, vector
from taut.triton_kernels.activation import activate
from taut.triton_kernels.norm import load_row_vector, normalize

# One panel of channels by 64 rows: at encoder widths a few hundred tokens already fill a GPU. fp32
# has no tensor cores at full precision: fewer rows keep its operands in registers. The table does
# not look at the number of rows, so that a row's sums do not depend on the batch.
_TILES = {
    torch.bfloat16: {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    torch.float16: {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    torch.float32: {"BLOCK_M": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
}


@triton.jit
def _load_panel(panel, first, in_features, BLOCK_K: tl.constexpr, PANEL: tl.constexpr):
    """Input features first to first + BLOCK_K of a panel, (BLOCK_K, PANEL)."""
    if panel.dtype.element_ty != tl.bfloat16:
        feature = first + tl.arange(0, BLOCK_K)
        offset = feature[:, None] * PANEL + tl.arange(0, PANEL)[None, :]
        tile = tl.load(panel + offset, (feature < in_features)[:, None], 0)
    else:
        pair = first // 2 + tl.arange(0, BLOCK_K // 2)
        offset = pair[:, None] * (2 * PANEL) + tl.arange(0, 2 * PANEL)[None, :]
        tile = tl.load(panel + offset, (2 * pair < in_features)[:, None], 0)
        by_channel = tl.reshape(tile, (BLOCK_K // 2, PANEL, 2))
        tile = tl.reshape(tl.permute(by_channel, (0, 2, 1)), (BLOCK_K, PANEL))
    return tile


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x, packed, bias, out, rows, in_features, out_features, x_stride, panel_stride,
    ACTIVATION: tl.constexpr, DOT: tl.constexpr, PANEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    panels = (out_features + PANEL - 1) // PANEL
    # Neighbouring programs share rows of x; the weights stay in the cache that all share.
    panel = tl.program_id(0) % panels
    row = (tl.program_id(0) // panels).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    weight = packed + panel.to(tl.int64) * panel_stride
    total = tl.zeros((BLOCK_M, PANEL), tl.float32)
    for first in range(0, in_features, BLOCK_K):
        feature = first + tl.arange(0, BLOCK_K)
        mask = (row < rows)[:, None] & (feature < in_features)[None, :]
        left = tl.load(x + row[:, None] * x_stride + feature[None, :], mask, 0)
        right = _load_panel(weight, first, in_features, BLOCK_K, PANEL)
        total += tl.dot(left.to(DOT), right.to(DOT), input_precision="ieee")
    channel = panel * PANEL + tl.arange(0, PANEL)
    total = activate(total + load_row_vector(bias, channel, out_features, 0), ACTIVATION)
    mask = (row < rows)[:, None] & (channel < out_features)[None, :]
    offset = row[:, None] * out_features + channel[None, :]
    tl.store(out + offset, total.to(out.dtype.element_ty), mask)


def _linear(x, packed, bias, out_features, activation, dtype):
    x, packed = row_strided(x), packed.contiguous()
    rows, in_features = x.shape
    out = x.new_empty((rows, out_features), dtype=dtype)
    if rows:
        tile = _TILES[x.dtype]
        _linear_kernel[(triton.cdiv(rows, tile["BLOCK_M"]) * packed.shape[0],)](
            x, packed, vector(bias), out, rows, in_features, out_features,
            x.stride(0), packed.stride(0),
            ACTIVATION=activation, DOT=dot_type(x.dtype), PANEL=PANEL, **tile,
        )  # fmt: skip
    return out


@launcher
def packed_linear(x, packed, bias, out_features, activation):
    return _linear(x, packed, bias, out_features, activation, x.dtype)


@launcher
def packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    total = _linear(x, packed, None, residual.shape[1], "none", torch.float32)
    return normalize(total, residual, bias, weight, norm_bias, eps, False, True, x.dtype)[0]
