"""Other projects' formats against packers written here from their definitions, code by code."""

import json

import numpy as np
import pytest
import torch

from taut import lowbit_io, quantizers
from taut.formats import unpack_codes

N, K = 64, 128


def random_case(bits, group_size, dtype=torch.float16):
    """Codes (N, K), scales (N, groups) of dtype, zero points (N, groups) in units of codes."""
    groups = K // group_size if group_size > 0 else 1
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    codes = rng.integers(0, 2**bits, (N, K))
    zeros = rng.integers(0, 2**bits, (N, groups))
    scale = torch.tensor(rng.random((N, groups)) + 0.1).to(dtype)
    return codes, scale, zeros


def as_int32(words):
    return torch.tensor(np.array(words, dtype=np.uint64).astype(np.uint32).view(np.int32))


def values(codes, scale, zeros):
    repeat = K // zeros.shape[1]
    zeros, scale = np.repeat(zeros, repeat, 1), scale.float().repeat_interleave(repeat, 1)
    return torch.tensor(codes - zeros).float() * scale


def check_round_trip(tensors, written):
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("group_size", (-1, 32, 64))
@pytest.mark.parametrize("symmetric", (True, False))
def test_compressed_tensors(bits, group_size, symmetric):
    codes, scale, zeros = random_case(bits, group_size, torch.bfloat16)
    per_word = 32 // bits
    if symmetric:
        zeros[:] = 2 ** (bits - 1)

    def pack_rows(matrix):
        words = np.zeros((matrix.shape[0], -(-matrix.shape[1] // per_word)), dtype=np.uint64)
        for (n, k), code in np.ndenumerate(matrix):
            words[n, k // per_word] |= np.uint64(int(code) << (bits * (k % per_word)))
        return words

    tensors = {
        "a.b.weight_packed": as_int32(pack_rows(codes)),
        "a.b.weight_scale": scale,
        "a.b.weight_shape": torch.tensor([N, K]),
    }
    if not symmetric:
        tensors["a.b.weight_zero_point"] = as_int32(pack_rows(zeros.T).T.copy())
    got = lowbit_io.read_compressed_tensors(tensors, "a.b", bits=bits, group_size=group_size)
    assert torch.equal(got.dequantize(), values(codes, scale, zeros))
    assert (got.zero_point is None) == symmetric
    written = lowbit_io.write_compressed_tensors(got, "a.b", dtype=torch.bfloat16)
    check_round_trip(tensors, written)


def gptq_tensors(codes, scale, zeros, bits, version, group_size):
    def string_of(column):  # one long string of bits, cut into words
        string = 0
        for i, code in enumerate(column):
            string |= int(code) << (bits * i)
        return [(string >> (32 * w)) & 0xFFFFFFFF for w in range(len(column) * bits // 32)]

    stored = (zeros - (1 if version == 1 else 0)) % 2**bits
    return {
        "l.qweight": as_int32(np.array([string_of(row) for row in codes]).T.copy()),
        "l.qzeros": as_int32([string_of(column) for column in stored.T]),
        "l.scales": scale.T.contiguous(),
        "l.g_idx": torch.arange(K, dtype=torch.int32) // (group_size if group_size > 0 else K),
    }


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("group_size", (-1, 32))
@pytest.mark.parametrize("version", (1, 2))
def test_gptq(bits, group_size, version):
    codes, scale, zeros = random_case(bits, group_size)
    tensors = gptq_tensors(codes, scale, zeros, bits, version, group_size)
    options = {"bits": bits, "group_size": group_size}
    got = lowbit_io.read_gptq(tensors, "l", **options, version=version)
    assert torch.equal(got.dequantize(), values(codes, scale, zeros))
    check_round_trip(tensors, lowbit_io.write_gptq(got, "l", version=version))


def test_gptq_three_bits_straddle_words():
    codes = np.zeros((N, K), dtype=np.int64)
    codes[0, 10] = 0b101  # bits 30 to 32 of the string: two in the first word, one in the second
    case = codes, torch.ones(N, 1, dtype=torch.float16), np.full((N, 1), 4)
    tensors = gptq_tensors(*case, 3, 2, -1)
    assert tensors["l.qweight"][0, 0] == 1 << 30 and tensors["l.qweight"][1, 0] == 1
    got = lowbit_io.read_gptq(tensors, "l", bits=3, version=2)
    assert unpack_codes(got.codes, 3, K)[0, 10] == 5


@pytest.mark.parametrize("group_size", (-1, 32, 64))
def test_awq(group_size):
    codes, scale, zeros = random_case(4, group_size)

    def pack(matrix):  # (rows, N) -> words of eight outputs
        words = np.zeros((matrix.shape[0], N // 8), dtype=np.uint64)
        for k in range(matrix.shape[0]):
            for word in range(N // 8):
                for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                    code = int(matrix[k, 8 * word + output])
                    words[k, word] |= np.uint64(code << (4 * place))
        return as_int32(words)

    tensors = {
        "l.qweight": pack(codes.T),
        "l.qzeros": pack(zeros.T),
        "l.scales": scale.T.contiguous(),
    }
    got = lowbit_io.read_awq(tensors, "l", group_size=group_size)
    assert torch.equal(got.dequantize(), values(codes, scale, zeros))
    check_round_trip(tensors, lowbit_io.write_awq(got, "l"))


def nf4_tensors(block, nested):
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    codes = rng.integers(0, 16, N * K)
    packed = [codes[2 * i] << 4 | codes[2 * i + 1] for i in range(N * K // 2)]
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [N, K]}
    blocks = N * K // block
    tensors = {
        "l.weight": torch.tensor(np.array(packed), dtype=torch.uint8)[:, None],
        "l.weight.quant_map": torch.tensor(quantizers.NF4),
    }
    if nested:
        state |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
        small = rng.integers(0, 256, blocks)
        levels = torch.linspace(-1, 1, 256)
        outer = torch.rand(-(-blocks // 256))
        tensors |= {
            "l.weight.absmax": torch.tensor(small, dtype=torch.uint8),
            "l.weight.nested_absmax": outer,
            "l.weight.nested_quant_map": levels,
        }
        absmax = torch.stack([levels[c] * outer[i // 256] + 0.25 for i, c in enumerate(small)])
    else:
        absmax = tensors["l.weight.absmax"] = torch.rand(blocks)
    text = json.dumps(state).encode()
    tensors["l.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    flat = torch.stack([absmax[i // block] * quantizers.NF4[c] for i, c in enumerate(codes)])
    return tensors, flat.view(N, K)


@pytest.mark.parametrize("block", (32, 64, 128))
@pytest.mark.parametrize("nested", (False, True))
def test_bitsandbytes_nf4(block, nested):
    tensors, want = nf4_tensors(block, nested)
    got = lowbit_io.read_nf4(tensors, "l")
    torch.testing.assert_close(got.dequantize(), want, rtol=1e-6, atol=0)
    written = lowbit_io.write_nf4(got, "l")
    assert torch.equal(written["l.weight"], tensors["l.weight"])
    if not nested:
        assert torch.equal(written["l.weight.absmax"], tensors["l.weight.absmax"])
    again = lowbit_io.read_nf4(written, "l")
    assert torch.equal(again.codes, got.codes) and torch.equal(again.scale, got.scale)


@pytest.mark.parametrize("scale", ("divide", "multiply"))
def test_bitnet(scale):
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    codes = rng.integers(0, 3, (N, K))
    packed = np.zeros((N // 4, K), dtype=np.uint8)
    for (n, k), code in np.ndenumerate(codes):
        i, r = divmod(n, N // 4)
        packed[r, k] |= code << (2 * i)
    factor = torch.tensor([1.7], dtype=torch.bfloat16)
    tensors = {"l.weight": torch.tensor(packed), "l.weight_scale": factor}
    got = lowbit_io.read_bitnet(tensors, "l", scale=scale)
    factor = factor.float() if scale == "multiply" else 1 / factor.float()
    torch.testing.assert_close(got.dequantize(), torch.tensor(codes - 1).float() * factor)
    check_round_trip(tensors, lowbit_io.write_bitnet(got, "l", scale=scale))


def test_refusals_name_tensor_and_field():
    codes, scale, zeros = random_case(4, 32)
    tensors = gptq_tensors(codes, scale, zeros, 4, 1, 32)
    shuffled = {**tensors, "l.g_idx": tensors["l.g_idx"].flip(0)}
    nf4, _ = nf4_tensors(64, False)
    damaged = torch.tensor([1, 2], dtype=torch.uint8)
    int8 = quantizers.integer(torch.randn(6, 40), 8)
    for pattern, call in (
        (r"read_gptq: m.qweight must be given, is missing",
         lambda: lowbit_io.read_gptq(tensors, "m", bits=4)),
        (r"read_gptq: l.scales must have 2 groups for 128 inputs in groups of 64, got 4",
         lambda: lowbit_io.read_gptq(tensors, "l", bits=4, group_size=64)),
        (r"read_gptq: l.g_idx must be k // 32: activation order",
         lambda: lowbit_io.read_gptq(shuffled, "l", bits=4, group_size=32)),
        (r"read_gptq: l.qweight must be int32, got float32",
         lambda: lowbit_io.read_gptq({**tensors, "l.qweight": torch.ones(16, 64)}, "l", bits=4)),
        (r"read_awq: l.scales must be \('any', 512\), got \(4, 64\)",
         lambda: lowbit_io.read_awq(tensors, "l")),
        (r"read_nf4: l.weight.quant_state.bitsandbytes__nf4 must be JSON",
         lambda: lowbit_io.read_nf4(
             {**nf4, "l.weight.quant_state.bitsandbytes__nf4": damaged}, "l")),
        (r"read_bitnet: l.weight must hold codes 0, 1 and 2, got 3",
         lambda: lowbit_io.read_bitnet(
             {"l.weight": torch.full((2, 8), 255, dtype=torch.uint8),
              "l.weight_scale": torch.ones(1)}, "l", scale="divide")),
        (r"write_gptq: out_features \* bits must be a multiple of 32, got 6 \* 8",
         lambda: lowbit_io.write_gptq(int8, "l")),
        (r"write_awq: bits must be one of 4, got 8", lambda: lowbit_io.write_awq(int8, "l")),
        (r"write_nf4: weight must be of NF4 codes", lambda: lowbit_io.write_nf4(int8, "l")),
        (r"write_bitnet: bits must be one of 2, got 8",
         lambda: lowbit_io.write_bitnet(int8, "l", scale="divide")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            call()
