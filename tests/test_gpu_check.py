"""bench/gpu_check.sh as far as a machine without a GPU can follow it."""

import json
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "bench/gpu_check.sh"


def run(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True
    )


def test_dry_run_shows_every_stage_and_runs_none(tmp_path):
    result = run(tmp_path / "out", "--dry-run")
    assert result.returncode == 0, result.stderr
    for stage in ("device", "build", "test", "sanitize", "bench"):
        assert f"{stage}: at most " in result.stdout and f"run_{stage} ()" in result.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_stage_runs_exists():
    text = SCRIPT.read_text()
    for path in ("tests/gpu", "tests/test_cuda_library.py", "bench/bench_attention_gpu.py"):
        assert path in text and (SCRIPT.parent.parent / path).exists()


def test_stages_are_picked_and_results_resumed(tmp_path):
    """A failing stage is recorded and counted, a passed one is not run again."""
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho no torch here; exit 3\n")
    failing.chmod(0o755)
    result = run(tmp_path, "--stages", "bench", "--python", failing)
    assert result.returncode == 1
    (line,) = (tmp_path / "stages.jsonl").read_text().splitlines()
    assert json.loads(line)["stage"] == "bench" and json.loads(line)["status"] == 3
    assert "no torch here" in (tmp_path / "bench.log").read_text()

    passing = shutil.which("true")
    assert run(tmp_path, "--stages", "bench", "--python", passing).returncode == 0
    again = run(tmp_path, "--stages", "bench", "--python", failing)
    assert again.returncode == 0 and "passed before" in again.stdout
    assert run(tmp_path, "--stages", "bench", "--python", failing, "--force").returncode == 1


def test_refuses_what_it_does_not_know(tmp_path):
    assert "OUT must be a folder" in run().stderr
    assert "stages must be among device,build" in run(tmp_path, "--stages", "bild").stderr
    assert "unknown option --fast" in run(tmp_path, "--fast").stderr
