"""Every command and every line of code in the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import binary_models
from taut.demo import default_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
# Commands that another test runs, or that runs the tests: named here with what runs it.
ELSEWHERE = {
    "make test": "this very suite, by .ci/run",
    "taut demo": "make demo runs nothing else",
    "pip install .": "test_wheel.py: pip builds the same wheel",
    "python tests/check_wheel.py": "test_wheel.py",
    "taut bench layer_norm --quick --compare record.json": "test_bench_command.py, without noise",
}


def test_the_two_commands_come_first():
    first_screen = README.splitlines()[:40]
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert any("tokens/s" in line for line in first_screen), "measured results on the first screen"


def test_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command_runs(command, tmp_path):
    (tmp_path / "texts.txt").write_text("one text\nand another\n")
    (tmp_path / "records.jsonl").write_text('{"body": "one text"}\n{"body": "and another"}\n')
    words = [default_model() if w == "DIRECTORY" else w for w in shlex.split(command)]
    if "BIBERT" in words:
        binary_models.save_checkpoint(
            tmp_path / "BIBERT", "bibert", binary_models.random_tensors("bibert")
        )
    folder = tmp_path
    if words[0] == "make":
        folder = ROOT
    elif words[0] == "taut":
        words[:1] = [sys.executable, "-c", "from taut.cli import main; main()"]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
