"""Measures the contenders of a case: each result checked, all of them timed in turns.

A round calls every contender once, or as often as fills a slice of time; the order is reversed
every other round. So a noisy moment meets all of them, and their medians can be compared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .cases import MODES, Case, Unavailable, Work

FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
FEWEST_LONG_ROUNDS = 3  # of calls that take their whole share: noise averages out within them
SLICE, MOST_CALLS = 5e-4, 1000  # seconds: short calls are timed together
SLOWEST = 5  # a peer whose one call takes this many times a contender's share is left out
WAKING = 5  # calls up to so many times the time of quiet are made once before they are timed
FLUSH_BYTES = 1 << 28  # larger than any L2
Timer = Callable[[Callable[[], object], int], float]


@dataclass
class Outcome:
    """What became of one contender: its rounds' seconds per call, or why there are none."""

    seconds: list[float] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    failure: str | None = None
    skipped: str | None = None

    @property
    def correct(self) -> bool:
        return self.facts["error"] <= self.facts["allowed_error"]


def host_timer(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Seconds per call, on the host's clock."""

    def seconds(run, calls):
        begin = clock()
        for _ in range(calls):
            run()
        return (clock() - begin) / calls

    return seconds


def cuda_timer() -> Timer:
    """Seconds per call between two events of the GPU, L2 overwritten before each call.

    The host runs ahead while the GPU overwrites, so the launch itself is not waited for.
    """
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def seconds(run, calls):
        total = 0.0
        for _ in range(calls):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end) / 1e3
        return total / calls

    return seconds


def interleaved(
    runs: dict[str, Callable[[], object]],
    timer: Timer,
    share: float,
    once: dict[str, float],
    settle: float = 0.0,
    process: int = 1,
    processes: int = 1,
) -> dict[str, list[float]]:
    """Seconds per call of every round of every contender.

    share: seconds that each may take in all, as far as the fewest rounds allow. Slow contenders sit out
        rounds, evenly spread, instead of keeping the others waiting.
    once: seconds of a call of each, roughly. settle: see `Case`; longer calls wake themselves.
    process, processes: which one of how many share the rounds; it takes its part of them, one at
        least, and every other process begins in reverse.
    """
    calls, wanted = {}, {}
    for name in runs:
        call = max(once[name], 1e-9)
        calls[name] = min(math.ceil(SLICE / call), MOST_CALLS)
        rounds = share / (call * calls[name])
        fewest = FEWEST_ROUNDS if rounds > 1 else FEWEST_LONG_ROUNDS
        wanted[name] = math.ceil(int(min(max(rounds, fewest), MOST_ROUNDS)) / processes)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    total = max(wanted.values(), default=0)
    for i in range(total):
        names = list(runs) if (i + process) % 2 else list(reversed(runs))
        for name in names:
            if (i + 1) * wanted[name] // total > i * wanted[name] // total:
                if settle:
                    time.sleep(settle)
                    if once[name] < WAKING * settle:
                        runs[name]()
                seconds[name].append(timer(runs[name], calls[name]))
    return seconds


def measure(
    case: Case,
    device: torch.device,
    timer: Timer,
    share: float,
    variant_of: Callable[[str], str | None] = lambda op: None,
    process: int = 1,
    processes: int = 1,
) -> tuple[dict[str, Outcome], Work | None]:
    """Every contender of a case, and the work they did.

    A contender of ours that raises is a failure; a peer that raises, or that one call of takes too
    long, is skipped with the reason. process, processes: as in `interleaved`.
    """
    torch.manual_seed(0)
    outcomes = {name: Outcome() for name in case.contenders}
    with MODES[case.mode]():
        try:
            work = case.build(case, device)
        except Unavailable as error:
            return {name: Outcome(skipped=str(error)) for name in outcomes}, None
        timed, once = {}, {}
        for name, outcome in outcomes.items():
            if name not in work.runs:
                outcome.skipped = "not available here"
                continue
            ours = name.startswith("taut")
            try:
                out = work.runs[name]()
                variant = variant_of(work.ops.get(name, case.op)) if ours else None
                outcome.facts = work.check(name, out) | {"variant": variant}
            except Exception as error:
                cause = f"{type(error).__name__}: {str(error)[:300]}"
                setattr(outcome, "failure" if ours else "skipped", cause)
                continue
            once[name] = timer(work.runs[name], 1)
            if not ours and once[name] > SLOWEST * share:
                outcome.skipped = f"one call takes {once[name]:.2g} s"
            else:
                timed[name] = work.runs[name]
        rounds = interleaved(timed, timer, share, once, case.settle, process, processes)
        for name, seconds in rounds.items():
            outcomes[name].seconds = seconds
    return outcomes, work
