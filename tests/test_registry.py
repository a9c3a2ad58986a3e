"""The laws that hold for every op, checked by walking the registry."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taut.registry import OPS

ROOT = Path(__file__).parent.parent
SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh"}
STEMS = sorted({op.stem for op in OPS.values()})
COMPOSED = {"encoder_layer"}  # of the kernels of other stems


@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_has_its_rooms(stem):
    rooms = [
        f"python/taut/reference/{stem}.py",
        f"python/taut/fakes/{stem}.py",
        f"python/taut/ops/{stem}.py",
        f"csrc/cpu/{stem}.cpp",
        f"tests/test_{stem}.py",
    ]
    if stem not in COMPOSED:
        rooms += [f"csrc/cpu/{stem}.kernel.cpp", f"triton_kernels/{stem}.py"]
    missing = [room for room in rooms if not (ROOT / room).exists()]
    assert not missing, f"{stem} lacks {missing}"


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_reference_cpu_kernel_and_triton_launcher(name):
    op = OPS[name]
    assert callable(op.reference)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"taut::{name}", "CPU")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"taut::{name}", "Meta")
    if op.triton:
        assert callable(op.triton_launcher)


def test_first_call_may_be_a_compiled_one():
    code = (
        "import torch, taut\n"
        "x = torch.randn(3, 8)\n"
        "compiled = torch.compile(taut.layer_norm, fullgraph=True, backend='eager')\n"
        "assert torch.equal(compiled(x), taut.layer_norm(x))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "python")


def test_no_assembly_outside_its_room():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".cpp", ".h", ".cu", ".cuh"} and "ptx" not in path.parts:
            text = path.read_text()
            assert "asm(" not in text and "asm volatile" not in text, path


def test_file_budget():
    rooms = ("python", "csrc", "triton_kernels", "tests", "bench")
    files = [p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in SOURCES]
    assert len(files) > 50
    long = {p: n for p in files if (n := len(p.read_text().splitlines())) > 600}
    assert not long, long


def test_imports_and_runs_without_native_library(tmp_path):
    """The package works on its reference alone, silent at import, warning once at first use."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "bench", "triton_kernels")
    shutil.copytree(ROOT / "python/taut", tmp_path / "taut", ignore=ignore)
    code = (
        "import warnings, torch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import taut\n"
        f"    assert taut.__file__.startswith({str(tmp_path)!r}), taut.__file__\n"
        "    assert not caught, caught\n"
        "    x = torch.randn(3, 8)\n"
        "    taut.layer_norm(x); taut.layer_norm(x)\n"
        "    assert len(caught) == 1 and 'libtaut_cpu.so was not built' in str(caught[0].message)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path)})
