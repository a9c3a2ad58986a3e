"""Builds the wheel, installs it into a fresh environment and uses it there.

    python tests/check_wheel.py [--torch VERSION ...] [--folder DIR]

One wheel serves every torch >= 2.10: name several versions to try the same file under each. The
environment gets nothing but the wheel, its dependencies and that torch.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

SMOKE_TEST = """
import sys, torch, taut
from taut._native import last_variant, libraries
assert not taut.__file__.startswith({root!r}), taut.__file__
assert "cpu" not in libraries.causes, libraries.causes
x, w, b = torch.randn(5, 384), torch.randn(384), torch.randn(384)
want = torch.nn.functional.layer_norm(x, (384,), w, b)
torch.testing.assert_close(taut.layer_norm(x, w, b), want)
qkv = torch.randn(7, 3, 4, 32)
cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)
q, k, v = (t.transpose(0, 1)[None] for t in qkv[3:].unbind(1))
want = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
out = taut.varlen_attention_qkvpacked(qkv, cu_seqlens)
torch.testing.assert_close(out[3:], want)
assert last_variant("layer_norm") and last_variant("varlen_attention_qkvpacked")
import taut.triton_kernels
print("torch", torch.__version__, "on Python", sys.version.split()[0], "ran", last_variant("layer_norm"))
"""


def build(folder: Path) -> Path:
    """The wheel of this tree, without the CUDA kernels, which take minutes to build."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation",
               "--no-deps", "--wheel-dir", str(folder), str(ROOT)]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "TAUT_CUDA": "0"})
    (wheel,) = folder.glob("taut-*.whl")
    return wheel


def check(wheel: Path, torch_version: str, folder: Path) -> str:
    """What the smoke test prints in a fresh environment with this torch."""
    environment = folder / f"torch-{torch_version}"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    for requirement in (f"torch=={torch_version}", str(wheel)):
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TAUT"))}
    result = subprocess.run(
        [python, "-c", SMOKE_TEST.format(root=str(ROOT))],
        cwd=folder, env=clean, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode != 0:
        raise RuntimeError(f"smoke test under torch {torch_version} failed:\n{result.stderr}")
    return result.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", nargs="+", default=["2.13.0"], metavar="VERSION")
    parser.add_argument("--folder", type=Path, help="where to work [default: a temporary folder]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        wheel = build(folder)
        print(wheel.name, f"{wheel.stat().st_size / 1e6:.1f} MB")
        for version in args.torch:
            print(check(wheel, version, folder))


if __name__ == "__main__":
    main()
