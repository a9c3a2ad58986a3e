"""Compiles CUDA sources without a GPU, and reads what ptxas and the machine code say of a kernel."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from torch.utils import cpp_extension

import sass

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "cuda"
ARCHITECTURES = ("80", "90a", "100a")
# Of low-bit weights, the widths with the least and the most to expand.
KERNELS = (
    "attention_forward_bf16",
    "attention_forward_f16",
    "attention_forward_bf16_sm90a",
    "attention_forward_f16_sm90a",
    "attention_backward_bf16",
    "attention_backward_f16",
    "attention_backward_bf16_sm90a",
    "attention_backward_f16_sm90a",
    "attention_plan",
    "binary_attention",
    "binary_gemm",
    "binary_gemm_sm90a",
    "lowbit_gemm_3",
    "lowbit_gemm_8",
    "lowbit_gemm_sm90a",
    "quantize",
)
FLAGS = (
    "-std=c++17",
    "-O3",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
# The products of matrices, what moves their operands, and the stack, which is where spills go.
NOTABLE = re.compile(
    r"(HMMA|IMMA|BMMA|QMMA|OMMA|HGMMA|IGMMA|QGMMA|BGMMA|LDSM|STSM|LDGSTS|UTMALDG|UTMASTG|UBLKCP"
    r"|SYNCS|USETMAXREG|LDL|STL)\b"
)


@dataclass(frozen=True)
class Kernel:
    """One kernel of one source, compiled for one architecture."""

    name: str
    registers: int
    shared: int  # bytes the kernel declares itself: dynamic shared memory is not known here
    spills: int  # bytes stored and loaded
    notes: list[str]  # codes of what ptxas had to do to wgmma, as C7512: serialized
    instructions: dict[str, int]  # by full name, as in HMMA.16816.F32.BF16
    loops: list[dict[str, int]]  # of one turn of every innermost loop with matrix products
    hidden: list[dict[str, int]]  # of those, what runs between the last wgmma and the wait for it

    def notable(self) -> dict[str, int]:
        """The instructions worth a table, under their names up to the first point."""
        return {k: n for k, n in sorted(self.instructions.items()) if NOTABLE.match(k)}


@cache
def find_nvcc() -> Path:
    """The CUDA compiler: the one on PATH, or the one that pip installed."""
    if found := shutil.which("nvcc"):
        return Path(found)
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else ():
        if (nvcc := Path(place) / "cu13/bin/nvcc").exists():
            return nvcc
    raise FileNotFoundError("no nvcc: neither on PATH nor in site-packages")


@cache
def find_cuobjdump() -> Path:
    """The disassembler that comes with Triton."""
    spec = find_spec("triton")
    return Path(spec.submodule_search_locations[0]) / "backends/nvidia/bin/cuobjdump"


def sources() -> list[Path]:
    """What is compiled: kernels of ops, and those of the wrappers."""
    kernels = [ROOT / f"csrc/cuda/{name}.cu" for name in KERNELS]
    return kernels + sorted((ROOT / "tests/cuda").glob("*.cu"))


def architectures(source: Path) -> tuple[str, ...]:
    """What a source is compiled for, by its name.

    <stem>_sm90a.cu has wgmma, <stem>_sm90.cu bulk copies; <stem>_f16.cu differs from its bf16 twin
    by the type in the instructions only, so one architecture stands for all. The launchers of
    binary_<stem>.cu leave what emulates products of bits to Triton.
    """
    if source.stem.endswith("_f16"):
        return ("90a",)
    if source.stem.endswith("_sm90a"):
        return ("90a",)
    if source.stem.startswith("binary_"):
        return ("80", "90a")
    if source.stem.endswith("_sm90"):
        return ("90a", "100a")
    return ARCHITECTURES


@cache
def _inputs_key() -> bytes:
    headers = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh"))
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(sass.__file__).read_bytes())
    digest.update(subprocess.run([find_nvcc(), "--version"], capture_output=True).stdout)
    for header in headers:
        digest.update(header.read_bytes())
    return digest.digest()


def _demangle(names: list[str]) -> dict[str, str]:
    out = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plain = [re.sub(r"^void |taut::(ptx::|cuda::)?|\(anonymous namespace\)::", "", n) for n in out]
    return dict(zip(names, (re.sub(r"\([^()]*\)$", "", n) for n in plain), strict=True))


def _ptxas(log: str) -> dict[str, tuple[int, int, int, list[str]]]:
    """{mangled kernel: (registers, shared bytes, spilled bytes, notes)} from `-Xptxas -v`."""
    notes = re.findall(r"\((C\d+)\).* function '(\w+)'", log)
    kernels = {}
    for part in log.split("Compiling entry function '")[1:]:
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        name = part.split("'")[0]
        own = sorted({code for code, function in notes if function == name})
        kernels[name] = (registers, int(shared[1]) if shared else 0, spills, own)
    return kernels


def run_nvcc(arguments: list) -> str:
    """What nvcc printed; fails with it."""
    run = subprocess.run([find_nvcc(), *arguments], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"nvcc {arguments[-1]}:\n{run.stdout}{run.stderr}")
    return run.stderr


@cache
def compile_source(source: Path, architecture: str) -> list[Kernel]:
    """Compile a source for one architecture. Fails with what nvcc printed."""
    digest = hashlib.sha256(_inputs_key() + source.read_bytes() + architecture.encode())
    cached = OUTPUT / f"{source.stem}-{architecture}-{digest.hexdigest()[:20]}.json"
    if not cached.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        cubin = cached.with_suffix(f".{os.getpid()}.cubin")
        arguments = [*FLAGS, f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", "-cubin", "-o", cubin]
        arguments.append(f"-gencode=arch=compute_{architecture},code=sm_{architecture}")
        arguments += [f"-isystem={path}" for path in cpp_extension.include_paths()]
        log = run_nvcc([*arguments, source])
        listing = subprocess.run(
            [find_cuobjdump(), "-sass", cubin], capture_output=True, text=True, check=True
        ).stdout
        cubin.unlink()
        usage, code = _ptxas(log), sass.functions(listing)
        turns = {k: sass.product_loops(code[k]) for k in usage}
        plain = _demangle(list(usage))
        kernels = [
            Kernel(
                plain[k],
                *usage[k],
                sass.count(code[k]),
                [sass.count(turn) for turn in turns[k]],
                [sass.count(sass.under_products(turn)) for turn in turns[k]],
            )
            for k in usage
        ]
        kernels.sort(key=lambda kernel: kernel.name)
        partial = cached.with_suffix(f".{os.getpid()}.json")
        partial.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
        partial.replace(cached)
    return [Kernel(**kernel) for kernel in json.loads(cached.read_text())]


def compile_all() -> dict[tuple[Path, str], list[Kernel]]:
    """Every source for each of its architectures."""
    jobs = [(source, a) for source in sources() for a in architectures(source)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(lambda job: compile_source(*job), jobs), strict=True))
