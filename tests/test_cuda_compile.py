"""CUDA sources compile for every architecture, into the instructions that were meant."""

import re
import subprocess
import sys

import pytest

import cuda_compile
from cuda_compile import ROOT

# {kernel, without template arguments or with all of them:
#  {architecture, or "" for all: patterns of names of instructions it must have}}
INSTRUCTIONS = {
    "ldmatrix_all": {
        "": [r"LDSM\.16\.M88", r"LDSM\.16\.M88\.2", r"LDSM\.16\.M88\.4"]
        + [r"LDSM\.16\.MT88", r"LDSM\.16\.MT88\.2", r"LDSM\.16\.MT88\.4"]
    },
    "mma_bf16": {"": [r"HMMA\.16816\.F32\.BF16"]},
    "mma_f16": {"": [r"HMMA\.16816\.F32"]},
    "mma_tf32": {"": [r"HMMA\.1688\.F32\.TF32"]},
    "mma_s8": {"": [r"IMMA\.16832\.S8\.S8"]},
    # Blackwell has no binary tensor core: it emulates them.
    "mma_b1_and": {
        arch: [r"BMMA\.168128\.AND\.POPC", r"BMMA\.168256\.AND\.POPC"] for arch in ("80", "90a")
    }
    | {"100a": [r"IMMA\..*"]},
    # Hopper makes two AND products of an XOR.
    "mma_b1_xor": {
        "80": [r"BMMA\.168128\.XOR\.POPC", r"BMMA\.168256\.XOR\.POPC"],
        "90a": [r"BMMA\.168128\.AND\.POPC", r"BMMA\.168256\.AND\.POPC"],
        "100a": [r"IMMA\..*"],
    },
    "cp_async_all": {"": [r"LDGSTS\.E", r"LDGSTS\.E\.64", r"LDGSTS\.E\.BYPASS.*\.128.*"]},
    "named_barriers": {"": [r"BAR\.ARV", r"BAR\.SYNC.*", r"SHFL\.BFLY", r"VOTE\.ANY"]},
    "conversions": {
        "": [
            r"F2FP\.BF16.*",
            r"F2FP\.(F16\.F32\.)?PACK_AB",
            r"MUFU\.EX2",
            r"MUFU\.LG2",
            r"MUFU\.TANH",
        ]
        + [r"MUFU\.RCP"]
    },
    "bit_functions": {"": [r"LOP3\.LUT"]},
    "stmatrix_all": {
        "": [r"STSM\.16\.M88", r"STSM\.16\.M88\.2", r"STSM\.16\.M88\.4", r"STSM\.16\.MT88\.4"]
    },
    "bulk_copies": {
        "": [r"UTMALDG\.2D", r"UTMALDG\.3D", r"UTMALDG\.4D", r"UTMASTG\.2D", r"UTMASTG\.3D"]
        + [r"UTMASTG\.4D", r"UBLKCP\.S\.G", r"UBLKCP\.G\.S", r"UTMACCTL\.PF", r"UTMACMDFLUSH"]
        + [r"SYNCS\.EXCH\.64", r"SYNCS\.ARRIVE\..*", r"SYNCS\.PHASECHK\..*", r"SYNCS\.CCTL\.IV"]
        + [r"FENCE\.VIEW\.ASYNC.*"]
    },
    **{
        f"attention_{kind}_kernel<ForwardShape<bf16, {shape}, (Scores){scores}>{end}": {
            "": [r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"]
            + [r"LDGSTS\.E\.BYPASS\.128.*", r"MUFU\.EX2"]
        }
        for scores in (0, 1)  # plain, ALiBi
        for kind, shape, end in (
            ("long", "64, 4, 2", " >"),
            ("long", "128, 8, 1", " >"),
            ("short", "32, 4, 1", ", true>"),
            ("short", "64, 4, 1", ", false>"),
        )
    },
    "lowbit_linear_kernel": {
        "": [r"IMMA\.16832\.S8\.S8", r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS\.128.*"]
    },
    "lowbit_wgmma_kernel": {"": [r"IGMMA\.64x128x32\.S8\.S8", r"LDGSTS\.E\.BYPASS\.128.*"]},
    "lowbit_floats_kernel": {"": [r"HMMA\.16816\.F32(\.BF16)?", r"LDGSTS\.E\.BYPASS\.128.*"]},
    "register_budgets": {"": [r"USETMAXREG\.DEALLOC.*", r"USETMAXREG\.TRY_ALLOC.*"]},
} | {
    f"wgmma_products<{types}, {n}, (Major)0, (Major)0>": {"": [name.replace("@", str(n))]}
    for types, name in {
        "bf16, float": r"HGMMA\.64x@x16\.F32\.BF16",
        "f16, float": r"HGMMA\.64x@x16\.F32",
        "e4m3, float": r"QGMMA\.64x@x32\.F32\.E4M3\.E4M3",
        "signed char, int": r"IGMMA\.64x@x32\.S8\.S8",
        "b1, int": r"BGMMA\.64x@x256\.AND\.POPC",
    }.items()
    for n in (8, 16, 32, 64, 96, 128, 192, 256)
}


@pytest.fixture(scope="module")
def compiled():
    return cuda_compile.compile_all()


def test_kernels_have_their_instructions(compiled):
    missing = set(INSTRUCTIONS)
    for (_, architecture), kernels in compiled.items():
        for kernel in kernels:
            for name in {kernel.name, kernel.name.split("<")[0]} & INSTRUCTIONS.keys():
                missing.discard(name)
                expected = INSTRUCTIONS[name]
                for pattern in expected.get("", []) + expected.get(architecture, []):
                    assert any(re.fullmatch(pattern, i) for i in kernel.instructions), (
                        f"{kernel.name} for sm_{architecture} has no {pattern}: "
                        f"{kernel.notable() or kernel.instructions}"
                    )
    assert not missing, f"no such kernels: {missing}"


def test_nothing_spills(compiled):
    spilling = [
        f"{kernel.name} for sm_{architecture}: {kernel.spills} bytes"
        for (_, architecture), kernels in compiled.items()
        for kernel in kernels
        # Scores 2 is the rare options: softcap, clip, dropout, relative bias.
        if kernel.spills and "(Scores)2" not in kernel.name
    ]
    assert not spilling


def test_table_is_current(compiled, tmp_path):
    """bench/results/cuda_kernels.md is what bench/cuda_kernels.py writes."""
    fresh = tmp_path / "table.md"
    script = ROOT / "bench/cuda_kernels.py"
    subprocess.run([sys.executable, script, "--output", fresh], check=True)
    committed = ROOT / "bench/results/cuda_kernels.md"
    assert fresh.read_text() == committed.read_text(), f"run {script.relative_to(ROOT)} and commit"
