"""The benchmark suite: what is timed, checked and recorded, on cases made for it and on one op's."""

import importlib
import json
import math
import operator
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from taut._native import available_isas, libraries
from taut.bench import cases, encoder_peers, lengths, machine, probes, runner
from taut.registry import OPS

ROOT = Path(__file__).parent.parent
STEMS = {op.stem for op in OPS.values()}
CPU = torch.device("cpu")

CASES_FILE = """
import time
import torch
from taut.bench.cases import Case, Work, against

def build(case, device):
    x = torch.arange(4.0)
    return Work(
        runs={
            "taut": lambda: x + 1,
            "off by one": lambda: x + 2,
            "misshapen": lambda: x[:3] + 1,
            "not a number": lambda: x / 0,
            "raises": lambda: x @ torch.ones(5),
            "slow": lambda: time.sleep(0.9) or x + 1,
            "transformers x": lambda: x + 1,
        },
        check=against(x.double() + 1, x + 1),
        tokens=4,
        flops=4,
        bytes=32,
        own={"off by one": {"axes": {"bits": 3}}},
    )

CASES = [Case("op", "text", "fp32", {"rows": 4}, (
    "taut", "off by one", "misshapen", "not a number", "raises", "slow", "flash_attn", "absent",
), build, quick=True)]

def test_made(contender, replay):
    replay(contender)
"""
KEYS = {
    "stem", "op", "contender", "role", "peer_version", "case", "axes", "dtype", "device", "isa",
    "threads", "variant", "tokens", "flops", "bytes", "roof", "roof_share", "error",
    "allowed_error", "correct",
}  # fmt: skip


def run_suite(path, tmp_path, *options):
    """(pytest's result, the record or None)."""
    record = tmp_path / "record.json"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *options, str(path),
         "--quick", f"--benchmark-json={record}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return result, json.loads(record.read_text()) if record.exists() else None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "bench_made.py").write_text(CASES_FILE)
    return run_suite(folder / "bench_made.py", folder, "-p", "taut.bench.conftest")


def test_a_wrong_result_fails_and_is_marked(made):
    result, record = made
    rows = {row["extra_info"]["contender"]: row["extra_info"] for row in record["benchmarks"]}
    assert result.returncode == 1, result.stdout
    assert "3 failed" in result.stdout and "1 passed" in result.stdout, result.stdout
    assert {name for name, row in rows.items() if row["correct"]} == {"taut"}
    assert rows["off by one"]["error"] == 1 and rows["off by one"]["allowed_error"] < 1e-5
    assert "off by one is wrong: its error is 1" in result.stdout


def test_a_peer_that_cannot_take_part_is_skipped_with_the_reason(made):
    result, record = made
    for reason in ("RuntimeError: ", "one call takes ", "flash_attn is not installed",
                   "not available here"):  # fmt: skip
        assert reason in result.stdout, result.stdout
    assert "flash_attn" in record["machine_info"]["peers_missing"]
    assert record["machine_info"]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_contender_may_differ_from_its_case(made):
    rows = {row["extra_info"]["contender"]: row["extra_info"] for row in made[1]["benchmarks"]}
    assert rows["taut"]["axes"] == {"rows": 4}
    assert rows["off by one"]["axes"] == {"rows": 4, "bits": 3}


def test_the_record_of_one_op(tmp_path):
    result, record = run_suite(ROOT / "bench/bench_packing.py", tmp_path, "--cpu-time")
    assert result.returncode == 0, result.stdout
    info = record["machine_info"]
    for key in ("device", "cpu", "isa", "threads", "torch", "taut", "versions", "peers_missing"):
        assert key in info
    assert info["threads"] == 1 and info["device"].endswith("1-core")
    assert {"fp32", "bf16", "int8", "popcount", "memory"} <= info["roofs"].keys()
    assert record["commit_info"] and record["datetime"]
    ours = 0
    for row in record["benchmarks"]:
        extra = row["extra_info"]
        assert extra.keys() >= KEYS
        assert row["group"] == f"{extra['op']} | {extra['case']} | {extra['dtype']}"
        assert extra["contender"] in row["name"] and extra["stem"] == "packing"
        assert extra["correct"] and extra["error"] <= extra["allowed_error"]
        assert row["stats"]["rounds"] >= runner.FEWEST_ROUNDS and row["stats"]["median"] > 0
        if extra["role"] == "taut":
            assert extra["variant"] in available_isas() and extra["peer_version"] is None
            ours += 1
        else:
            assert extra["variant"] is None and extra["peer_version"].startswith("torch ")
    assert ours == len(record["benchmarks"]) / 2


def test_contenders_take_turns_and_the_slow_sit_out():
    order = []

    def timer(run, calls):
        order.append(run())
        return durations[run()] * 1.0

    durations = {"a": 1.0, "b": 1.0, "slow": 4.0}
    runs = {name: lambda name=name: name for name in durations}
    seconds = runner.interleaved(runs, timer, share=20.0, once=durations)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 20, "b": 20, "slow": 5}
    fast = [name for name in order if name != "slow"]
    assert fast == ["a", "b", "b", "a"] * 10
    at = [i for i, name in enumerate(order) if name == "slow"]
    assert all(6 <= b - a <= 12 for a, b in zip(at, at[1:], strict=False)), at


def test_calls_longer_than_their_share_take_the_fewest_rounds():
    durations = {"short": 1.0, "long": 30.0, "half": 10.0}
    runs = {name: lambda name=name: name for name in durations}
    seconds = runner.interleaved(runs, lambda run, calls: durations[run()], 20.0, durations)
    assert {name: len(times) for name, times in seconds.items()} == {
        "short": 20, "long": 3, "half": 5,
    }  # fmt: skip


def test_processes_share_the_rounds():
    durations = {"short": 1.0, "long": 30.0, "half": 10.0}
    runs = {name: lambda name=name: name for name in durations}
    seconds = runner.interleaved(
        runs, lambda run, calls: durations[run()], 20.0, durations, processes=5
    )
    assert {name: len(times) for name, times in seconds.items()} == {
        "short": 4, "long": 1, "half": 1,
    }  # fmt: skip


@pytest.mark.parametrize("process", [1, 2])
def test_encoders_are_measured_by_the_first_process(tmp_path, process):
    options = (f"--process={process}", "--device=cpu", "--collect-only")
    result, _ = run_suite(ROOT / "bench/encode.py", tmp_path, *options)
    assert ("[encode | minilm" in result.stdout) == (process == 1), result.stdout


def test_short_calls_are_timed_together():
    seen = []

    def timer(run, calls):
        seen.append(calls)
        return 1e-6

    runner.interleaved({"short": lambda: None}, timer, share=1e-3, once={"short": 1e-6})
    assert set(seen) == {math.ceil(runner.SLICE / 1e-6)} and len(seen) == runner.FEWEST_ROUNDS


def test_what_counts_as_an_error():
    exact = torch.tensor([1.0, 2.0]).double()
    assert cases.largest_difference(torch.tensor([1.0, 2.5]), exact) == 0.5
    assert math.isnan(cases.largest_difference(torch.ones(3), exact))
    assert math.isnan(cases.largest_difference(torch.tensor([1.0, float("nan")]), exact))
    words = torch.tensor([1 << 62, (1 << 62) + 1])
    assert cases.largest_difference(words.roll(1), words) == 2  # too close for fp64
    plain = exact.float() + 1e-3
    assert cases.allowed_error(plain, exact) == pytest.approx(2e-3, rel=1e-2)


def test_a_compiled_peer_is_compiled_by_its_first_call(monkeypatch):
    def compile_nothing(function, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    peer = cases.compiled(torch.neg)
    with pytest.raises(RuntimeError, match="no compiler here"):
        peer(torch.ones(1))


@pytest.mark.parametrize("stem", sorted(STEMS | {"overhead"}))
def test_every_stem_has_cases(stem):
    module = importlib.import_module(f"taut.bench.bench_{stem}")
    assert module.CASES and any(case.quick for case in module.CASES)
    ids = [case.group + "".join(case.devices) for case in module.CASES]
    assert len(ids) == len(set(ids)), "two cases of one name"
    for case in module.CASES:
        assert case.roof in (None, *probes.ARITHMETIC), case.roof
        if stem != "overhead":
            assert case.op in OPS and OPS[case.op].stem == stem
            assert case.contenders[0].startswith("taut") and len(case.contenders) > 1
        assert not (case.quick and "torch compiled" in case.contenders), "takes seconds"


def test_a_peer_in_its_own_process():
    embed = encoder_peers.in_its_own_process(operator.attrgetter, "texts")
    assert embed(encoder_peers.Corpus(["a", "b"], [[1], [2]])) == ["a", "b"]
    with pytest.raises(AttributeError, match="texts"):
        embed(3)
    assert embed(encoder_peers.Corpus(["c"], [[1]])) == ["c"]


def test_openvino_takes_padded_batches(monkeypatch):
    fake = SimpleNamespace(
        convert_model=lambda *_, **options: None,
        compile_model=lambda *_: lambda inputs: [inputs[0][..., None].repeat(4, 2)],
    )
    monkeypatch.setitem(sys.modules, "openvino", fake)
    monkeypatch.setattr(encoder_peers, "_bert", lambda path: None)
    embed = encoder_peers.openvino("anywhere", "f32")
    torch.testing.assert_close(
        embed(encoder_peers.Corpus(["a", "b"], [[1, 2], [3]])), torch.full((2, 4), 0.5)
    )


def test_contenders_settle_and_short_ones_are_woken():
    made = []
    runs = {name: lambda name=name: made.append(name) for name in ("short", "long")}

    def timer(run, calls):
        made.append("timed")
        return 1e-3

    once = {"short": 1e-3, "long": 1.0}
    runner.interleaved(runs, timer, share=1e-9, once=once, settle=1e-3)
    assert made.count("timed") == 2 * runner.FEWEST_LONG_ROUNDS
    assert made.count("short") == runner.FEWEST_LONG_ROUNDS and "long" not in made


def test_encoders_have_cases():
    from taut.bench import encode

    assert {case.axes["order"] for case in encode.CASES} == {"arrival", "sorted"}
    assert {case.axes["batch"] for case in encode.CASES} == {1, 8, 32}
    for case in encode.CASES:  # of one batch the order means nothing
        assert case.axes["order"] == "arrival" or case.axes["texts"] > case.axes["batch"]


# ---- probes


def test_native_probes(isa):
    for kind in probes.ARITHMETIC:
        operations = libraries.module.probe(kind, 0)
        assert operations >= 1024 and libraries.module.probe(kind, 2) == operations
    with pytest.raises(ValueError, match="kind must be fp32, bf16, int8 or popcount, got fp64"):
        libraries.module.probe("fp64", 1)


def test_roofs_are_plausible():
    roofs = probes.roofs(CPU, 1, time.process_time)
    assert 1e9 < roofs["memory"] < 1e12 and roofs["cache"] < 1e13
    assert 1e9 < roofs["fp32"] < 1e12
    # A bf16 or int8 product takes at most the time of an fp32 one, at least a sixtieth of it (AMX).
    assert 0.4 * roofs["fp32"] < roofs["bf16"] < 64 * roofs["fp32"]
    assert 0.2 * roofs["fp32"] < roofs["int8"] < 128 * roofs["fp32"]
    assert 2 * roofs["fp32"] < roofs["popcount"] < 128 * roofs["fp32"]


def test_roof_share():
    work = cases.Work({}, lambda *_: {}, tokens=1, flops=50.0, bytes=10.0)
    roofs = {"fp32": 100.0, "memory": 40.0}
    share = machine.roof_share(roofs, "fp32", work, seconds=1.0)
    assert share == {"roof": "fp32", "bandwidth": "memory", "roof_share": 0.5}
    assert machine.roof_share(roofs, None, work, seconds=1.0)["roof_share"] == 0.25
    assert machine.roof_share(roofs | {"cache": 1e3}, None, work, 1.0)["bandwidth"] == "cache"


# ---- lengths


@pytest.mark.parametrize(
    "name, median, low, high",
    [
        ("uniform 128", 77, 26, 128),
        ("uniform 512", 307, 102, 512),
        ("normal 256", 256, 3, 512),
        ("sentence pairs", 48, 3, 512),
        ("queries", 24, 3, 512),
        ("300", 300, 300, 300),
    ],
)
def test_distributions(name, median, low, high):
    drawn = torch.tensor(lengths.draw(name, 4096)).float()
    assert drawn.min() >= low and drawn.max() <= high
    assert drawn.median().item() == pytest.approx(median, rel=0.06)
    assert lengths.draw(name, 50) == lengths.draw(name, 50)


def test_normal_lengths_spread_as_modernberts():
    assert torch.tensor(lengths.draw("normal 256", 4096)).float().std() == pytest.approx(
        64, rel=0.1
    )


def test_natural_lengths_are_skewed():
    assert len(lengths.natural_lengths()) == 4096 and min(lengths.natural_lengths()) >= 5
    drawn = torch.tensor(lengths.draw("natural", 2048)).float()
    assert drawn.max() <= lengths.LONGEST and drawn.mean() > 1.2 * drawn.median()


def test_lengths_fill_a_budget_of_tokens():
    arrival = lengths.of_tokens("queries", 1000)
    assert 900 < sum(arrival) <= 1000 and arrival != sorted(arrival)
    assert lengths.of_tokens("queries", 1000, "sorted") == sorted(arrival)
    assert lengths.of_tokens("8192", 100) == [8192]
