"""The AMX kernels as compiled. No test can run them without the hardware, and gcc does not know what
their instructions read."""

import re
import subprocess
from pathlib import Path

BUILD = Path(__file__).parent.parent / "build"
READ = {0, *range(16, 32), *range(48, 56)}  # palette, bytes per row and rows of 8 tiles
_STORE = re.compile(r"(\w+)\s+(\S+),(-?0x[0-9a-f]+)?\((%r[sb]p)\)$")
_VECTORS = {"zmm": 64, "ymm": 32, "xmm": 16}
_PARTS = {"vmovd": 4, "vmovss": 4, "vmovq": 8, "vmovlps": 8, "vmovsd": 8}
_SUFFIXES = {"movb": 1, "movw": 2, "movl": 4, "movq": 8}


def width_of(instruction, operand):
    if instruction in _PARTS:
        return _PARTS[instruction]
    if operand[1:4] in _VECTORS:
        return _VECTORS[operand[1:4]]
    if instruction in _SUFFIXES:
        return _SUFFIXES[instruction]
    if operand.endswith("l") or operand.endswith("b"):  # %al, %r8b
        return 1
    if operand.startswith("%e") or operand.endswith("d"):  # %eax, %r8d
        return 4
    return 2 if operand.endswith("w") or len(operand) == 3 else 8  # %r8w, %ax; %rax


def stores_before(lines, at):
    """(base register, displacement, bytes) of the stores to the stack before line `at`, within its
    function, the last first."""
    for line in reversed(lines[:at]):
        if line.endswith(">:"):
            return
        if found := _STORE.search(line):
            instruction, operand, displacement, base = found.groups()
            if instruction.startswith(("mov", "vmov")):
                yield base, int(displacement or "0", 16), width_of(instruction, operand)


def test_all_of_a_tile_configuration_is_stored():
    """gcc 12 takes LDTILECFG for a read of 8 bytes, and had left out stores of the other 56."""
    kernels = sorted(BUILD.glob("*/CMakeFiles/taut_kernels_amx.dir/csrc/cpu/*.o"))
    assert kernels, "built with the package"
    checked = 0
    for path in kernels:
        listing = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", path],
            check=True,
            capture_output=True,
            text=True,
        )
        lines = listing.stdout.splitlines()
        for at, line in enumerate(lines):
            if "ldtilecfg" not in line:
                continue
            stores = list(stores_before(lines, at))
            cleared = next((s for s in stores if s[2] == 64), None)
            assert cleared, f"{path.name}: a configuration is cleared as one vector, {line}"
            base, start, _ = cleared
            last = stores[: stores.index(cleared)]
            written = {
                first - start + byte
                for register, first, size in last
                if register == base
                for byte in range(size)
            }
            assert written >= READ, (path.name, line, sorted(READ - written))
            checked += 1
    assert checked >= 10
