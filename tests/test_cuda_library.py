"""libtaut_cuda: what it needs, and how it is loaded or refused. Where the build has not made it, since
torch has no CUDA, it is built here for Hopper, its kernels without optimization."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
import torch
from torch.utils import cpp_extension

import taut
from taut import _native
from taut.registry import GPU_KERNELS, OPS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(taut.__file__).parent
NATIVE = (
    "attention_plan",
    "binary_attention",
    "binary_linear",
    "binary_linear_bits",
    "binary_linear_layer_norm",
    "binary_qk_attention",
    "pack_bits",
    "unpack_bits",
    "layer_norm_quantize",
    "lowbit_linear",
    "lowbit_linear_layer_norm",
    "lowbit_linear_quantize",
    "quantize_per_token",
    "varlen_attention",
    "varlen_attention_backward",
    "varlen_attention_qkvpacked",
    "varlen_attention_qkvpacked_backward",
)


@pytest.fixture(scope="module")
def library():
    built = PACKAGE / "libtaut_cuda.so"
    if built.exists():
        return built
    nvcc = shutil.which("nvcc") or pytest.skip("there is no nvcc")
    output = ROOT / "build/cuda-library"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_FLAGS": "-Xcicc -O0 -Xptxas -O0",
        "TAUT_NVCC": nvcc,
        "TAUT_CUDA_ARCHITECTURES": "90a-real",
        "TAUT_OUTPUT_DIR": output,
        "TAUT_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
        "TAUT_TORCH_LIB_DIR": Path(torch.__file__).parent / "lib",
        "TAUT_VERSION": taut.__version__,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    options = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", output, "-GNinja", *options], check=True)
    subprocess.run(["cmake", "--build", output, "--target", "taut_cuda"], check=True)
    return output / built.name


def undefined_symbols(library):
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


def test_needs_only_the_stable_abi_of_torch(library):
    symbols = undefined_symbols(library)
    assert "aoti_torch_get_current_cuda_stream" in symbols
    assert not {s for s in symbols if s.startswith("cuda") or "c104cuda" in s or "at4cuda" in s}
    # C++ symbols of torch, mangled: anything in namespaces at, c10 or torch is not stable.
    assert not {s for s in symbols if s.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch"))}
    # Ours are all there, those of the objects for Hopper among them.
    assert not {s for s in symbols if "4taut" in s}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_torch_without_cuda_leaves_it_alone(library, monkeypatch):
    assert _native.libraries.causes["cuda"] == "this torch was built without CUDA"
    assert set(GPU_KERNELS.values()) == {"reference"}
    monkeypatch.setattr(_native, "_PACKAGE_DIR", library.parent)
    refusing = _native._Libraries()
    refusing._load_cuda()
    assert refusing.cuda is None
    assert "libtaut_cuda.so did not load" in refusing.causes["cuda"]
    assert "libtorch_cuda.so" in refusing.causes["cuda"]


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_torch_with_cuda_loads_it():
    assert _native.libraries.causes.get("cuda") is None
    assert {name for name, server in GPU_KERNELS.items() if server == "native"} == set(NATIVE)
    for name in set(NATIVE) - {"attention_plan"}:
        handed_on = getattr(torch.ops.taut_triton, name).default
        assert (
            str(handed_on._schema).split("(", 1)[1]
            == str(OPS[name].overload._schema).split("(", 1)[1]
        )


def imports_with(**environment):
    code = "import taut; from taut.info import report; print(report()['libtaut_cuda'])"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=PACKAGE.parent,
        capture_output=True, text=True,
    )  # fmt: skip


def test_choice_of_kernels():
    wrong = imports_with(TAUT_CUDA_KERNELS="cutlass")
    assert "TAUT_CUDA_KERNELS must be auto, native or triton, got 'cutlass'" in wrong.stderr
    assert "not loaded" in imports_with(TAUT_CUDA_KERNELS="triton").stdout
    if torch.version.cuda is None:
        forced = imports_with(TAUT_CUDA_KERNELS="native")
        assert "TAUT_CUDA_KERNELS=native: this torch was built without CUDA" in forced.stderr
