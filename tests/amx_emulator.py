"""Loads amx_emulator.cpp where the machine lacks AMX, so that the amx kernels can be tested."""

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
OUTPUT = SOURCE.parents[1] / "build" / "amx"
COUNTED = (
    "configure", "store_config", "release", "zero", "load", "store", "dot_bf16", "dot_int8",
)  # fmt: skip


def machine_flags() -> set[str]:
    """What /proc/cpuinfo says of the first processor; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def compiled(source: Path, *flags: str) -> Path:
    """The shared library of one file, made unless build/ has it from the same inputs."""
    # gcc 12 warns about its own AVX-512 header, as in CMakeLists.txt.
    command = ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra"]
    command += ["-Wno-maybe-uninitialized", "-Wno-uninitialized", *flags]
    key = hashlib.sha256(" ".join(command).encode() + source.read_bytes()).hexdigest()[:20]
    output = OUTPUT / f"{source.stem}-{key}.so"
    if not output.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(f".{os.getpid()}.so")
        subprocess.run([*command, str(source), "-o", str(partial)], check=True)
        partial.replace(output)
    return output


@functools.cache
def load() -> ctypes.CDLL | None:
    """The emulator; None where the machine has AMX or cannot emulate it. libtaut_cpu looks for it as it
    is loaded, so this comes before."""
    flags = machine_flags()
    if "amx_tile" in flags or not {"avx512f", "avx512_bf16"} <= flags:
        return None
    return ctypes.CDLL(str(compiled(SOURCE, "-mavx512f")), mode=ctypes.RTLD_GLOBAL)


def start() -> None:
    """Emulate from now on, where that is needed."""
    if load():
        load().amx_emulate()


def counts() -> dict[str, int]:
    """How many instructions of AMX this process has emulated."""
    numbers = (ctypes.c_int64 * len(COUNTED))()
    load().amx_counts(numbers)
    return dict(zip(COUNTED, numbers, strict=True))
