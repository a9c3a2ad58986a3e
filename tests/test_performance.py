"""PERFORMANCE.md: what the records say, and what no record has."""

import json

import pytest

import bench_records
from taut.bench import performance


@pytest.fixture
def old():
    return bench_records.document()


def test_performance_md_is_what_the_records_say():
    written = performance.OUTPUT.read_text(encoding="utf-8")
    assert written == performance.text(performance.RESULTS), "python -m taut.bench.performance"


def test_performance_of_a_record(tmp_path, old):
    (tmp_path / "made-up-2-cores.json").write_text(json.dumps(old))
    text = performance.text(tmp_path)
    for needed in (
        "## made-up-2-cores (Made-up CPU)",
        "2026-11-21 09:30, commit 0123456789ab",
        "| `packed_linear` | bf16 | 3 | 400 GFLOP/s | 91 % | 0.98 x onednn prepacked",
        "| **taut w8a8** | 25 300 | 2.0 % |  | 0.9993 | 0.9986 | 23.1 |",
        "Peers not installed: openvino, ctranslate2.",
    ):
        assert needed in text, needed


def test_what_never_ran_is_what_no_row_names(tmp_path, old):
    def never_ran(variant, device):
        for benchmark in old["benchmarks"]:
            extra = benchmark["extra_info"]
            if extra["role"] == "taut" and extra["op"] == "varlen_attention":
                extra.update(variant=variant, device=device)
        (tmp_path / "a.json").write_text(json.dumps(old))
        lines = performance.text(tmp_path).split("## Never ran")[1].splitlines()
        rows = [
            line.split(" | ") for line in lines if line.startswith("| C") or "Triton on" in line
        ]
        return {row[0].strip("| "): (int(row[2]), row[3]) for row in rows}

    found = never_ran("avx512_bf16", "cpu")
    assert all(ran == 0 and "all of them" in names for ran, names in found.values())
    ran, names = never_ran("amx/tiles", "cpu")["CPU, AMX"]
    assert ran == 1 and "`varlen_attention`" not in names and "`packed_linear`" in names
    assert never_ran("native", "cuda")["CUDA"][0] == 1
    assert never_ran("triton", "cuda")["Triton on a GPU"][0] == 1
    assert never_ran(None, "cuda")["Triton on a GPU"][0] == 1
