"""What quantizing activations means.

Rounding is to the nearest whole number, halves to even. Every step is one fp32 operation in the
order written here, so q and scale of the "absmax" and "full_range" grids are the same to the bit on
every backend; "midrise" takes a mean over the row, whose order of summation is the backend's own.
"""

import torch

from taut.reference import norm
from taut.reference._check import FLOATS, check_choice, check_optional_tensor, check_tensor

GRIDS = ("absmax", "full_range", "midrise")
HADAMARD = 128
# Clipping of a standard normal with least squared error: Panferov et al., "QuEST", 2025.
MIDRISE_CLIP = {2: 1.49353, 3: 2.05107, 4: 2.51393, 8: 3.88494}
ACTIVATION_BITS = (2, 3, 4, 8)
SMALLEST = 1e-36  # a row of lesser magnitudes has smaller codes: 1 / absmax would not be finite


def _check_x(op, x):
    check_tensor(op, "x", x, (None, None), "(total_tokens, columns)", FLOATS)
    if x.shape[1] == 0:
        raise ValueError(f"{op}: x must have at least one column, got {tuple(x.shape)}")


def check_quantize_per_token(
    x, channel_scale=None, channel_shift=None, bits=8, grid="absmax", hadamard=False, group_size=0
):
    op = "quantize_per_token"
    _check_x(op, x)
    columns = (x.shape[1],)
    for name, value in (("channel_scale", channel_scale), ("channel_shift", channel_shift)):
        meaning = f"{columns}, one per column of x"
        check_optional_tensor(op, name, value, columns, meaning, (torch.float32,))
    check_choice(op, "bits", bits, ACTIVATION_BITS)
    check_choice(op, "grid", grid, GRIDS)
    if group_size < 0:
        raise ValueError(f"{op}: group_size must be 0 or more, got {group_size}")
    if hadamard and x.shape[1] % HADAMARD:
        raise ValueError(f"{op}: x must have a multiple of {HADAMARD} columns, got {x.shape[1]}")


def check_layer_norm_quantize(
    x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits=8
):
    op = "layer_norm_quantize"
    _check_x(op, x)
    shape, like = tuple(x.shape), (x.dtype,)
    check_optional_tensor(op, "residual", residual, shape, f"{shape} like x", like)
    for name, value in (("bias", bias), ("weight", weight), ("norm_bias", norm_bias)):
        check_optional_tensor(op, name, value, shape[1:], f"{shape[1:]}, one per column", like)
    for name, value in (("quant_weight", quant_weight), ("quant_bias", quant_bias)):
        check_optional_tensor(op, name, value, shape[1:], f"{shape[1:]}, one per column", like)
    check_choice(op, "bits", bits, ACTIVATION_BITS)


def check_kronecker(x, left, right):
    op = "kronecker"
    _check_x(op, x)
    for name, value in (("left", left), ("right", right)):
        check_tensor(op, name, value, (None, None), "(n, n)", (x.dtype,))
        if value.shape[0] != value.shape[1]:
            raise ValueError(f"{op}: {name} must be (n, n), got {tuple(value.shape)}")
    columns = left.shape[0] * right.shape[0]
    if x.shape[1] != columns:
        raise ValueError(
            f"{op}: x must have {columns} columns, rows of left times rows of right, "
            f"got {x.shape[1]}"
        )


def hadamard_transform(x: torch.Tensor) -> torch.Tensor:
    """x times the Hadamard matrix (Sylvester's order) of each block of 128 columns, over sqrt(128).

    Butterflies of stride 1, 2, 4 ... 64, then one multiplication.
    """
    rows, columns = x.shape
    stride = 1
    while stride < HADAMARD:
        pairs = x.view(rows, columns // (2 * stride), 2, stride)
        even, odd = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack((even + odd, even - odd), 2).view(rows, columns)
        stride *= 2
    return x * HADAMARD**-0.5


def quantize_rows(x: torch.Tensor, bits: int, grid: str = "absmax"):
    """fp32 (rows, columns) -> q int8 (rows, columns), scale fp32 (rows,).

    "absmax"      scale = absmax / top, q = round(x * (top / absmax)), top = 2^(bits-1) - 1
    "full_range"  scale = absmax / 2^(bits-1), q = round(x * (2^(bits-1) / absmax)), at most top
    "midrise"     scale = 2 c rms / (2^bits - 1) + 1e-8, q = floor(x / scale); x ~ (q + 1/2) scale
    """
    half = 2 ** (bits - 1)
    finite = x.isfinite().all(1)
    if grid == "midrise":
        rms = x.square().mean(1).sqrt()
        scale = rms * (2 * MIDRISE_CLIP[bits] / (2**bits - 1)) + 1e-8
        q = (x / scale[:, None]).floor()
    else:
        top = torch.tensor(float(half if grid == "full_range" else half - 1), device=x.device)
        absmax = x.abs().amax(1)
        scale = absmax / top
        inverse = top / absmax.clamp(min=SMALLEST)
        q = (x * inverse[:, None]).round()
    scale = torch.where(finite, scale, torch.nan)
    q = torch.where(finite[:, None], q, 0).clamp(-half, half - 1)
    return q.to(torch.int8), scale


def quantize_per_token(
    x, channel_scale=None, channel_shift=None, bits=8, grid="absmax", hadamard=False, group_size=0
):
    x = x.float()
    if channel_shift is not None:
        x = x - channel_shift
    if channel_scale is not None:
        x = x * channel_scale
    if hadamard:
        x = hadamard_transform(x)
    rows, columns = x.shape
    groups = -(-columns // group_size) if group_size else 1
    if groups <= 1:
        q, scale = quantize_rows(x, bits, grid)
        return q, scale[:, None]
    parts = [quantize_rows(part, bits, grid) for part in x.split(group_size, 1)]
    return torch.cat([q for q, _ in parts], 1), torch.stack([s for _, s in parts], 1)


def layer_norm_quantize(
    x, residual, bias, weight, norm_bias, quant_weight, quant_bias, eps, bits=8
):
    def wide(t):
        return None if t is None else t.float()

    args = (x.float(), wide(residual), wide(bias))
    out = norm.layer_norm(*args, wide(weight), wide(norm_bias), eps, False)[0]
    migrated = out
    if quant_weight is not None or quant_bias is not None:
        migrated = norm.layer_norm(*args, wide(quant_weight), wide(quant_bias), eps, False)[0]
    q, scale = quantize_rows(migrated, bits)
    return out.to(x.dtype), q, scale[:, None]


def kronecker(x, left, right):
    wide = torch.promote_types(x.dtype, torch.float32)
    blocks = x.to(wide).view(-1, left.shape[0], right.shape[0])
    out = left.to(wide).T @ blocks @ right.to(wide)
    return out.reshape(x.shape).to(x.dtype)
