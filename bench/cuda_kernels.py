"""Write what the compiler made of every CUDA kernel: registers, spills, matrix instructions."""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import cuda_compile  # noqa: E402

HEADER = """# CUDA kernels as compiled

Written by `bench/cuda_kernels.py` with nvcc {version}; no GPU is involved. Shared memory is what a
kernel declares itself, without the dynamic part. Instructions are counted in the machine code, not
in what runs. Notes are what ptxas says of wgmma: C7512, that products are serialized for want of
registers; C7517 and C7519, that it put in a wait or a fence. `tests/cuda` holds one kernel per
wrapper of `csrc/cuda/ptx`. Of fp16, whose kernels differ from those of bf16 by the type in the
instructions only, sm_90a stands for all.
"""


def nvcc_version() -> str:
    """As in 13.0.88."""
    out = subprocess.run(
        [cuda_compile.find_nvcc(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return out.split(", V")[1].split()[0]


def table() -> str:
    """All kernels, one table per source."""
    parts = [HEADER.format(version=nvcc_version())]
    rows: dict[Path, list[str]] = {}
    for (source, architecture), kernels in cuda_compile.compile_all().items():
        for k in kernels:
            notable = ", ".join(f"{n} {name}" for name, n in k.notable().items())
            notes = ", ".join(k.notes)
            cells = (
                f"{k.name} | sm_{architecture} | {k.registers} | {k.shared} | {k.spills} | {notes}"
            )
            rows.setdefault(source, []).append(f"| {cells} | {notable} |")
    for source, lines in rows.items():
        parts.append(
            f"\n## {source.relative_to(ROOT)}\n\n"
            "| kernel | for | registers | shared bytes | spilled bytes | notes | instructions |\n"
            "|---|---|---|---|---|---|---|\n" + "\n".join(sorted(lines)) + "\n"
        )
    return "".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/cuda_kernels.md")
    output = parser.parse_args().output
    output.write_text(table())
