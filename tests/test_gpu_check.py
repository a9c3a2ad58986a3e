"""bench/gpu_check.sh as far as a machine without a GPU can follow it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import bench_records
from taut.bench import performance

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bench/gpu_check.sh"
STAGES = ("device", "build", "test", "probe", "bench", "sanitize")


def run(*arguments, script=SCRIPT):
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)], capture_output=True, text=True
    )


def stages_of(folder):
    return [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]


@pytest.fixture
def failing(tmp_path):
    python = tmp_path / "failing"
    python.write_text("#!/bin/sh\necho no torch here >&2; exit 3\n")
    python.chmod(0o755)
    return python


@pytest.fixture
def measuring(tmp_path):
    """A Python whose suite has two stems and a record for each."""
    (tmp_path / "norm.json").write_text(json.dumps(part("norm", 1e12)))
    (tmp_path / "dense_gemm.json").write_text(json.dumps(part("dense_gemm", 2e12)))
    python = tmp_path / "measuring"
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "  *stems*) echo encode norm dense_gemm ;;\n  *encode*) exit 2 ;;\n"
        f'  *) echo "measuring $4"; for last; do :; done; cp "{tmp_path}/$4.json" "$last" ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    return python


def part(stem, peak):
    document = bench_records.document()
    document["machine_info"].update(device="h999", roofs={"bf16": peak, "memory": 5e12 - peak})
    document["benchmarks"] = [b for b in document["benchmarks"] if b["extra_info"]["stem"] == stem]
    return document


def test_dry_run_shows_every_stage_and_runs_none(tmp_path):
    result = run(tmp_path / "out", "--dry-run")
    assert result.returncode == 0, result.stderr
    for stage in STAGES:
        assert f"{stage}: at most " in result.stdout and f"run_{stage} ()" in result.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_all_of_it_ends_within_nine_minutes():
    text = SCRIPT.read_text()
    total = int(re.search(r"^total=(\d+)", text, re.M)[1])
    limits = {s: int(n) for s, n in re.findall(r"(\w+)\) echo (\d+) ;;", text)}
    assert limits.keys() == set(STAGES) and all(n <= total for n in limits.values())
    patience = int(re.search(r"--kill-after=(\d+)", text)[1])
    assert total + patience + 10 < 9 * 60


def test_what_a_stage_runs_exists():
    text = SCRIPT.read_text()
    for path in ("tests/gpu", "tests/test_cuda_library.py", "tests/simt/test_simt_gpu.py",
                 "bench/gpu_record.py", "tests/test_triton.py"):  # fmt: skip
        assert (ROOT / path).exists()
    for pattern in ("tests/gpu/test_*.py", "tests/test_triton*.py"):
        assert pattern in text and list(ROOT.glob(pattern))
    assert re.search(r"def test_small", (ROOT / "tests/gpu/test_gpu_attention.py").read_text())


def test_a_failing_stage_is_recorded_and_run_again(tmp_path, failing, measuring):
    out = tmp_path / "out"
    assert run(out, "--stages", "bench", "--python", failing).returncode == 1
    (stage,) = stages_of(out)
    assert stage["stage"] == "bench" and stage["status"] == 3
    assert "no torch here" in (out / "bench.log").read_text()

    assert run(out, "--stages", "bench", "--python", measuring).returncode == 0
    again = run(out, "--stages", "bench", "--python", failing)
    assert again.returncode == 0 and "passed before" in again.stdout
    assert run(out, "--stages", "bench", "--python", failing, "--force").returncode == 1


def test_a_suite_that_measured_nothing_has_failed(tmp_path):
    python = tmp_path / "refusing"
    python.write_text('#!/bin/sh\ncase "$*" in *stems*) echo norm ;; *) exit 2 ;; esac\n')
    python.chmod(0o755)
    assert run(tmp_path / "out", "--stages", "bench", "--python", python).returncode == 1


def test_a_suite_that_was_cut_off_goes_on(tmp_path, measuring):
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench-norm.json").write_text(json.dumps(part("norm", 1e12)))
    assert run(out, "--stages", "bench", "--python", measuring).returncode == 0
    log = (out / "bench.log").read_text()
    assert "measuring dense_gemm\n" in log and "measuring norm\n" not in log


def test_a_stem_that_failed_is_measured_again(tmp_path, measuring):
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench-norm.json").write_text(json.dumps(part("norm", 1e12) | {"failures": {"a": "b"}}))
    assert run(out, "--stages", "bench", "--python", measuring).returncode == 0
    assert "measuring norm\n" in (out / "bench.log").read_text()
    assert "failures" not in json.loads((out / "gpu_check.json").read_text())


def test_force_deletes_only_what_is_measured_again(tmp_path, failing):
    kept = tmp_path / "bench-norm.json"
    kept.write_text(json.dumps(part("norm", 1e12)))
    run(tmp_path, "--force", "--dry-run")
    run(tmp_path, "--force", "--stages", "device", "--python", failing)
    assert kept.exists()
    run(tmp_path, "--force", "--stages", "bench", "--python", failing)
    assert not kept.exists()


def test_a_stage_without_time_left_is_left_for_the_next_run(tmp_path, measuring):
    script = tmp_path / "bench/gpu_check.sh"
    script.parent.mkdir()
    script.write_text(re.sub(r"^total=\d+", "total=5", SCRIPT.read_text(), flags=re.M))
    shutil.copy(SCRIPT.parent / "gpu_record.py", script.parent)
    result = run(tmp_path / "out", "--stages", "bench", "--python", measuring, script=script)
    assert result.returncode == 1 and "bench: no time left; run again" in result.stdout
    assert [stage["status"] for stage in stages_of(tmp_path / "out")] == [124]
    assert "did not run" in (tmp_path / "out/gpu_check.log").read_text()


def test_everything_becomes_one_record_and_one_log(tmp_path, measuring):
    out, results = tmp_path / "out", tmp_path / "results"
    out.mkdir()
    results.mkdir()
    (out / "test-test_gpu_norm.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>'
        '<testcase name="c[x]"><failure>1 != 2</failure></testcase></testsuite></testsuites>'
    )
    (out / "probe_binary_sm90a.txt").write_text('{"probes": [{"name": "b1", "tops": 12.5}]}\n')
    (out / "probe_other.txt").write_text('{"probes": [')
    assert run(out, "--stages", "bench", "--python", measuring).returncode == 0
    document = json.loads((out / "gpu_check.json").read_text())
    assert {b["extra_info"]["stem"] for b in document["benchmarks"]} == {"norm", "dense_gemm"}
    assert document["machine_info"]["roofs"] == {"bf16": 2e12, "memory": 4e12}
    check = document["gpu_check"]
    assert check["tests"] == {"test_gpu_norm": {"passed": 1, "skipped": 1, "failed": ["c[x]"]}}
    assert check["probes"]["probe_binary_sm90a"]["probes"] == [{"name": "b1", "tops": 12.5}]
    assert check["probes"]["probe_other"] == '{"probes": ['
    assert check["stages"]["bench"]["status"] == 0
    assert "==== bench\nmeasuring norm\n" in (out / "gpu_check.log").read_text()

    (results / "h999.json").write_text((out / "gpu_check.json").read_text())
    text = performance.text(results)
    assert "## h999" in text and "GPU tests: 1 passed, 1 skipped, 1 failed: c[x]." in text


def test_every_function_of_tests_has_a_process_and_a_record(tmp_path):
    """Of the one that writes nothing too, as when it is killed, and of a test that was cut off."""
    python, out = tmp_path / "testing", tmp_path / "out"
    python.write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$*"\n'
        'case "$*" in *test_small_plan*) exit 137 ;; esac\n'
        'case "$*" in *test_cuda_graph*) cut="<testcase/>" ;; esac\n'
        'echo "<testsuites><testcase name=\'a\'/>$cut</testsuites>" >"${last#*=}"\n'
    )
    python.chmod(0o755)
    assert run(out, "--stages", "test", "--python", python).returncode == 1
    found = json.loads((out / "gpu_check.json").read_text())["gpu_check"]["tests"]
    assert found["test_gpu_attention-test_small_plan"]["failed"] == [
        "test_gpu_attention-test_small_plan did not end"
    ]
    assert found["test_cuda_library"]["passed"] == 1 and len(found) > 90
    assert sum(f["passed"] for f in found.values()) == len(found) - 1
    assert found["test_gpu_attention-test_cuda_graph"]["failed"] == ["cut off"]
    assert not [name for name in found if "compiles" in name]
    assert "tests/gpu/test_gpu_attention.py::test_cuda_graph" in (out / "gpu_check.log").read_text()


def test_refuses_what_it_does_not_know(tmp_path):
    assert "OUT must be a folder" in run().stderr
    assert "stages must be among device,build" in run(tmp_path, "--stages", "bild").stderr
    assert "unknown option --fast" in run(tmp_path, "--fast").stderr
