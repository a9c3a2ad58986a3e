"""Low-bit weight formats: what is stored, to the bit, and what it stands for.

A weight (out_features, in_features) is stored as unsigned codes of `bits` bits and, per output
channel or per group of `group_size` neighbouring input features of a channel,

    integers    value = scale * (code - zero_point)
    codebooks   value = scale * codebook[code]

Symmetric b-bit integers have zero_point 2^(b-1), ternary weights (2 bits, codes 0, 1, 2) have 1,
midrise grids such as QuEST's have 2^(b-1) - 1/2.

Logical packing, which is what a state dict holds: a row's codes are one string of bits. Code k takes
bits [bits * k, bits * (k + 1)) of it, its lowest bit first, and bit i of the string is bit i % 8 of
byte i // 8. Rows start at whole bytes; bits behind the last code are 0. So 4-bit codes lie two to a
byte, even k in the low nibble; 3-bit codes straddle bytes.
"""

from dataclasses import dataclass, field

import torch

from taut.reference._check import readable

BITS = (2, 3, 4, 8)
PANEL = 64  # output channels per panel of a packed weight, dense or low-bit
WORD = 64  # signs per word of packed bits
BLOCK = 64  # input features per block of a packed low-bit weight
GROUP_SIZES = (0, 32, 64, 128, 256)  # 0: one group, the whole row


def words_of(columns):
    """Words of packed bits that hold `columns` signs."""
    return (columns + WORD - 1) // WORD


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes to the logical packing (see the module).

    Args:
        codes: (out_features, in_features), uint8, each below 2^bits.
        bits: 2, 3, 4 or 8.

    Returns:
        (out_features, ceil(in_features * bits / 8)), uint8.
    """
    if bits == 8:
        return codes.clone()
    rows, columns = codes.shape
    place = torch.arange(8, dtype=torch.uint8, device=codes.device)
    planes = (codes[:, :, None] >> place[:bits]) & 1
    string = torch.nn.functional.pad(planes.view(rows, columns * bits), (0, -columns * bits % 8))
    return (string.view(rows, -1, 8) * (1 << place)).sum(2, dtype=torch.uint8)


def unpack_codes(packed: torch.Tensor, bits: int, in_features: int) -> torch.Tensor:
    """The exact inverse of `pack_codes`.

    Args:
        packed: (out_features, ceil(in_features * bits / 8)), uint8.
        bits: 2, 3, 4 or 8.
        in_features: codes per row.

    Returns:
        codes (out_features, in_features), uint8.
    """
    if bits == 8:
        return packed.clone()
    rows = packed.shape[0]
    place = torch.arange(8, dtype=torch.uint8, device=packed.device)
    string = (packed[:, :, None] >> place) & 1
    planes = string.view(rows, -1)[:, : in_features * bits].reshape(rows, in_features, bits)
    return (planes * (1 << place[:bits])).sum(2, dtype=torch.uint8)


@dataclass(eq=False)
class LowbitWeight:
    """A quantized weight of a linear layer.

    Args:
        codes: (out_features, ceil(in_features * bits / 8)), uint8, in the logical packing.
        scale: (out_features, groups), fp32; groups = ceil(in_features / group_size), 1 without.
        zero_point: (out_features, groups), fp32, whole or half numbers from 0 to 2^bits, in units
            of codes; None: 2^(bits - 1).
        codebook: (2^bits,) or (out_features, 2^bits), fp32: the value of each code before scaling;
            None for integers.
        bits: 2, 3, 4 or 8.
        in_features: columns of the weight.
        group_size: input features that share a scale: 32, 64, 128, 256, or 0 for all.

    Raises:
        ValueError: a zero point (on the CPU, where looking does not wait) is not as above.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    codebook: torch.Tensor | None
    bits: int
    in_features: int
    group_size: int = 0
    _packed: torch.Tensor | None = field(default=None, repr=False)

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def packed(self) -> torch.Tensor:
        """The codes in the order the kernels read them (`taut.pack_lowbit`), made at first use."""
        if self._packed is None:
            from taut.ops.lowbit_gemm import pack_lowbit

            self._packed = pack_lowbit(self.codes, self.bits, self.in_features)
        return self._packed

    def __post_init__(self) -> None:
        if self.zero_point is None or not readable(self.zero_point):
            return
        point = self.zero_point
        wrong = point[
            ~((point >= 0) & (point <= 2**self.bits) & (2 * point == (2 * point).round()))
        ]
        if wrong.numel():
            raise ValueError(
                f"LowbitWeight: zero_point must be whole or half numbers from 0 to {2**self.bits}, "
                f"got {wrong[0].item()}"
            )

    def dequantize(self) -> torch.Tensor:
        """The values that the codes stand for, fp32 (out_features, in_features)."""
        codes = unpack_codes(self.codes, self.bits, self.in_features)
        return dequantize_codes(
            codes, self.scale, self.zero_point, self.codebook, self.bits, self.group_size
        )


def expand_groups(per_group: torch.Tensor, group_size: int, in_features: int) -> torch.Tensor:
    """(rows, groups) -> (rows, in_features): each group's value at all of its columns."""
    if group_size == 0:
        return per_group.expand(-1, in_features)
    return per_group.repeat_interleave(group_size, 1)[:, :in_features]


def dequantize_codes(codes, scale, zero_point, codebook, bits, group_size):
    """Unpacked codes (out_features, in_features) -> values, fp32; arguments as in LowbitWeight."""
    if codebook is not None:
        table = codebook.expand(codes.shape[0], -1)
        values = table.gather(1, codes.long())
    elif zero_point is not None:
        values = codes.float() - expand_groups(zero_point, group_size, codes.shape[1])
    else:
        values = codes.float() - 2 ** (bits - 1)
    return values * expand_groups(scale, group_size, codes.shape[1])
