"""Other projects' files of low-bit weights: to `LowbitWeight` and back.

Every reader takes the tensors of a checkpoint and the name of one linear layer, every writer gives
the tensors of one. Codes go through without change; a scale is rounded once, to the dtype written.
With b bits and p = 32 // b:

    compressed-tensors  weight_packed int32 (N, ceil(K / p)): code k in bits [b (k % p), ...) of word
                        k // p; weight_scale (N, groups); weight_zero_point int32, packed likewise
                        along N; weight_shape
    GPTQ                qweight int32 (K b / 32, N): a column is one string of bits; qzeros int32
                        (groups, N b / 32), less one in the first version; scales (groups, N)
    AWQ                 qweight int32 (K, N / 8): bits [4 i, 4 i + 4) of a word hold output
                        (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight; qzeros likewise; scales (groups, N)
    bitsandbytes NF4    weight uint8 (N K / 2, 1), even k in the high nibble; weight.absmax per block
                        of the flattened weight, or 8-bit with a scale per 256 of them
    BitNet              weight uint8 (N / 4, K): bits [2 i, 2 i + 2) of row r hold output i N / 4 + r
                        of a ternary weight plus one; weight_scale, to divide or to multiply by
"""

import json
from collections.abc import Mapping

import torch

from taut.formats import BITS, LowbitWeight, pack_codes, unpack_codes
from taut.int32_words import codes_to_string, codes_to_words, string_to_codes, words_to_codes
from taut.quantizers import NF4
from taut.reference._check import FLOATS, check_choice, dtype_name

Tensors = Mapping[str, torch.Tensor]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_NESTED_BLOCK = 256


def _take(op: str, tensors: Tensors, name: str, field: str, shape: tuple, dtypes: tuple):
    full = f"{name}.{field}"
    if full not in tensors:
        raise ValueError(f"{op}: {full} must be given, is missing")
    tensor = tensors[full]
    fits = tensor.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        meaning = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{op}: {full} must be {meaning}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        accepted = ", ".join(map(dtype_name, dtypes))
        raise ValueError(f"{op}: {full} must be {accepted}, got {dtype_name(tensor.dtype)}")
    return tensor.detach().cpu()


def _group_size(op: str, name: str, in_features: int, groups: int, group_size: int) -> int:
    """Ours: 0 for one group. Theirs may be -1, or as large as the row."""
    size = 0 if group_size in (-1, 0) or group_size >= in_features else group_size
    check_choice(op, "group_size", size, (0, 32, 64, 128, 256))
    expected = -(-in_features // size) if size else 1
    if groups != expected:
        raise ValueError(
            f"{op}: {name} must have {expected} groups for {in_features} inputs in groups of "
            f"{group_size}, got {groups}"
        )
    return size


def _weight(codes, scale, zero_point, bits, group_size) -> LowbitWeight:
    packed = pack_codes(codes.contiguous(), bits)
    zero_point = None if zero_point is None else zero_point.float().contiguous()
    if zero_point is not None and (zero_point == 2 ** (bits - 1)).all():
        zero_point = None
    scale = scale.float().contiguous()
    return LowbitWeight(packed, scale, zero_point, None, bits, codes.shape[1], group_size)


def _codes_of(op: str, weight: LowbitWeight, bits: tuple) -> torch.Tensor:
    if weight.codebook is not None:
        raise ValueError(f"{op}: weight must be of integers, got a codebook")
    check_choice(op, "bits", weight.bits, bits)
    return unpack_codes(weight.codes.cpu(), weight.bits, weight.in_features)


def _whole_zeros(op: str, weight: LowbitWeight) -> torch.Tensor:
    """(N, groups) int64, each the zero point in units of codes."""
    if weight.zero_point is None:
        return torch.full(weight.scale.shape, 2 ** (weight.bits - 1))
    zeros = weight.zero_point.cpu()
    if ((zeros != zeros.floor()) | (zeros < 0) | (zeros >= 2**weight.bits)).any():
        raise ValueError(f"{op}: zero_point must be whole and one of the codes")
    return zeros.long()


def read_compressed_tensors(
    tensors: Tensors, name: str, *, bits: int, group_size: int = -1
) -> LowbitWeight:
    """A layer of a compressed-tensors checkpoint of format "pack-quantized".

    Args:
        tensors: of the checkpoint, by name.
        name: of the layer; `<name>.weight_packed`, `.weight_scale`, `.weight_shape`, perhaps
            `.weight_zero_point`.
        bits: num_bits of its scheme: 2, 3, 4 or 8. group_size: of its scheme, -1 for channels.

    Returns:
        The same weight.

    Raises:
        ValueError: naming the tensor, what was expected and what came; activation order
            (`.weight_g_idx`) is refused.
    """
    op = "read_compressed_tensors"
    check_choice(op, "bits", bits, BITS)
    shape = _take(op, tensors, name, "weight_shape", (2,), (torch.int64, torch.int32))
    rows, columns = shape.tolist()
    per_word = 32 // bits
    words = -(-columns // per_word)
    packed = _take(op, tensors, name, "weight_packed", (rows, words), (torch.int32,))
    scale = _take(op, tensors, name, "weight_scale", (rows, None), FLOATS)
    groups = scale.shape[1]
    size = _group_size(op, f"{name}.weight_scale", columns, groups, group_size)
    _refuse_order(op, tensors, name, "weight_g_idx", columns, size)
    zeros = None
    if f"{name}.weight_zero_point" in tensors:
        zero_shape = (-(-rows // per_word), groups)
        zeros = _take(op, tensors, name, "weight_zero_point", zero_shape, (torch.int32,))
        zeros = words_to_codes(zeros.T, bits).T[:rows]
    codes = words_to_codes(packed, bits)[:, :columns]
    return _weight(codes, scale, zeros, bits, size)


def write_compressed_tensors(
    weight: LowbitWeight, name: str, *, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """The inverse of `read_compressed_tensors`, its scales in `dtype`."""
    op = "write_compressed_tensors"
    codes = _codes_of(op, weight, BITS)
    tensors = {
        f"{name}.weight_packed": codes_to_words(codes, weight.bits),
        f"{name}.weight_scale": weight.scale.cpu().to(dtype),
        f"{name}.weight_shape": torch.tensor(codes.shape),
    }
    if weight.zero_point is not None:
        zeros = codes_to_words(_whole_zeros(op, weight).T, weight.bits).T
        tensors[f"{name}.weight_zero_point"] = zeros.contiguous()
    return tensors


def _refuse_order(op, tensors, name, field, columns, group_size) -> None:
    """Weights whose columns were quantized in another order have no groups of neighbours."""
    if f"{name}.{field}" not in tensors:
        return
    order = _take(op, tensors, name, field, (columns,), (torch.int32, torch.int64))
    if not torch.equal(order.long(), torch.arange(columns) // (group_size or columns)):
        raise ValueError(
            f"{op}: {name}.{field} must be k // {group_size or columns}: activation order "
            "(desc_act) is not supported"
        )


def read_gptq(
    tensors: Tensors, name: str, *, bits: int, group_size: int = -1, version: int = 1
) -> LowbitWeight:
    """A layer of a GPTQ checkpoint.

    Args:
        tensors: of the checkpoint, by name.
        name: of the layer; `<name>.qweight`, `.qzeros`, `.scales`, perhaps `.g_idx`.
        bits: 2, 3, 4 or 8. group_size: of its quantize_config.json, -1 for channels.
        version: 1 ("gptq", zero points stored less one) or 2 ("gptq_v2").

    Returns:
        The same weight.

    Raises:
        ValueError: naming the tensor, what was expected and what came; activation order is refused.
    """
    op = "read_gptq"
    check_choice(op, "bits", bits, BITS)
    check_choice(op, "version", version, (1, 2))
    packed = _take(op, tensors, name, "qweight", (None, None), (torch.int32,))
    columns, rows = packed.shape[0] * 32 // bits, packed.shape[1]
    scale = _take(op, tensors, name, "scales", (None, rows), FLOATS)
    groups = scale.shape[0]
    size = _group_size(op, f"{name}.scales", columns, groups, group_size)
    _refuse_order(op, tensors, name, "g_idx", columns, size)
    zero_shape = (groups, -(-rows * bits // 32))
    zeros = _take(op, tensors, name, "qzeros", zero_shape, (torch.int32,))
    zeros = string_to_codes(zeros, bits, rows).T.long()
    if version == 1:
        zeros = (zeros + 1) % 2**bits
    return _weight(string_to_codes(packed.T, bits, columns), scale.T, zeros, bits, size)


def write_gptq(
    weight: LowbitWeight, name: str, *, dtype: torch.dtype = torch.float16, version: int = 1
) -> dict[str, torch.Tensor]:
    """The inverse of `read_gptq`, its scales in `dtype`; bits * in_features and bits *
    out_features must be multiples of 32."""
    op = "write_gptq"
    check_choice(op, "version", version, (1, 2))
    codes = _codes_of(op, weight, BITS)
    for meaning, size in (("in_features", codes.shape[1]), ("out_features", codes.shape[0])):
        if size * weight.bits % 32:
            raise ValueError(
                f"{op}: {meaning} * bits must be a multiple of 32, got {size} * {weight.bits}"
            )
    zeros = _whole_zeros(op, weight).T
    if version == 1:
        zeros = (zeros - 1) % 2**weight.bits
    columns = codes.shape[1]
    order = torch.arange(columns, dtype=torch.int32) // (weight.group_size or columns)
    return {
        f"{name}.qweight": codes_to_string(codes, weight.bits).T.contiguous(),
        f"{name}.qzeros": codes_to_string(zeros.to(torch.uint8).contiguous(), weight.bits),
        f"{name}.scales": weight.scale.cpu().T.to(dtype).contiguous(),
        f"{name}.g_idx": order,
    }


def read_awq(tensors: Tensors, name: str, *, group_size: int = 128) -> LowbitWeight:
    """A layer of an AWQ checkpoint of 4 bits (version "gemm").

    Args:
        tensors: of the checkpoint, by name.
        name: of the layer; `<name>.qweight`, `.qzeros`, `.scales`.
        group_size: of its quantization config, -1 for channels.

    Returns:
        The same weight.

    Raises:
        ValueError: naming the tensor, what was expected and what came.
    """
    op = "read_awq"
    packed = _take(op, tensors, name, "qweight", (None, None), (torch.int32,))
    columns, rows = packed.shape[0], packed.shape[1] * 8
    scale = _take(op, tensors, name, "scales", (None, rows), FLOATS)
    groups = scale.shape[0]
    size = _group_size(op, f"{name}.scales", columns, groups, group_size)
    zeros = _take(op, tensors, name, "qzeros", (groups, rows // 8), (torch.int32,))
    place = torch.tensor(_AWQ_ORDER).argsort()

    def in_order(words):
        return words_to_codes(words, 4).unflatten(1, (-1, 8))[:, :, place].flatten(1).T

    return _weight(in_order(packed), scale.T, in_order(zeros), 4, size)


def write_awq(
    weight: LowbitWeight, name: str, *, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """The inverse of `read_awq`, its scales in `dtype`; out_features must be a multiple of 8."""
    op = "write_awq"
    codes = _codes_of(op, weight, (4,))
    if codes.shape[0] % 8:
        raise ValueError(f"{op}: out_features must be a multiple of 8, got {codes.shape[0]}")

    def words(codes):
        return codes_to_words(codes.T.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1), 4)

    return {
        f"{name}.qweight": words(codes),
        f"{name}.qzeros": words(_whole_zeros(op, weight)),
        f"{name}.scales": weight.scale.cpu().T.to(dtype).contiguous(),
    }


def read_nf4(tensors: Tensors, name: str) -> LowbitWeight:
    """A layer of a bitsandbytes checkpoint of type nf4, its absmax nested or not.

    Args:
        tensors: of the checkpoint, by name.
        name: of the layer; `<name>.weight`, `.weight.absmax`, `.weight.quant_map`,
            `.weight.quant_state.bitsandbytes__nf4`, perhaps `.weight.nested_absmax` and
            `.weight.nested_quant_map`.

    Returns:
        The same weight, absmax in fp32.

    Raises:
        ValueError: naming the tensor, what was expected and what came; the blocks must divide the
            rows of the weight.
    """
    op, floats = "read_nf4", (torch.float32,)
    field = "weight.quant_state.bitsandbytes__nf4"
    state = _take(op, tensors, name, field, (None,), (torch.uint8,))
    try:
        state = json.loads(bytes(state.tolist()))
        (rows, columns), block = state["shape"], state["blocksize"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{op}: {name}.{field} must be JSON with a shape of two sizes and a blocksize"
        ) from None
    if block not in (32, 64, 128, 256) or columns % block:
        raise ValueError(
            f"{op}: {name}.{field} must have a blocksize of 32, 64, 128 or 256 that divides "
            f"{columns} inputs, got {block}"
        )
    packed = _take(op, tensors, name, "weight", (rows * columns // 2, 1), (torch.uint8,))
    table = _take(op, tensors, name, "weight.quant_map", (16,), floats)
    blocks = rows * columns // block
    if f"{name}.weight.nested_absmax" in tensors:
        codes = _take(op, tensors, name, "weight.absmax", (blocks,), (torch.uint8,))
        nested_block = state.get("nested_blocksize", _NESTED_BLOCK)
        count = -(-blocks // nested_block)
        nested = _take(op, tensors, name, "weight.nested_absmax", (count,), floats)
        levels = _take(op, tensors, name, "weight.nested_quant_map", (256,), floats)
        nested = nested.repeat_interleave(nested_block)[:blocks]
        absmax = levels[codes.long()] * nested + state.get("nested_offset", 0.0)
    else:
        absmax = _take(op, tensors, name, "weight.absmax", (blocks,), floats)
    nibbles = torch.cat((packed >> 4, packed & 15), 1).view(rows, columns)
    scale = absmax.view(rows, columns // block).contiguous()
    size = 0 if block == columns else block
    return LowbitWeight(pack_codes(nibbles, 4), scale, None, table.clone(), 4, columns, size)


def write_nf4(weight: LowbitWeight, name: str) -> dict[str, torch.Tensor]:
    """The inverse of `read_nf4`, its absmax in fp32 and not nested."""
    op = "write_nf4"
    table = weight.codebook
    if weight.bits != 4 or table is None or not torch.equal(table.cpu(), torch.tensor(NF4)):
        raise ValueError(f"{op}: weight must be of NF4 codes")
    codes = unpack_codes(weight.codes.cpu(), 4, weight.in_features)
    if codes.shape[1] % 2 or (weight.group_size and codes.shape[1] % weight.group_size):
        raise ValueError(f"{op}: in_features must be whole blocks, got {codes.shape[1]}")
    state = {
        "quant_type": "nf4",
        "blocksize": weight.group_size or codes.shape[1],
        "dtype": "float32",
        "shape": list(codes.shape),
    }
    pairs = codes.view(-1, 2)
    return {
        f"{name}.weight": (pairs[:, :1] << 4) | pairs[:, 1:],
        f"{name}.weight.absmax": weight.scale.cpu().flatten(),
        f"{name}.weight.quant_map": table.cpu().clone(),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


def read_bitnet(tensors: Tensors, name: str, *, scale: str) -> LowbitWeight:
    """A layer of a Hugging Face BitNet checkpoint.

    Args:
        tensors: of the checkpoint, by name.
        name: of the layer; `<name>.weight`, `.weight_scale`.
        scale: "divide" (BitLinear) or "multiply" (AutoBitLinear) the codes by weight_scale: files
            do not say, the config's linear_class does ("bitlinear", "autobitlinear").

    Returns:
        The same weight, of 2 bits.

    Raises:
        ValueError: naming the tensor, what was expected and what came.
    """
    op = "read_bitnet"
    check_choice(op, "scale", scale, ("divide", "multiply"))
    packed = _take(op, tensors, name, "weight", (None, None), (torch.uint8,))
    factor = _take(op, tensors, name, "weight_scale", (1,), FLOATS).float()
    codes = torch.cat([(packed >> shift) & 3 for shift in (0, 2, 4, 6)])
    if (codes > 2).any():
        raise ValueError(f"{op}: {name}.weight must hold codes 0, 1 and 2, got 3")
    factor = (1 / factor if scale == "divide" else factor).expand(codes.shape[0], 1)
    return _weight(codes, factor, torch.ones(factor.shape), 2, 0)


def write_bitnet(
    weight: LowbitWeight, name: str, *, scale: str, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """The inverse of `read_bitnet`, weight_scale in `dtype`; out_features must be a multiple of 4,
    and one scale serve all of them."""
    op = "write_bitnet"
    check_choice(op, "scale", scale, ("divide", "multiply"))
    codes = _codes_of(op, weight, (2,))
    if codes.shape[0] % 4:
        raise ValueError(f"{op}: out_features must be a multiple of 4, got {codes.shape[0]}")
    if (_whole_zeros(op, weight) != 1).any() or (codes > 2).any():
        raise ValueError(f"{op}: weight must be ternary, codes 0, 1 and 2 around zero point 1")
    factor = weight.scale.cpu().flatten()
    if (factor != factor[0]).any():
        raise ValueError(f"{op}: weight must have one scale for all outputs")
    factor = 1 / factor[:1] if scale == "divide" else factor[:1]
    packed = sum(part << (2 * i) for i, part in enumerate(codes.chunk(4)))
    return {f"{name}.weight": packed, f"{name}.weight_scale": factor.to(dtype)}
