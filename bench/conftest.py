"""One pytest-benchmark test per contender of a case.

The first test of a group measures all of its contenders in turns; every test then replays its own
rounds to pytest-benchmark, by a clock that only the replay moves. So the record is
pytest-benchmark's, and its statistics are of interleaved rounds.
"""

import time
from dataclasses import replace

import pytest
import torch

import taut
from taut._native import last_cuda_variant, last_variant, libraries

from . import machine, peers, runner
from .cases import Case

SHARE, QUICK_SHARE = 0.6, 0.1  # seconds of a contender, in all processes
PROCESSES = 5


def pytest_addoption(parser):
    group = parser.getgroup("taut")
    group.addoption("--quick", action="store_true", help="few cases and rounds")
    group.addoption("--device", choices=("cpu", "cuda"), help="[default: cuda if torch has it]")
    group.addoption("--threads", type=int, help="of torch and of the probes [default: torch's]")
    group.addoption("--isa", help="instruction set of taut's CPU kernels [default: the best]")
    group.addoption(
        "--cpu-time",
        action="store_true",
        help="one thread's CPU time instead of wall time, for a busy machine",
    )
    group.addoption("--process", type=int, help="of a run in several, which one [default: alone]")
    group.addoption(
        "--processes", type=int, help=f"that share a run [default: {PROCESSES}; on a GPU 1]"
    )


def pytest_configure(config):
    for pattern in ("bench_*.py", "encode.py"):
        config.addinivalue_line("python_files", pattern)
    config.stash[SUITE] = Suite(config)


class ReplayClock:
    """Seconds that pass only when a round is replayed."""

    def __init__(self):
        self.now = 0.0
        self.__name__ = "interleaved_rounds"  # what pytest-benchmark records as the timer

    def __call__(self) -> float:
        return self.now


CLOCK = ReplayClock()


class Suite:
    """The settings of a run, what its machine can do, and the group measured last."""

    def __init__(self, config):
        self.quick = config.getoption("--quick")
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(config.getoption("--device") or default)
        self.cpu_time = config.getoption("--cpu-time")
        self.clock = time.process_time if self.cpu_time else time.perf_counter
        if self.cpu_time or config.getoption("--threads"):
            torch.set_num_threads(1 if self.cpu_time else config.getoption("--threads"))
        if isa := config.getoption("--isa"):
            libraries.module.set_active_isa(isa)
        self.process = config.getoption("--process") or 1
        self.processes = 1
        if config.getoption("--process"):
            several = PROCESSES if self.device.type == "cpu" else 1
            self.processes = config.getoption("--processes") or several
        self._measured = (None, None, None)

    def measures(self, case: Case) -> bool:
        return (
            self.device.type in case.devices
            and (case.quick or not self.quick)
            and (self.process == 1 or not case.once)
        )

    def timer(self) -> runner.Timer:
        if self.device.type == "cuda":
            return runner.cuda_timer()
        return runner.host_timer(self.clock)

    def outcomes(self, case: Case):
        if self._measured[0] is not case:
            variant = last_variant if self.device.type == "cpu" else last_cuda_variant
            share = (QUICK_SHARE if self.quick else SHARE) * case.share
            self._measured = (None, None, None)  # frees the tensors of the group before
            processes = 1 if case.once else self.processes
            measured = runner.measure(
                case, self.device, self.timer(), share, variant, self.process, processes
            )
            self._measured = (case, *measured)
        return self._measured[1:]

    def identity(self) -> dict:
        """What two records must share to be compared; probes nothing."""
        threads = torch.get_num_threads()
        return {
            "device": machine.slug(self.device, threads),
            "threads": threads,
            "clock": "cpu" if self.cpu_time else "wall",
        }

    def machine(self) -> dict:
        return machine.describe(self.device, torch.get_num_threads(), self.clock)


SUITE = pytest.StashKey[Suite]()


def pytest_generate_tests(metafunc):
    if "contender" not in metafunc.fixturenames:
        return
    suite = metafunc.config.stash[SUITE]
    metafunc.parametrize(
        "contender",
        [
            pytest.param(
                (case, name),
                id=f"{case.group} | {name}",
                marks=pytest.mark.benchmark(group=case.group, timer=CLOCK),
            )
            for case in metafunc.module.CASES
            if suite.measures(case)
            for name in case.contenders
        ],
    )


@pytest.fixture
def replay(request, benchmark):
    """replay((case, contender)): puts the contender's rounds on record; fails if it is wrong."""

    def run(contender):
        case, name = contender
        suite = request.config.stash[SUITE]
        package = peers.package_of(name)
        if package is not None and (version := peers.version_of(package)) is None:
            pytest.skip(f"{package} is not installed")
        outcomes, work = suite.outcomes(case)
        outcome = outcomes[name]
        if outcome.failure:
            pytest.fail(outcome.failure)
        if outcome.skipped:
            pytest.skip(outcome.skipped)
        rounds = iter(outcome.seconds)

        def one_round():
            CLOCK.now += next(rounds)

        benchmark.pedantic(one_round, rounds=len(outcome.seconds))
        machine_facts = suite.machine()
        own = work.own.get(name, {})
        roof = own.get("roof", case.roof)
        if roof == "popcount" and (outcome.facts["variant"] or "").endswith(("/tiles", "/bytes")):
            roof = "int8"  # the kernel widened the bits
        work = replace(work, bytes=own.get("bytes", work.bytes))
        benchmark.extra_info.update(
            stem=request.module.__name__.rpartition(".")[2].removeprefix("bench_"),
            op=case.op,
            contender=name,
            role="taut" if package is None else "peer",
            peer_version=None if package is None else version,
            case=case.text,
            axes=case.axes | own.get("axes", {}),
            dtype=own.get("dtype", case.dtype),
            device=suite.device.type,
            isa=machine_facts["isa"],
            threads=machine_facts["threads"],
            tokens=work.tokens,
            flops=work.flops,
            bytes=work.bytes,
            **machine.roof_share(machine_facts["roofs"], roof, work, benchmark.stats.stats.median),
            correct=outcome.correct,
        )
        benchmark.extra_info.update(outcome.facts)
        if not outcome.correct:
            error, allowed = outcome.facts["error"], outcome.facts["allowed_error"]
            pytest.fail(f"{name} is wrong: its error is {error:.3g}, {allowed:.3g} is allowed")

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    suite = config.stash[SUITE]
    versions, missing = peers.found_and_missing()
    machine_info.update(
        suite.machine() | suite.identity(),
        torch=torch.__version__,
        taut=taut.__version__,
        versions=versions,
        peers_missing=missing,
        quick=suite.quick,
        processes=suite.processes,
    )


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for row in output_json["benchmarks"]:
        row.pop("params")  # (Case, contender): all of it is in extra_info
