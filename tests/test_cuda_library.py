"""libtaut_cuda: what it needs, and how it is loaded or refused. Builds nothing itself: a build with
an nvcc has made the library, and a machine without one has nothing to test here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import taut
from taut import _native
from taut.registry import GPU_KERNELS, OPS

PACKAGE = Path(taut.__file__).parent
LIBRARY = PACKAGE / "libtaut_cuda.so"
NATIVE = (
    "attention_plan",
    "varlen_attention",
    "varlen_attention_backward",
    "varlen_attention_qkvpacked",
    "varlen_attention_qkvpacked_backward",
)
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="built without nvcc")


def undefined_symbols():
    command = ["nm", "--dynamic", "--undefined-only", str(LIBRARY)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_a_machine_with_nvcc_builds_it():
    assert LIBRARY.exists() or os.environ.get("TAUT_CUDA") == "0"


@needs_library
def test_needs_only_the_stable_abi_of_torch():
    symbols = undefined_symbols()
    assert "aoti_torch_get_current_cuda_stream" in symbols
    assert not {s for s in symbols if s.startswith("cuda") or "c104cuda" in s or "at4cuda" in s}
    # C++ symbols of torch, mangled: anything in namespaces at, c10 or torch is not stable.
    assert not {s for s in symbols if s.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch"))}


@needs_library
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_torch_without_cuda_leaves_it_alone():
    assert _native.libraries.causes["cuda"] == "this torch was built without CUDA"
    assert set(GPU_KERNELS.values()) == {"reference"}
    refusing = _native._Libraries()
    refusing._load_cuda()
    assert refusing.cuda is None
    assert "libtaut_cuda.so did not load" in refusing.causes["cuda"]
    assert "aoti_torch_get_current_cuda_stream" in refusing.causes["cuda"]


@needs_library
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
