"""Build taut's native libraries with CMake + ninja and place them inside the package.

Environment (all optional): TAUT_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS. The table
in README.md says what each does.
"""

import fcntl
import filecmp
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Machine code for A100, H100 and B200 (8.0 serves 8.x, too), PTX for whatever comes.
CUDA_ARCHITECTURES = "8.0+PTX;9.0a;10.0a"
ROOT = Path(__file__).resolve().parent
# Of bench, what needs the repository around it: not part of the wheel.
REPOSITORY_ONLY = {
    "cuda_instructions", "cuda_kernels", "distil_binary", "gpu_record", "performance",
}  # fmt: skip


def environment_choice(name: str, accepted: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, default)
    if value not in accepted:
        sys.exit(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    return value


def find_nvcc() -> str | None:
    """The CUDA compiler to use; None to build without CUDA."""
    import torch

    choice = environment_choice("TAUT_CUDA", ("auto", "0", "1"), "auto")
    if choice == "0" or choice == "auto" and torch.version.cuda is None:
        return None
    if home := os.environ.get("CUDA_HOME"):
        nvcc = shutil.which("nvcc", path=str(Path(home) / "bin"))
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None and choice == "1":
        where = "$CUDA_HOME/bin" if home else "PATH and /usr/local/cuda/bin"
        sys.exit(f"TAUT_CUDA=1: there is no nvcc in {where}")
    return nvcc


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST ("8.0+PTX;9.0") as CMake writes it ("80;90a-real").

    9.0 stands for 9.0a, without which there are no Hopper kernels; its PTX, which other GPUs could
    not take, stays 9.0's.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    found = []
    for name in wanted.replace(";", " ").replace(",", " ").split():
        number = name.removesuffix("+PTX").replace(".", "")
        if not re.fullmatch(r"\d{2,3}[a-f]?", number):
            sys.exit(f"TORCH_CUDA_ARCH_LIST must hold versions like 9.0a, got {name!r}")
        if number == "90":
            found += ["90a-real", "90-virtual"] if name.endswith("+PTX") else ["90a-real"]
        else:
            found.append(number if name.endswith("+PTX") else f"{number}-real")
    return ";".join(found)


def replace_if_changed(source: Path, target: Path) -> None:
    """Copy a library in one step: a process that has the old one loaded keeps it."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    partial = target.with_suffix(".partial")
    shutil.copy2(source, partial)
    partial.replace(target)


class BuildModules(build_py):
    """Leaves REPOSITORY_ONLY out."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if package != "taut.bench" or m[1] not in REPOSITORY_ONLY]


class CMakeBuild(build_ext):
    """Builds every native library, taut._C among them, in one CMake run."""

    def run(self) -> None:
        import pybind11
        import torch
        from torch.utils import cpp_extension

        nvcc = find_nvcc()
        in_place = self.inplace or self.editable_mode
        package_dir = ROOT / "python/taut" if in_place else Path(self.build_lib).resolve() / "taut"
        cache_tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build_dir = ROOT / "build" / f"{cache_tag}-{'cuda' if nvcc else 'cpu'}"
        includes = ";".join(cpp_extension.include_paths())
        arguments = [
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            # Named anew every time: an isolated build's ninja is gone by the next one.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DTAUT_TORCH_INCLUDE_DIRS={includes}",
            f"-DTAUT_TORCH_LIB_DIR={Path(torch.__file__).parent / 'lib'}",
            f"-DTAUT_VERSION={self.distribution.get_version()}",
            f"-DTAUT_NVCC={nvcc or ''}",
            f"-DTAUT_CUDA_ARCHITECTURES={cuda_architectures() if nvcc else ''}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        build_dir.mkdir(parents=True, exist_ok=True)
        package_dir.mkdir(parents=True, exist_ok=True)
        with open(build_dir / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(["cmake", *arguments], check=True)
            subprocess.run(["cmake", "--build", str(build_dir), "--parallel", jobs], check=True)
            for built in (build_dir / "taut").glob("*.so"):
                replace_if_changed(built, package_dir / built.name)


setup(
    packages=[
        "taut",
        "taut.bench",
        "taut.encoder",
        "taut.fakes",
        "taut.ops",
        "taut.reference",
        "taut.triton_kernels",
    ],
    package_dir={
        "taut": "python/taut",
        "taut.bench": "bench",
        "taut.triton_kernels": "triton_kernels",
    },
    package_data={"taut": ["py.typed"]},
    exclude_package_data={"taut.bench": ["results/*", "results/*/*", "*.sh", "*.cu", "*.txt"]},
    ext_modules=[Extension("taut._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildModules},
)
