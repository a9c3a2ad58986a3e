"""The instructions of AMX, by hardware or by amx_emulator.cpp, and how the amx kernels use them."""

import ctypes
import functools
import os
import signal
import subprocess
import sys

import pytest
import torch

import amx_emulator
import taut
from helpers import cu_seqlens_of
from taut._native import available_isas, libraries
from taut.formats import LowbitWeight, pack_codes

pytestmark = pytest.mark.skipif("amx" not in available_isas(), reason="needs AMX or AVX512_BF16")
BF16, INT8 = 0, {1: (True, True), 2: (True, False), 3: (False, True), 4: (False, False)}


@functools.cache
def cases():
    flags = ("-mavx512f", "-mamx-tile", "-mamx-bf16", "-mamx-int8")
    return ctypes.CDLL(
        str(amx_emulator.compiled(amx_emulator.SOURCE.with_name("amx_cases.cpp"), *flags))
    )


def configuration(*shapes, palette=1, start_row=0, reserved=0):
    """The 64 bytes that LDTILECFG reads, for tiles of (rows, bytes per row)."""
    shapes = [*shapes, *[(0, 0)] * (16 - len(shapes))]
    data = bytes([palette, start_row, reserved, *[0] * 13])
    data += b"".join(row_bytes.to_bytes(2, "little") for _, row_bytes in shapes)
    return data + bytes(rows for rows, _ in shapes)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def multiply(kind, shape, a, b, c):
    """c += a b by one instruction. Memory: a is rows x 64 bytes, b 16 x 64 bytes, c 16 x 64 bytes."""
    rows, depth, columns = shape
    config = configuration((rows, 4 * columns), (rows, 4 * depth), (depth, 4 * columns))
    stride = ctypes.c_int64(64)
    cases().amx_multiply(config, kind, pointer(a), stride, pointer(b), stride, pointer(c), stride)


SHAPES = [(16, 16, 16), (1, 1, 1), (16, 8, 16), (5, 16, 3), (16, 1, 16), (7, 9, 11)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", INT8)
def test_product_of_int8(kind, shape):
    rows, depth, columns = shape
    signed_a, signed_b = INT8[kind]
    a, b = torch.randint(0, 256, (2, 16, 64), dtype=torch.uint8)
    c = torch.randint(-(2**31), 2**31, (16, 16)).to(torch.int32)

    def values(tensor, is_signed):
        return (tensor.view(torch.int8) if is_signed else tensor).long()

    # Four k of a column lie side by side in a row of b.
    left = values(a, signed_a)[:rows, : 4 * depth]
    right = values(b, signed_b)[:depth, : 4 * columns].view(depth, columns, 4)
    want = c.clone()
    product = left @ right.transpose(1, 2).reshape(4 * depth, columns)
    want[:rows, :columns] += product.to(torch.int32)
    multiply(kind, shape, a, b, c)
    assert torch.equal(c, want)


@pytest.mark.parametrize("shape", SHAPES)
def test_product_of_bf16(shape):
    rows, depth, columns = shape
    a, b = torch.randn(2, 16, 32).bfloat16()
    c = torch.randn(16, 16)
    want = c.double()
    right = b[:depth, : 2 * columns].view(depth, columns, 2).transpose(1, 2)
    product = a[:rows, : 2 * depth].double() @ right.reshape(2 * depth, columns).double()
    want[:rows, :columns] += product
    before = c.clone()
    multiply(BF16, shape, a, b, c)
    torch.testing.assert_close(c.double(), want, rtol=0, atol=3e-5)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[:rows, :columns] = False
    assert torch.equal(c[outside], before[outside])


def test_subnormal_bf16_counts_as_zero():
    a, b = torch.zeros(2, 16, 32).bfloat16()
    a[0, 0], b[0, 0] = 1e-39, 1e30
    a[1, 0], b[0, 2] = 1e-30, 1e-10
    c = torch.zeros(16, 16)
    multiply(BF16, (16, 16, 16), a, b, c)
    assert c[0, 0] == 0  # of a subnormal operand
    assert c[1, 1] == 0  # a subnormal result
    assert c[1, 0] > 0.9


def test_configuration_is_kept_and_released():
    config = configuration(*[(tile + 1, 4 * tile + 4) for tile in range(8)])
    configured, released = torch.full((2, 64), 255, dtype=torch.uint8)
    cases().amx_configurations(config, pointer(configured), pointer(released))
    assert bytes(configured.tolist()) == config
    assert not released.any()


def test_configuring_clears_tiles():
    config = configuration(*[(16, 64)] * 8)
    data = torch.randint(1, 256, (16, 64), dtype=torch.uint8)
    zeroed, configured = torch.full((2, 16, 64), 255, dtype=torch.uint8)
    cases().amx_cleared(config, pointer(data), pointer(zeroed), pointer(configured))
    assert not zeroed.any() and not configured.any()


def died_by(function, *arguments):
    """The signal that a call in a child process died by; None where it returned."""
    child = os.fork()
    if child == 0:
        for number in (signal.SIGILL, signal.SIGSEGV):
            signal.signal(number, signal.SIG_DFL)  # not what prints where Python was
        amx_emulator.start()
        function(*arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None


FULL = [(16, 64)] * 8
REFUSED = {
    "unknown palette": (signal.SIGSEGV, configuration(*FULL, palette=2)),
    "reserved byte": (signal.SIGSEGV, configuration(*FULL, reserved=1)),
    "17 rows": (signal.SIGSEGV, configuration((17, 64), *FULL[1:])),
    "68 bytes per row": (signal.SIGSEGV, configuration((16, 68), *FULL[1:])),
    "rows of no bytes": (signal.SIGSEGV, configuration((16, 0), *FULL[1:])),
    "bytes of no rows": (signal.SIGSEGV, configuration((0, 64), *FULL[1:])),
    "ninth tile": (signal.SIGSEGV, configuration(*FULL, (16, 64))),
    "tile left out": (signal.SIGILL, configuration(*FULL[:3], (0, 0), *FULL[4:])),
    "palette 0": (signal.SIGILL, configuration(palette=0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_configurations(name):
    wanted, config = REFUSED[name]
    assert died_by(cases().amx_use, config) == wanted
    assert died_by(cases().amx_use, configuration(*FULL)) is None


@pytest.mark.parametrize(
    "shapes",
    [
        [(16, 64), (15, 64), (16, 64)],
        [(16, 64), (16, 60), (16, 64)],
        [(16, 64), (16, 64), (16, 60)],
        [(16, 62), (16, 64), (16, 62)],
    ],
    ids=["rows", "depth", "columns", "part of a column"],
)
def test_refused_products(shapes):
    data = pointer(torch.zeros(16, 64, dtype=torch.uint8))
    stride = ctypes.c_int64(64)
    for kind in (BF16, *INT8):
        assert (
            died_by(
                cases().amx_multiply, configuration(*shapes), kind, data, stride, data, stride,
                data, stride,
            )
            == signal.SIGILL
        )  # fmt: skip


def test_refused_uses():
    assert died_by(cases().amx_use_released) == signal.SIGILL
    assert died_by(cases().amx_zero_with_vvvv) == signal.SIGILL
    assert died_by(cases().amx_zero_of_tile_8) == signal.SIGILL
    data = torch.zeros(16, 64, dtype=torch.uint8)
    for use in (cases().amx_load, cases().amx_store):
        assert died_by(use, configuration((16, 62)), pointer(data)) == signal.SIGILL
        assert died_by(use, configuration((16, 60)), pointer(data)) is None
    assert died_by(cases().amx_square, configuration(*FULL)) == signal.SIGILL
    assert died_by(cases().amx_other) == signal.SIGILL


# ---- how the kernels use them


def test_emulated_instructions_are_never_chosen_unasked():
    if amx_emulator.load() is None:
        pytest.skip("the machine has AMX")
    code = (
        "import amx_emulator; amx_emulator.load(); from taut._native import libraries as l; "
        "print(l.module.active_isa(), l.module.available_isas()[-1])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TAUT_CPU_ISA"}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert found.stdout.decode().split() == ["avx512_bf16", "amx"], found.stderr.decode()


@pytest.fixture
def counted():
    """Calls a function on the amx kernels: (what it gave, how many of each instruction it took)."""
    if amx_emulator.load() is None:
        pytest.skip("only the emulator counts")
    before = libraries.module.active_isa()
    libraries.module.set_active_isa("amx")

    def run(function, *arguments, **options):
        start = amx_emulator.counts()
        result = function(*arguments, **options)
        return result, {name: n - start[name] for name, n in amx_emulator.counts().items()}

    yield run
    libraries.module.set_active_isa(before)


@pytest.mark.parametrize("rows, row_tiles", [(64, 4), (17, 2), (33, 4), (16, 2), (100, 8)])
def test_a_product_takes_every_tile_once(counted, rows, row_tiles):
    """Of 2 x 2 tiles of sums, so that each load feeds a product; rows in pairs of tiles."""
    x, weight = torch.randn(rows, 256).bfloat16(), torch.randn(128, 256).bfloat16()
    packed = taut.pack_weight(weight)
    out, dense = counted(taut.packed_linear, x, packed, out_features=128)
    products = row_tiles * 128 // 16 * 256 // 32
    assert dense["dot_bf16"] == dense["load"] == products
    assert dense["zero"] == dense["store"] == row_tiles * 128 // 16
    assert dense["configure"] == dense["release"] > 0
    assert dense["dot_int8"] == 0

    codes = pack_codes(torch.randint(256, (128, 256), dtype=torch.uint8), 8)
    weight = LowbitWeight(codes, torch.rand(128, 1), None, None, 8, 256, 0)
    x = torch.randint(-128, 128, (rows, 256), dtype=torch.int8)
    options = {"x_scale": torch.ones(rows, 1), "out_dtype": torch.bfloat16}
    _, lowbit = counted(taut.lowbit_linear, x, weight, **options)
    if rows < 17:
        assert lowbit["dot_int8"] == 0
        return
    assert lowbit["dot_int8"] == lowbit["load"] == products // 2
    assert lowbit["zero"] == lowbit["store"] == row_tiles * 128 // 16
    assert lowbit["dot_bf16"] == 0


def test_attention_by_tiles(counted):
    """S^T and O^T of 64 tokens and 32 channels: 4 x 4 tiles of scores, 2 x 4 of outputs."""
    qkv = torch.randn(64, 3, 2, 32).bfloat16()
    _, count = counted(taut.varlen_attention_qkvpacked, qkv, cu_seqlens_of([64]))
    assert count["dot_bf16"] == 2 * (4 * 4 + 2 * 4 * 2)
    assert count["configure"] == count["release"] == 2
