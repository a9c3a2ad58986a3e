"""What a quantized linear layer may be, by name.

    w<b>a<a>            symmetric integers of b = 8, 4, 3 or 2 bits; activations of 8 or 4 bits per
                        token, or, with 16, as they are
    w<b>a<a>z           the same with zero points
    ternary             BitNet b1.58: -1, 0, 1 times mean|W|, activations of 8 bits per token
    ternary-median      BitNet b1.58 Reloaded: times the median, activations in [-128, 127]
    ternary-row         4/3 mean|w| of each row (Binary and Ternary Natural Language Generation)
    quest<b>            QuEST: midrise grids behind a Hadamard rotation, b = 8, 4, 3 or 2 bits in
                        weights and activations
    nf4, fp4            16 levels (NF4 or E2M1), activations as they are
    learned<b>          SqueezeLLM: a table of 2^b levels per channel, b = 4 or 3
    power<b>            NUPES: levels sign(q) |q|^2, b = 4 or 3
    float               not quantized
    auto                what is fastest and still close: see AUTO

A suffix -g32, -g64, -g128 or -g256 gives groups of that many input features their own scale, -g0
whole rows; nf4 and fp4 have groups of 64 without it.
"""

import re
from dataclasses import dataclass, replace

import torch

from taut import quantizers
from taut._native import libraries
from taut.formats import GROUP_SIZES, LowbitWeight

_PATTERN = re.compile(r"w(8|4|3|2)a(16|8|4)(z?)")
_NUMBERED = {
    "quest": ("midrise", (8, 4, 3, 2)),
    "learned": ("learned", (4, 3)),
    "power": ("power", (4, 3)),
}
_MEASURES = {"ternary": "mean", "ternary-median": "median", "ternary-row": "row_mean"}
POWER_EXPONENT = 0.5
# Fastest scheme with a cosine to fp32 of 0.999 and more, never slower than bf16. Chosen by machine
# when quantizing, never by the number of rows: a row's bits must not depend on its batch. Measured for
# avx512_bf16 and avx2 (1 to 512 rows of MiniLM and BERT-base layers); the others are predictions.
AUTO = {
    "amx": "w8a8",
    "avx512_bf16": "w8a8",
    "avx512": "w8a8",
    "avx2": "w8a8",
    "cuda": "w8a8",
}


def auto_scheme(device: str) -> str:
    """The scheme that "auto" stands for here: "float" where none is known to be faster than bf16.

    Args:
        device: type of the device, "cpu" or "cuda".
    """
    key = device
    if device == "cpu":
        key = libraries.module.active_isa() if libraries.module is not None else "reference"
    return AUTO.get(key, "float")


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is quantized.

    Args:
        kind: of the weight: "integer", "ternary", "midrise", "nf4", "fp4", "learned", "power" or
            "float".
        bits: of a weight's code.
        group_size: input features that share a scale; 0: the whole row.
        activation_bits: 8, 4, 3, 2, or 0: as they are.
        grid: of the activations, as in `taut.quantize_per_token`.
        hadamard: weight and activations are rotated.
        zero_point: integers are asymmetric.
        measure: of ternary scales.
    """

    kind: str
    bits: int = 8
    group_size: int = 0
    activation_bits: int = 8
    grid: str = "absmax"
    hadamard: bool = False
    zero_point: bool = False
    measure: str = "mean"


def parse_scheme(name: str) -> Scheme:
    """The scheme of a name; see the module.

    Args:
        name: such as "w8a8" or "nf4-g128".

    Returns:
        The scheme.

    Raises:
        TypeError, ValueError: name is no str, or there is no such scheme.
    """
    if not isinstance(name, str):
        raise TypeError(f"scheme must be a str, got {type(name).__name__}")
    base, has_group, group = name.partition("-g")
    scheme = _base_scheme(base)
    if scheme is None or (has_group and (not group.isdigit() or int(group) not in GROUP_SIZES)):
        raise ValueError(
            "scheme must be w{8,4,3,2}a{16,8,4}[z], ternary[-median|-row], quest{8,4,3,2}, nf4, "
            "fp4, learned{4,3}, power{4,3} or float, perhaps with -g{0,32,64,128,256}, "
            f"got {name!r}"
        )
    grouped = scheme.kind in ("integer", "nf4", "fp4", "power")
    if has_group and not grouped:
        raise ValueError(f"scheme must be one with groups to take -g{group}, got {name!r}")
    return replace(scheme, group_size=int(group)) if has_group else scheme


def _base_scheme(base: str) -> Scheme | None:
    if match := _PATTERN.fullmatch(base):
        bits, activation, zero_point = match.groups()
        return Scheme(
            "integer", int(bits), activation_bits=int(activation) % 16, zero_point=bool(zero_point)
        )
    if base in _MEASURES:
        grid = "full_range" if base == "ternary-median" else "absmax"
        return Scheme("ternary", 2, grid=grid, measure=_MEASURES[base])
    if base in ("nf4", "fp4"):
        return Scheme(base, 4, 64, 0)
    if base == "float":
        return Scheme("float", 32, activation_bits=0)
    family, bits = base[:-1], base[-1:]
    kind, accepted = _NUMBERED.get(family, (None, ()))
    if not bits.isdigit() or int(bits) not in accepted:
        return None
    if kind == "midrise":
        return Scheme(kind, int(bits), activation_bits=int(bits), grid="midrise", hadamard=True)
    return Scheme(kind, int(bits), activation_bits=0)


def quantize_weight(
    weight: torch.Tensor, scheme: Scheme, *, search: str = "absmax"
) -> LowbitWeight:
    """A float weight to the low-bit weight of a scheme.

    Args:
        weight: (out_features, in_features); what a rotated input sees is made here.
        scheme: any but "float".
        search: of symmetric integers, as in `taut.quantizers.integer`.

    Returns:
        The quantized weight.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    kind, bits, size = scheme.kind, scheme.bits, scheme.group_size
    if kind == "integer":
        search = "absmax" if scheme.zero_point else search
        return quantizers.integer(weight, bits, size, zero_point=scheme.zero_point, search=search)
    if kind == "ternary":
        return quantizers.ternary(weight, scheme.measure)
    if kind == "midrise":
        return quantizers.midrise(weight, bits)
    if kind == "learned":
        return quantizers.learned_codebook(weight, bits)
    table = {
        "nf4": lambda: quantizers.NF4,
        "fp4": quantizers.fp4_table,
        "power": lambda: quantizers.power_table(bits, POWER_EXPONENT),
    }[kind]()
    return quantizers.codebook(weight, table, size)
