"""taut bench: what it refuses, prints, compares and writes; once with the real suite."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

import bench_records
from bench_records import scaled
from taut.bench import command, merge, record, report, table
from taut.bench.compare import changes
from taut.bench.session import in_fresh_process
from taut.text_io import InputError

TAUT = lambda extra: extra["role"] == "taut"  # noqa: E731
NORM = lambda extra: extra["op"] == "layer_norm" and extra["role"] == "taut"  # noqa: E731


@pytest.fixture
def old():
    return bench_records.document()


def regressed(old, new):
    found = changes(record.parse(old), record.parse(new))
    return [f"{c.row.group}, {c.row.contender}" for c in found if c.regressed]


# ---- compare


def test_an_op_that_got_slower_is_found(old):
    assert regressed(old, old) == []
    assert regressed(old, scaled(old, 1.3, NORM)) == [
        "layer_norm | 512 x 768 | fp32, taut", "layer_norm | 4096 x 768 | fp32, taut"
    ]  # fmt: skip
    assert regressed(old, scaled(old, 1.04, NORM)) == [], "5 % are always noise"
    assert regressed(old, scaled(old, 0.5, NORM)) == [], "faster"


def test_a_machine_that_got_slower_is_no_regression(old):
    slower = scaled(old, 1.5)
    assert regressed(old, slower) == []
    assert len(regressed(old, scaled(slower, 1.3, NORM))) == 2
    assert len(regressed(old, scaled(old, 1 / 1.5, lambda e: e["role"] == "peer"))) == len(
        [b for b in old["benchmarks"] if TAUT(b["extra_info"])]
    ), "the machine got faster, taut did not"


def test_a_peer_of_another_version_says_nothing_of_the_machine(old):
    new = scaled(old, 0.5, lambda e: e["role"] == "peer")
    for benchmark in new["benchmarks"]:
        if benchmark["extra_info"]["role"] == "peer":
            benchmark["extra_info"]["peer_version"] = "torch 2.14.0"
    assert regressed(old, new) == []


def test_roofs_stand_in_for_missing_peers(old):
    old["benchmarks"] = [b for b in old["benchmarks"] if TAUT(b["extra_info"])]
    slower = scaled(old, 1.5)
    assert len(regressed(old, slower)) == len(old["benchmarks"])
    slower["machine_info"]["roofs"] = {k: v / 1.5 for k, v in bench_records.ROOFS.items()}
    assert regressed(old, slower) == []


def test_what_the_spread_covers_is_noise(old):
    """Twice where it says nothing of what differs between processes."""
    for spread, processes, slower in ((0.4, 5, 2), (0.6, 5, 0), (0.2, 1, 2), (0.4, 1, 0)):
        new = scaled(old, 1.5, NORM)
        for benchmark in new["benchmarks"]:
            if NORM(benchmark["extra_info"]):
                benchmark["stats"]["iqr"] = spread * benchmark["stats"]["median"]
                benchmark["extra_info"]["processes"] = processes
        assert len(regressed(old, new)) == slower


def test_a_machine_of_uneven_speed_hides_what_is_smaller(old):
    new, groups = bench_records.document(), sorted({b["group"] for b in old["benchmarks"]})
    for benchmark in new["benchmarks"]:
        factor = 1.2 if groups.index(benchmark["group"]) % 2 else 0.8
        for name in ("median", "iqr", "q1", "q3", "min", "max"):
            benchmark["stats"][name] *= factor
    assert regressed(old, scaled(new, 1.2, NORM)) == []
    assert len(regressed(old, scaled(new, 4.0, NORM))) == 2


@pytest.mark.parametrize("name, value", [("device", "other-4-cores"), ("threads", 4)])
def test_other_machines_are_refused(old, name, value):
    new = bench_records.document()
    new["machine_info"][name] = value
    with pytest.raises(InputError, match=f"cannot compare: the old record has {name} .*{value}"):
        regressed(old, new)


def test_records_without_a_common_case_are_refused(old):
    new = bench_records.document()
    old["benchmarks"], new["benchmarks"] = old["benchmarks"][:9], new["benchmarks"][-9:]
    with pytest.raises(InputError, match="none of the cases"):
        regressed(old, new)


def test_rows_that_failed_their_check_do_not_count(old):
    rows = len(record.parse(old).rows)
    old["benchmarks"][0]["extra_info"]["correct"] = False
    assert len(record.parse(old).rows) == rows - 1


# ---- the table


def printed(document):
    console = Console(file=io.StringIO(), width=140)
    command.show(record.parse(document), console)
    return console.file.getvalue()


def test_the_table_says_everything_once(old):
    text = printed(old)
    for needed in ("varlen_attention", "sdpa padded", "298 GFLOP/s", "68 %", "30.0 GB/s",
                   "25 300 tokens/s", "2.00 x", "1.0e-06", "2.0 %"):  # fmt: skip
        assert needed in text, needed
    assert text.count("openvino, ctranslate2") == 1
    assert text.count("constant 512, 12 heads, d=64") == 2, "once per group, for fp32 and bf16"


def test_failures_are_told(old):
    old["failures"] = {"bench_norm.py::test_norm[x]": "taut is wrong [its error is 3]"}
    assert "FAILED bench_norm.py::test_norm[x]: taut is wrong [its error is 3]" in printed(old)


def test_what_was_skipped_is_told_once_per_reason(old):
    reason = "ImportError: no [x] here"
    old["skipped"] = {f"encode.py::test_encode[encode | {case} | mixed | {name}]": reason
                      for case in ("a", "b") for name in ("openvino bf16", "openvino int8")}  # fmt: skip
    assert printed(old).count(f"openvino bf16, openvino int8: {reason}") == 1
    assert report.page(record.parse(old)).count(f"openvino bf16, openvino int8: {reason}") == 1


def test_what_is_measured_across_ops_has_a_table_of_its_own(old):
    overhead = bench_records.benchmark(
        "overhead", "layer_norm", "layer_norm, grad mode", "fp32", "taut", 4e-6
    )
    old["benchmarks"].append(overhead)
    text = printed(old)
    assert text.index("layer_norm, grad mode") > text.index("\noverhead")
    assert "250 000 calls/s" in text


def test_a_peer_is_held_against_what_is_as_exact(old):
    (group,) = (g for name, g in record.parse(old).groups().items() if "sorted" in name)
    by_name = {row.contender: row for row in group}
    int8, bf16 = by_name["onnxruntime int8"], by_name["transformers bf16"]
    assert record.advantage(int8, group) == pytest.approx(25300 / 8100)  # not ternary's
    assert record.advantage(bf16, group) == pytest.approx(17500 / 2390)


@pytest.mark.parametrize(
    "value, text", [(2.5, "2.50 s"), (0.0321, "32.1 ms"), (4.56e-5, "45.6 us"), (1e-9, "0.00 us")]
)
def test_seconds(value, text):
    assert table.seconds(value) == text


# ---- merging


def process_of(document, factor, roof_factor=1.0):
    """What session.run gives: the document with its rounds, here all times multiplied."""
    made = scaled(document, factor)
    for row in made["benchmarks"]:
        row["fullname"] = f"bench.py::{row['name']}-{row['group']}"
        row["stats"]["data"] = [row["stats"]["median"]] * 3
    roofs = made["machine_info"]["roofs"]
    made["machine_info"]["roofs"] = {name: rate * roof_factor for name, rate in roofs.items()}
    return made | {"failures": {}, "skipped": {}}


def test_rounds_of_all_processes_are_pooled(old):
    processes = [process_of(old, factor) for factor in (1.0, 3.0, 1.0, 3.0, 1.5)]
    document = merge.merged(processes)
    assert document["machine_info"]["processes"] == 5
    for row, before in zip(document["benchmarks"], old["benchmarks"], strict=True):
        stats, median = row["stats"], before["stats"]["median"]
        assert stats["rounds"] == len(stats["data"]) == 15
        assert stats["median"] == pytest.approx(1.5 * median)
        assert stats["iqr"] == pytest.approx(2 * median), "what differs between processes is spread"
        assert stats["max"] == pytest.approx(3 * median)


def test_roofs_are_the_medians_of_the_processes(old):
    processes = [process_of(old, 1.0, factor) for factor in (1.0, 0.5, 0.1)]
    document = merge.merged(processes)
    assert document["machine_info"]["roofs"]["bf16"] == bench_records.ROOFS["bf16"] / 2
    shares = [row["extra_info"]["roof_share"] for row in old["benchmarks"]]
    doubled = [row["extra_info"]["roof_share"] for row in document["benchmarks"]]
    assert doubled == pytest.approx([2 * share for share in shares])


def test_the_largest_error_is_recorded(old):
    processes = [process_of(old, 1.0) for _ in range(3)]
    processes[1]["benchmarks"][0]["extra_info"]["error"] = 1.5e-6
    row = merge.merged(processes)["benchmarks"][0]
    assert row["extra_info"]["error"] == 1.5e-6 and row["stats"]["rounds"] == 9


def test_what_failed_or_was_skipped_in_one_process(old):
    first, second = process_of(old, 1.0), process_of(old, 2.0)
    names = [row["fullname"] for row in first["benchmarks"]]
    failed, slow, absent = names[0], names[1], "bench.py::absent"
    first["failures"] = {failed: "wrong"}
    second["failures"] = {names[2]: "wrong, too"}
    second["skipped"] = {slow: "one call takes 9 s", absent: "is not installed"}
    second["benchmarks"] = [b for b in second["benchmarks"] if b["fullname"] != slow]
    first["skipped"] = {absent: "is not installed"}
    document = merge.merged([first, second])
    assert document["failures"] == {failed: "wrong", names[2]: "wrong, too"}
    assert document["skipped"] == {absent: "is not installed"}
    assert [row["fullname"] for row in document["benchmarks"]] == [names[1], *names[3:]]
    assert document["benchmarks"][0]["stats"]["rounds"] == 3


# ---- processes


def who(folder):
    """What names an interpreter; the folder is what it is given."""
    assert folder.is_dir()
    return os.getpid(), hash("a text")


def test_processes_are_fresh_interpreters(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    found = [in_fresh_process(who, tmp_path) for _ in range(2)]
    processes, hashes = zip(*[*found, who(tmp_path)], strict=True)
    assert len(set(processes)) == len(set(hashes)) == 3


def test_a_process_that_dies_is_told():
    with pytest.raises(SystemExit, match="a process of the suite died, its exit code is 3"):
        in_fresh_process(os._exit, 3)


# ---- the command


def taut(*arguments, **environment):
    code = "from taut.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "bench", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


def patched(folder, code, options=""):
    """Environment in which the suite's processes run the code before they import a benchmark."""
    (folder / "patch_of_taut.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTEST_ADDOPTS": f"-p patch_of_taut {options}"}


def test_an_unknown_op_is_wrong_use():
    result = taut("nrm")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "no benchmark of 'nrm'; there is" in result.stderr and "layer_norm" in result.stderr


def test_a_run_has_one_process_at_least():
    result = taut("norm", "--processes", 0)
    assert result.returncode == 2 and "--processes" in result.stderr


NO_CHECKPOINT = """
import taut.demo
from taut.text_io import InputError
def nothing():
    raise InputError("no checkpoint here")
taut.demo.default_model = nothing
"""


@pytest.mark.parametrize(
    "stem, code, options, cause",
    [
        ("overhead", "", "--device=cuda", "no benchmark of overhead for this device"),
        ("encode", NO_CHECKPOINT, "", "nothing can be measured here: no checkpoint here"),
    ],
)
def test_a_stem_that_cannot_run_here_is_wrong_use(tmp_path, stem, code, options, cause):
    """As bench/gpu_check.sh expects."""
    result = taut(stem, "--quick", **patched(tmp_path, code, options))
    assert result.returncode == 2, result.stderr
    *progress, last = result.stderr.splitlines()
    assert last.startswith(f"taut: {cause}") and all(" | " in line for line in progress)


def test_wrong_use_is_told_before_anything_is_measured(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        command.run(["norm"], True, tmp_path / "none" / "x.json", None, None)
    with pytest.raises(InputError, match="cannot read"):
        command.run(["norm"], True, None, tmp_path / "none.json", None)
    for text in ("{", "[]", '{"benchmarks": [{}]}', '{"benchmarks": []}'):
        (tmp_path / "old.json").write_text(text)
        with pytest.raises(InputError, match="is no record of taut bench"):
            command.run(["norm"], True, None, tmp_path / "old.json", None)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pytest.*pip install 'taut\[bench\]'"):
        command.run([], True, None, None, None)


CPU_TIME = "--cpu-time"  # of one thread, which other work on the machine hardly changes
SIX_TIMES = """
import taut
once = taut.layer_norm
def slow(*args, **options):
    for _ in range(5):
        once(*args, **options)
    return once(*args, **options)
taut.layer_norm = slow
"""
WRONG = """
import taut
right = taut.layer_norm
taut.layer_norm = lambda *args, **options: right(*args, **options) + 1
"""


def test_a_slowed_down_op_is_caught(tmp_path):
    """The real suite, twice; the second time every call of one op does its work six times."""
    record = tmp_path / "old.json"
    first = taut("layer_norm", "--quick", "--processes", 2, "--json", record,
                 PYTEST_ADDOPTS=CPU_TIME)  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert "torch" in first.stdout and ", 2 processes" in first.stdout
    for process in (1, 2):
        assert f"process {process}/2, 1/" in first.stderr and "layer_norm | " in first.stderr
    document = json.loads(record.read_text())
    assert document["machine_info"]["processes"] == 2
    assert {b["extra_info"]["op"] for b in document["benchmarks"]} == {"layer_norm"}
    assert not any("data" in b["stats"] for b in document["benchmarks"])
    second = taut("layer_norm", "--quick", "--processes", 1, "--compare", record,
                  **patched(tmp_path, SIX_TIMES, CPU_TIME))  # fmt: skip
    assert second.returncode == 1, second.stdout + second.stderr
    assert "SLOWER layer_norm | " in second.stdout and "Traceback" not in second.stderr


def test_a_wrong_op_is_caught_and_not_shown(tmp_path):
    result = taut("layer_norm", "--quick", "--processes", 1, "--json", tmp_path / "new.json",
                  **patched(tmp_path, WRONG, CPU_TIME))  # fmt: skip
    assert result.returncode == 1
    assert "taut is wrong: its error is" in result.stdout
    document = json.loads((tmp_path / "new.json").read_text())
    assert document["failures"]
    assert {b["extra_info"]["contender"] for b in document["benchmarks"]} == {"torch"}


INTERRUPTED = """
import taut, torch
def stop(x, *args, **options):  # wrong first, which is a failure
    if x.dtype == torch.bfloat16:
        raise KeyboardInterrupt
    return x
taut.layer_norm = stop
"""


def test_an_interrupted_run_leaves_no_record(tmp_path):
    result = taut("norm", "--quick", "--json", tmp_path / "new.json",
                  **patched(tmp_path, INTERRUPTED, CPU_TIME))  # fmt: skip
    assert result.returncode == 130 and "process 2" not in result.stderr
    assert not (tmp_path / "new.json").exists() and "Traceback" not in result.stderr


def test_another_machine_is_refused_before_anything_is_measured(tmp_path, old):
    (tmp_path / "old.json").write_text(json.dumps(old))
    result = taut("norm", "--quick", "--compare", tmp_path / "old.json", PYTEST_ADDOPTS=CPU_TIME)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "cannot compare: the old record has device made-up-2-cores" in result.stderr
