"""Compiles cases of the host SIMT executor with g++, or for a GPU with nvcc, and calls them."""

import ctypes
import functools
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import cuda_compile

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "build" / "simt"
SCHEDULES = (0, 1, 2)  # forward, reverse, random

_COMMON = ["-std=c++17", "-fPIC", "-g1", "-Wall", "-Wextra"]
_INCLUDES = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
# Every memory access of a kernel becomes a call into the executor. Accesses stay as wide and as
# many as written: no vectorization, no splitting or merging. Uninitialized variables hold 0xFE...
_KERNEL = (
    "-O1",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-ftrivial-auto-var-init=pattern",
    "-fno-strict-aliasing",
    "-fno-tree-sra",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
)
_RUNTIME = ("-O3", "-Wno-clobbered")


class SimtError(RuntimeError):
    """What the executor found: the message names kernel, block and thread."""


@functools.cache
def _compile(source: Path, flags: tuple[str, ...]) -> Path:
    """Compile one file to an object, unless build/ has it from the same inputs."""
    command = ["g++", *_COMMON, *flags, *_INCLUDES]
    preprocessed = subprocess.run(
        [*command, "-E", "-fno-sanitize=all", str(source)], check=True, capture_output=True
    ).stdout
    key = hashlib.sha256(" ".join(command).encode() + preprocessed).hexdigest()[:20]
    output = OUTPUT / f"{source.stem}-{key}.o"
    if not output.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(f".{os.getpid()}.o")
        subprocess.run([*command, "-c", str(source), "-o", str(partial)], check=True)
        partial.replace(output)
    return output


@functools.cache
def load(case: str) -> ctypes.CDLL:
    """The library of tests/simt/cases/<case>.cpp."""
    # The executor first: of inline functions that both use, the linker takes its unchecked ones.
    jobs = [(source, _RUNTIME) for source in sorted((HERE / "runtime").glob("*.cpp"))]
    jobs.append((HERE / "cases" / f"{case}.cpp", _KERNEL))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    key = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:20]
    library = OUTPUT / f"{case}-{key}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}.so")
        subprocess.run(
            ["g++", "-shared", "-Wl,-Bsymbolic,-z,defs", *map(str, objects), "-o", str(partial)],
            check=True,
        )
        partial.replace(library)
    return ctypes.CDLL(str(library))


@functools.cache
def load_for_gpu(case: str, architecture: str) -> ctypes.CDLL:
    """The same case as CUDA: its launches run on the GPU, whatever their schedule."""
    library = OUTPUT / f"{case}-sm_{architecture}.so"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    cuda_compile.run_nvcc(
        ["-shared", "-Xcompiler", "-fPIC", *gpu_flags(architecture), "-o", library]
        + [HERE / "cases" / f"{case}.cpp"]
    )
    return ctypes.CDLL(str(library))


def gpu_flags(architecture: str) -> list[str]:
    """What makes nvcc take a case as CUDA, with the GPU's simt.h."""
    gencode = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    return ["-x", "cu", "-std=c++17", "-O1", f"-I{HERE / 'gpu'}", f"-I{ROOT / 'csrc'}", gencode]


def _argument(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value


def call(function, *arguments) -> None:
    """Call a case: tensors go as pointers, ints with 64 bits, floats with 32. Raises SimtError."""
    function.restype = ctypes.c_char_p
    message = function(*map(_argument, arguments))
    if message is not None:
        raise SimtError(message.decode())
