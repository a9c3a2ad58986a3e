"""Float weights to low-bit ones. Rounding is to the nearest whole number, halves to even.

Every function takes a weight (out_features, in_features), computes in fp32, and gives a
`LowbitWeight`; `taut.folding` prepares a weight for inputs that are transformed.
"""

from collections.abc import Sequence

import torch

from taut.folding import rotate_hadamard
from taut.formats import GROUP_SIZES, LowbitWeight, expand_groups, pack_codes
from taut.reference._check import check_choice, check_tensor
from taut.reference.quantize import quantize_rows

TERNARY_MEASURES = ("mean", "median", "row_mean")
SEARCHES = ("absmax", "mse")
# Dettmers et al., "QLoRA", 2023, appendix E: quantiles of a normal distribution, with an exact 0.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_CLIP_RATIOS = torch.linspace(0.4, 1.0, 25)  # of absmax, tried by search="mse"
_MEANS_ROUNDS = 20  # of k-means: assignments hardly change after


def _check(op: str, weight: torch.Tensor, group_size: int = 0) -> torch.Tensor:
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    check_tensor(op, "weight", weight, (None, None), "(out_features, in_features)", floats)
    if weight.numel() == 0 or not weight.isfinite().all():
        what = tuple(weight.shape) if weight.numel() == 0 else "values that are not"
        raise ValueError(f"{op}: weight must be finite and not empty, got {what}")
    check_choice(op, "group_size", group_size, GROUP_SIZES)
    return weight.detach().float()


def _grouped(weight: torch.Tensor, group_size: int, fill: float = torch.nan) -> torch.Tensor:
    """(out_features, groups, group_size), the last group filled up."""
    size = group_size or weight.shape[1]
    padding = -weight.shape[1] % size
    return torch.nn.functional.pad(weight, (0, padding), value=fill).unflatten(1, (-1, size))


def _flat(grouped: torch.Tensor, in_features: int) -> torch.Tensor:
    return grouped.flatten(1)[:, :in_features]


def _lowbit(codes, scale, zero_point, codebook, bits, group_size) -> LowbitWeight:
    packed = pack_codes(codes.to(torch.uint8).contiguous(), bits)
    return LowbitWeight(
        packed, scale.contiguous(), zero_point, codebook, bits, codes.shape[1], group_size
    )


def integer_weight(codes, scale, zero_point, bits, group_size) -> LowbitWeight:
    """A weight of codes (out_features, in_features) of any dtype; the rest as in LowbitWeight."""
    return _lowbit(codes, scale, zero_point, None, bits, group_size)


def clipped_scale(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale (rows,) of least squared error for each row of values, never 0."""
    half = 2 ** (bits - 1)
    scale = values.abs().amax(1, keepdim=True) / (half - 1)
    if bits < 8:  # there is nothing to gain from clipping 8 bits
        scale = _least_error_scale(values[:, None], scale, half)
    return _nonzero(scale[:, 0])


def integer(
    weight: torch.Tensor,
    bits: int,
    group_size: int = 0,
    *,
    zero_point: bool = False,
    search: str = "absmax",
    rows_per_scale: int = 1,
) -> LowbitWeight:
    """Uniform b-bit integers.

        symmetric   scale = max|w| / (2^(b-1) - 1),    q = clamp(round(w / scale))
        otherwise   scale = (max - min) / (2^b - 1), zero_point = round(-min / scale), with
                    min <= 0 <= max, code = clamp(round(w / scale) + zero_point)

    Args:
        weight: (out_features, in_features), floating point.
        bits: 2, 3, 4 or 8.
        group_size: neighbouring input features that share a scale; 0: the whole row.
        zero_point: asymmetric grids.
        search: "absmax", or "mse": of 25 clipped scales, each refined by least squares, the one
            with the least squared error of its group (symmetric only).
        rows_per_scale: neighbouring output features that share a scale, as Q-BERT's groups do.

    Returns:
        The quantized weight.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Shen et al., "Q-BERT", 2020, section 3.3 (groups of output neurons).
    """
    op = "integer"
    wide = _check(op, weight, group_size)
    check_choice(op, "bits", bits, (2, 3, 4, 8))
    check_choice(op, "search", search, SEARCHES)
    if weight.shape[0] % rows_per_scale:
        raise ValueError(
            f"{op}: rows_per_scale must divide the {weight.shape[0]} rows, got {rows_per_scale}"
        )
    if zero_point and search != "absmax":
        raise ValueError(f"{op}: search must be absmax with a zero point, got {search!r}")
    size, half = group_size or weight.shape[1], 2 ** (bits - 1)
    values = _grouped(wide, size).unflatten(0, (-1, rows_per_scale)).transpose(1, 2).flatten(2)
    if zero_point:
        low = values.nan_to_num(0).amin(2).clamp(max=0)
        high = values.nan_to_num(0).amax(2).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zeros = (-low / _nonzero(scale)).round()
    else:
        scale = values.nan_to_num(0).abs().amax(2) / (half - 1)
        zeros = torch.full_like(scale, float(half))
        if search == "mse":
            scale = _least_error_scale(values.nan_to_num(0), scale, half)
    scale, zeros = (t.repeat_interleave(rows_per_scale, 0) for t in (scale, zeros))
    columns = weight.shape[1]
    codes = (wide / expand_groups(_nonzero(scale), size, columns)).round()
    codes = (codes + expand_groups(zeros, size, columns)).clamp(0, 2 * half - 1)
    return _lowbit(codes, scale, zeros if zero_point else None, None, bits, group_size)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _least_error_scale(values: torch.Tensor, scale: torch.Tensor, half: int) -> torch.Tensor:
    best, least = scale, torch.full_like(scale, torch.inf)
    for ratio in _CLIP_RATIOS.tolist():
        tried = _nonzero(scale * ratio)[..., None]
        q = (values / tried).round().clamp(-half, half - 1)
        tried = (values * q).sum(2, keepdim=True) / q.square().sum(2, keepdim=True).clamp(min=1)
        q = (values / _nonzero(tried)).round().clamp(-half, half - 1)
        error = (q * tried - values).square().sum(2)
        best = torch.where(error < least, tried[..., 0], best)
        least = torch.minimum(error, least)
    return best


def ternary(weight: torch.Tensor, measure: str = "mean") -> LowbitWeight:
    """Weights of -1, 0 and 1 times a scale.

        "mean"      scale = max(mean|W|, 1e-5) of the whole weight, q = clamp(round(w (1 / scale)))
        "median"    the same with the median
        "row_mean"  scale = 4/3 mean|w| of each row, q = round(clamp(w / scale))

    Args:
        weight: (out_features, in_features), floating point.
        measure: see above.

    Returns:
        The quantized weight, of 2 bits, codes q + 1; scale has one column.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Ma et al., "BitNet b1.58", 2024 (mean); Nielsen and Schneider-Kamp, "BitNet b1.58
    Reloaded", 2024 (median); Liu et al., "Binary and Ternary Natural Language Generation", 2023.
    """
    wide = _check("ternary", weight)
    check_choice("ternary", "measure", measure, TERNARY_MEASURES)
    q, scale = ternary_codes(wide, measure)
    scale = scale.expand(weight.shape[0], 1)
    return _lowbit(q + 1, scale, torch.ones_like(scale), None, 2, 0)


def ternary_codes(wide: torch.Tensor, measure: str) -> tuple[torch.Tensor, torch.Tensor]:
    """q in {-1, 0, 1} like `wide`, fp32, and scale (1, 1) or (rows, 1), as in `ternary`."""
    magnitude = wide.abs()
    if measure == "row_mean":
        scale = magnitude.mean(1, keepdim=True) * (4 / 3)
        return (wide / _nonzero(scale)).clamp(-1, 1).round(), scale
    scale = magnitude.mean() if measure == "mean" else magnitude.median()
    inverse = 1 / scale.clamp(min=1e-5)
    return (wide * inverse).round().clamp(-1, 1), (1 / inverse).view(1, 1)


def midrise(weight: torch.Tensor, bits: int) -> LowbitWeight:
    """QuEST's grid: each row rotated by Hadamard blocks, then (q + 1/2) scale, as in
    `taut.quantize_per_token(grid="midrise", hadamard=True)`.

    Args:
        weight: (out_features, in_features), floating point; in_features a multiple of 128.
        bits: 2, 3, 4 or 8.

    Returns:
        The quantized weight, for inputs that are rotated likewise.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Panferov et al., "QuEST", 2025.
    """
    q, scale = quantize_rows(rotate_hadamard(_check("midrise", weight)), bits, "midrise")
    half = 2 ** (bits - 1)
    zero_point = torch.full((q.shape[0], 1), half - 0.5)
    return _lowbit(q.int() + half, scale[:, None], zero_point, None, bits, 0)


def codebook(
    weight: torch.Tensor, table: Sequence[float] | torch.Tensor = NF4, group_size: int = 0
) -> LowbitWeight:
    """The nearest value of a table (the lower one of two equally near), scaled by max|w|.

    Args:
        weight: (out_features, in_features), floating point.
        table: 4, 8, 16 or 256 ascending values, such as `NF4` or `fp4_table()`.
        group_size: neighbouring input features that share a scale; 0: the whole row.

    Returns:
        The quantized weight; scale = max|w| / max|table| of each group.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Dettmers et al., "QLoRA", 2023 (NF4); Liu et al., "LLM-FP4", 2023.
    """
    wide = _check("codebook", weight, group_size)
    table = torch.as_tensor(table, dtype=torch.float32)
    bits = {4: 2, 8: 3, 16: 4, 256: 8}.get(table.numel())
    if bits is None or table.dim() != 1 or (table.diff() < 0).any():
        got = tuple(table.shape)
        raise ValueError(f"codebook: table must be 4, 8, 16 or 256 ascending values, got {got}")
    scale = _grouped(wide, group_size, 0).abs().amax(2) / table.abs().max()
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(
        wide / expand_groups(_nonzero(scale), group_size, wide.shape[1]), middles
    )
    return _lowbit(codes, scale, None, table, bits, group_size)


def fp4_table(exponent_bits: int = 2, mantissa_bits: int = 1, bias: float = 1.0) -> torch.Tensor:
    """The 16 values of a 4-bit float, ascending, fp32; -0 and 0 are both in it.

    With M mantissa bits, field e and mantissa m, value = 2^(e - bias) (1 + m / 2^M) for e >= 1 and
    2^(1 - bias) m / 2^M for e = 0. The bias may be any real number.

    Args:
        exponent_bits, mantissa_bits: 3 together; (2, 1) is E2M1.
        bias: of the exponent.

    Returns:
        (16,).

    Raises:
        ValueError: the bits are not 3 together.

    Source: Liu et al., "LLM-FP4", 2023, section 3.
    """
    if exponent_bits + mantissa_bits != 3 or min(exponent_bits, mantissa_bits) < 0:
        got = (exponent_bits, mantissa_bits)
        raise ValueError(
            f"fp4_table: exponent_bits and mantissa_bits must be 3 together, got {got}"
        )
    code = torch.arange(8)
    exponent, mantissa = code >> mantissa_bits, code % 2**mantissa_bits / 2**mantissa_bits
    normal = exponent > 0
    positive = torch.exp2(exponent.clamp(min=1) - bias) * (normal + mantissa)
    return torch.cat((-positive.flip(0), positive)).float()


def power_table(bits: int, exponent: float) -> torch.Tensor:
    """NUPES' levels sign(q) |q|^(1 / exponent), ascending and scaled to 1, fp32 (2^bits,).

    q runs over [-2^(bits-1), 2^(bits-1) - 1].

    Args:
        bits: 2, 3, 4 or 8.
        exponent: in (0, 1]; smaller ones put more levels near 0.

    Returns:
        (2^bits,).

    Raises:
        ValueError: exponent is outside (0, 1].

    Source: Yvinec et al., "NUPES", 2023.
    """
    if not 0 < exponent <= 1:
        raise ValueError(f"power_table: exponent must be in (0, 1], got {exponent}")
    q = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float64)
    return (q.sign() * (q.abs() / 2 ** (bits - 1)).pow(1 / exponent)).float()


def learned_codebook(
    weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None
) -> LowbitWeight:
    """A table of its own for each output channel, by weighted k-means from its quantiles.

    Args:
        weight: (out_features, in_features), floating point.
        bits: 2, 3 or 4.
        importance: (out_features, in_features) or (in_features,), not negative: each weight's
            share in the squared error, such as the diagonal of the Fisher information.

    Returns:
        The quantized weight; codebook (out_features, 2^bits), ascending; scale 1.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Kim et al., "SqueezeLLM", 2024, section 4.1.
    """
    wide = _check("learned_codebook", weight)
    check_choice("learned_codebook", "bits", bits, (2, 3, 4))
    rows, levels = wide.shape[0], 2**bits
    shares = [torch.ones_like(wide)]
    if importance is not None:
        shares.append(importance.float().expand_as(wide))
    quantiles = (torch.arange(levels) + 0.5) / levels
    table = torch.quantile(wide, quantiles, dim=1).T.contiguous()
    # Rounds without importance first: those with it only make its error smaller, so the table is
    # never worse, where the importance lies, than the one of even shares.
    for share in shares:
        for _ in range(_MEANS_ROUNDS):
            codes = _nearest(wide, table)
            mass = table.new_zeros(rows, levels).scatter_add_(1, codes, share)
            total = table.new_zeros(rows, levels).scatter_add_(1, codes, share * wide)
            table = torch.where(mass > 0, total / mass, table).sort(1).values
    scale = torch.ones(rows, 1)
    return _lowbit(_nearest(wide, table), scale, None, table, bits, 0)


def _nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry of each row's ascending table, int64."""
    middles = (table[:, 1:] + table[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), values.contiguous())


def choose_group_size(weight: torch.Tensor, least: int = 64, tolerance: float = 2.0) -> int:
    """FineQuant's heuristic: the smallest group size that still pays.

    Starting from the whole row, the group is made smaller while ranges, the largest magnitudes of
    the groups, become more than `tolerance` times smaller in the mean.

    Args:
        weight: (out_features, in_features), floating point.
        least: the smallest group size to choose.
        tolerance: how many times smaller the ranges must become.

    Returns:
        0 (the whole row), 256, 128, 64 or 32, not below `least`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Kim et al., "FineQuant", 2023, section 3 (its exact thresholds are not public).
    """
    wide = _check("choose_group_size", weight)
    sizes = [size for size in (256, 128, 64, 32) if least <= size < wide.shape[1]]
    chosen, coarse = 0, wide.abs().amax(1, keepdim=True)
    for size in sizes:
        fine = _grouped(wide, size, 0).abs().amax(2)
        parents = expand_groups(coarse, chosen // size, fine.shape[1])
        if (parents / fine.clamp(min=1e-30)).mean() <= tolerance:
            break
        chosen, coarse = size, fine
    return chosen
