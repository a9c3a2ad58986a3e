"""libtaut_cuda: what it needs, and how it is loaded or refused. Where the build has not made it, since
torch has no CUDA, it is built here for Hopper, its kernels as unoptimized PTX."""

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
        "CMAKE_CUDA_FLAGS": "-Xcicc -O0",
        "TAUT_NVCC": nvcc,
        "TAUT_CUDA_ARCHITECTURES": "90a-virtual",
        "TAUT_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
        "TAUT_TORCH_LIB_DIR": Path(torch.__file__).parent / "lib",
        "TAUT_VERSION": taut.__version__,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    options = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", output, "-GNinja", *options], check=True)
    subprocess.run(["cmake", "--build", output, "--target", "taut_cuda"], check=True)
    return output / "taut" / built.name


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


# With a libtorch_cuda that has a stream only: no tensor is on a GPU, so that every call goes on to
# taut_triton, which is the reference here.
_HAND_ON = """
import ctypes, sys
import torch
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
import taut.op
from taut.registry import OPS
from test_calls import CU_SEQLENS, HEADS, VALID
cuda = ctypes.CDLL(sys.argv[2])
cuda.taut_cuda_last_variant.restype = ctypes.c_char_p
handed_on = set()

def check(name, *args):
    op = OPS[name]
    run = lambda *args: op.reference(*op.complete(args))
    if name not in handed_on:
        taut.op._triton_library.define(op.name + op.schema)
        taut.op._triton_library.impl(op.name, run, "CPU")
        handed_on.add(name)
    got = op.overload._op_dk(torch._C.DispatchKey.CUDA, *args)
    torch.testing.assert_close(got, run(*args), rtol=0, atol=0, equal_nan=True)
    assert cuda.taut_cuda_last_variant(name.encode()) == b"triton", name
    return got

qkv = torch.randn(4, 3, 2, 16)
options = None, torch.ones(2), torch.ones(2, 3), True, 5, -1, 1.5, [1.1, -0.1], 0.25, 7, None
saved = check("varlen_attention", *qkv.unbind(1), CU_SEQLENS, None, *options)
check("varlen_attention_backward", qkv[:, 0], *qkv.unbind(1), *saved, CU_SEQLENS, None, *options)
saved = check("varlen_attention_qkvpacked", qkv, None, CU_SEQLENS, *options)
check("varlen_attention_qkvpacked_backward", qkv[:, 0], qkv, None, *saved, CU_SEQLENS, *options)
for name in (
    "quantize_per_token", "layer_norm_quantize", "pack_bits", "unpack_bits", "binary_attention",
):
    op = OPS[name]
    names = [argument.name for argument in op.overload._schema.arguments]
    check(name, *(VALID[name].get(n) for n in names if n in VALID[name]))
codes, scales = torch.ones(4, 2, 64).to(torch.int8), torch.rand(4, 1)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    rest = CU_SEQLENS, 0.25, torch.ones(2)
    check("binary_qk_attention", HEADS, HEADS, codes.to(dtype), *rest, None, None)
    check("binary_qk_attention", HEADS, HEADS, codes, *rest, scales, dtype)
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_what_is_not_served_is_handed_on_whole(library, tmp_path):
    source, stand_in = tmp_path / "stream.cpp", tmp_path / "libtorch_cuda.so"
    source.write_text(
        'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }'
    )
    name = "-Wl,-soname,libtorch_cuda.so"
    subprocess.run(["g++", "-shared", "-fPIC", name, source, "-o", stand_in], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", _HAND_ON, stand_in, library],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
