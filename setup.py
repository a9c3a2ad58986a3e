"""Build taut's native libraries with CMake + ninja and place them inside the package.

Environment (all optional): TAUT_CUDA=auto|0|1, MAX_JOBS, TAUT_AMX_EMULATION=0|1. The table in
README.md says what each does.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def environment_choice(name: str, accepted: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, default)
    if value not in accepted:
        sys.exit(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    return value


class CMakeBuild(build_ext):
    """Builds every native library, taut._C among them, in one CMake run."""

    def run(self) -> None:
        import pybind11
        import torch
        from torch.utils import cpp_extension

        if environment_choice("TAUT_CUDA", ("auto", "0", "1"), "auto") == "1":
            sys.exit("TAUT_CUDA=1: this version has no native CUDA kernels; GPUs run on Triton")
        in_place = self.inplace or self.editable_mode
        package_dir = ROOT / "python/taut" if in_place else Path(self.build_lib).resolve() / "taut"
        cache_tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build_dir = ROOT / "build" / f"{cache_tag}-{'in-place' if in_place else 'wheel'}"
        includes = ";".join(cpp_extension.include_paths())
        arguments = [
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            # Named anew every time: an isolated build's ninja is gone by the next one.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DTAUT_OUTPUT_DIR={package_dir}",
            f"-DTAUT_TORCH_INCLUDE_DIRS={includes}",
            f"-DTAUT_TORCH_LIB_DIR={Path(torch.__file__).parent / 'lib'}",
            f"-DTAUT_VERSION={self.distribution.get_version()}",
            "-DTAUT_AMX_EMULATION=" + environment_choice("TAUT_AMX_EMULATION", ("0", "1"), "0"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", *arguments], check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--parallel", jobs], check=True)


setup(
    packages=[
        "taut",
        "taut.encoder",
        "taut.ops",
        "taut.reference",
        "taut.triton_kernels",
    ],
    package_dir={"taut": "python/taut", "taut.triton_kernels": "triton_kernels"},
    package_data={"taut": ["py.typed"]},
    ext_modules=[Extension("taut._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
