"""Every Triton kernel compiles for every GPU we name, and fits its shared memory."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Shared memory of a block: 99 KB is the least of the NVIDIA targets' families (sm_86, sm_120).
TARGETS = {
    "cuda:80": 99 * 1024,
    "cuda:90": 99 * 1024,
    "cuda:100": 99 * 1024,
    "hip:gfx942": 64 * 1024,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """({target: {kernel: most bytes of shared memory}}, {target: {kernel: fewest products of int8}}),
    from one process for every two targets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    targets = list(TARGETS)
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "triton_compile.py", *targets[part::2]],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for part in range(2)
    ]  # fmt: skip
    kernels = {target: defaultdict(int) for target in TARGETS}
    products = {target: {} for target in TARGETS}
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        for backend, arch, kernel, shared, int8 in (line.split() for line in out.splitlines()):
            found, fewest = kernels[f"{backend}:{arch}"], products[f"{backend}:{arch}"]
            found[kernel] = max(found[kernel], int(shared))
            fewest[kernel] = min(fewest.get(kernel, int(int8)), int(int8))
    return kernels, products


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(compiled, target):
    sources = "".join(p.read_text() for p in (TESTS.parent / "triton_kernels").glob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE))
    assert len(kernels) > 10
    shared = compiled[0][target]
    assert set(shared) == kernels
    assert max(shared.values()) <= TARGETS[target], dict(shared)


@pytest.mark.parametrize("kernel", ("linear", "attention", "qk_attention"))
def test_products_of_signs_are_of_int8(compiled, kernel):
    """On what emulates products of bits, where the native launchers leave them to Triton."""
    assert compiled[1]["cuda:100"][f"_binary_{kernel}_kernel"] > 0
