"""Timing shared by the benchmarks: contenders take turns in one process; medians and spread."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import taut
from taut._native import libraries


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over all rounds."""

    median: float
    low: float
    high: float


def interleaved(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    between: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every contender `rounds` times, in turns, the order reversed every other round.

    One untimed call of each comes first. `between` runs, untimed, before every timed call.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_index in range(rounds):
        names = list(contenders)
        for name in names if round_index % 2 == 0 else reversed(names):
            if between is not None:
                between()
            start = clock()
            contenders[name]()
            seconds[name].append(clock() - start)
    return {
        name: Timing(statistics.median(times), min(times), max(times))
        for name, times in seconds.items()
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def environment() -> dict[str, object]:
    """What a result must say about where it was measured."""
    module = libraries.module
    return {
        "cpu": _cpu_name(),
        "isa": module.active_isa() if module else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "taut": taut.__version__,
    }


def write_json(path: Path, rows: list[dict]) -> None:
    """{"environment": ..., "rows": [...]}; Timing values become dicts."""
    plain = [{k: asdict(v) if isinstance(v, Timing) else v for k, v in row.items()} for row in rows]
    path.write_text(json.dumps({"environment": environment(), "rows": plain}, indent=1) + "\n")
