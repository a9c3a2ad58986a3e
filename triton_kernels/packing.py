"""Row indices, positions and offsets of packed tokens, and moving rows by index."""

import torch
import triton
import triton.language as tl

from taut.triton_kernels._launch import launcher, row_strided

# Columns of the mask one program looks at in a step: a warp-wide scan, most texts in one step.
_MASK_BLOCK = 512

# Rows are moved as 8 x 512 items of up to 8 bytes: adjacent 16-byte accesses for every thread.
_MOVE_TILE = {"ROWS": 8, "BLOCK": 512, "num_warps": 4}
_ITEM_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _pack_kernel(kept, lengths, cu_seqlens, indices, positions, columns, BLOCK: tl.constexpr):
    """One program per sequence, given either kept (batch, columns) bytes or its length."""
    sequence = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_seqlens + sequence)
    end = columns
    if kept is None:
        end = tl.load(lengths + sequence).to(tl.int32)
    count = tl.zeros((), tl.int32)
    for start in range(0, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < end
        if kept is not None:
            mask &= tl.load(kept + sequence * columns + column, mask, 0) != 0
        rank = tl.cumsum(mask.to(tl.int32), 0) - 1 + count
        tl.store(indices + begin + rank, (sequence * columns + column).to(tl.int32), mask)
        tl.store(positions + begin + rank, rank, mask)
        count += tl.sum(mask.to(tl.int32), 0)


@triton.jit(do_not_specialize=["rows", "limit"])
def _move_rows_kernel(
    source, indices, destination, rows, columns, limit, source_stride,
    GATHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row i of the packed side is row indices[i] of the other; indices outside [0, limit) are
    skipped when scattering and read as zeros when gathering."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    other = tl.load(indices + row, row < rows, -1).to(tl.int64)
    inside = ((other >= 0) & (other < limit))[:, None] & (column < columns)[None, :]
    packed = (row < rows)[:, None] & (column < columns)[None, :]
    if GATHER:
        values = tl.load(source + other[:, None] * source_stride + column[None, :], inside, 0)
        tl.store(destination + row[:, None] * columns + column[None, :], values, packed)
    else:
        values = tl.load(source + row[:, None] * source_stride + column[None, :], packed, 0)
        tl.store(destination + other[:, None] * columns + column[None, :], values, inside)


def _pack(lengths, kept, columns):
    cu_seqlens = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    cu_seqlens[1:] = lengths.cumsum(0)
    tokens = int(cu_seqlens[-1])  # the one wait for the device: it is the size of the outputs
    indices, positions = (cu_seqlens.new_empty((tokens,)) for _ in range(2))
    if tokens:
        _pack_kernel[(lengths.shape[0],)](
            kept, lengths, cu_seqlens, indices, positions, columns, BLOCK=_MASK_BLOCK
        )
    return cu_seqlens, indices, positions


@launcher
def pack_mask(attention_mask):
    kept = (attention_mask != 0).contiguous()
    return _pack(kept.sum(1), kept.view(torch.uint8), kept.shape[1])


@launcher
def pack_lengths(lengths, padded_length):
    return _pack(lengths.contiguous(), None, padded_length)


def _move_rows(x, indices, out, limit, gather):
    source = row_strided(x.flatten(1) if x.dim() > 1 else x[:, None])
    if out.numel():
        item = _ITEM_TYPES[x.element_size()]
        columns = source.shape[1]
        grid = (
            triton.cdiv(indices.shape[0], _MOVE_TILE["ROWS"]),
            triton.cdiv(columns, _MOVE_TILE["BLOCK"]),
        )
        _move_rows_kernel[grid](
            source.view(item), indices.contiguous(), out.view(item), indices.shape[0], columns,
            limit, source.stride(0), GATHER=gather, **_MOVE_TILE,
        )  # fmt: skip
    return out


@launcher
def gather_rows(x, indices):
    out = x.new_empty((indices.shape[0], *x.shape[1:]))
    return _move_rows(x, indices, out, x.shape[0], True)


@launcher
def scatter_rows(x, indices, rows):
    return _move_rows(x, indices, x.new_zeros((rows, *x.shape[1:])), rows, False)
