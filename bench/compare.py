"""Is a run slower than an earlier one on the same machine, beyond noise?

A contender of taut regressed if its median grew by more than max(5 %, noise), after the machine's
own change of speed is taken out. That change is what happened to the peers of the same group, which
were measured in turns with it and whose code did not change: the median of new / old over those of
the same version. A group without such peers takes the change of the probed roof it is held against.
Noise is the spread (interquartile range over median) of all that went into the number, and how
unevenly the machine changed from group to group, combined as independent errors are. What differs
from process to process is in the spread where rounds of several are pooled; of rounds of one process
the spread counts twice. Of unevenness there is next to none unless others take the machine's cores.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from taut.bench.record import Record, Row
from taut.text_io import InputError

FLOOR = 0.05
FEWEST_GROUPS = 8


@dataclass(frozen=True)
class Change:
    """What became of one contender."""

    row: Row  # of the new run
    machine: float  # new / old of everything but taut: above 1, the machine was slower
    slowdown: float  # new / old of this contender beyond the machine's
    noise: float

    @property
    def regressed(self) -> bool:
        return self.slowdown > 1 + self.noise


def _spread(rows: list[Row]) -> float:
    return math.hypot(*(row.spread * (1 if row.processes > 1 else 2) for row in rows))


def _machine(pairs: list[tuple[Row, Row]], roof: str, old: Record, new: Record):
    """(new / old of the machine, its spread), from (old, new) of the group's peers, or the roof."""
    peers = [(a, b) for a, b in pairs if b.role == "peer" and a.peer_version == b.peer_version]
    if peers:
        change = statistics.median(b.median / a.median for a, b in peers)
        return change, statistics.median(_spread([a, b]) for a, b in peers)
    if roof in old.roofs and roof in new.roofs:
        return old.roofs[roof] / new.roofs[roof], 0.0
    return 1.0, 0.0


def _unevenness(factors: list[float]) -> float:
    """How much the machine's change differs between groups: their median distance from the median,
    scaled to a standard deviation. Few groups say nothing of it."""
    if len(factors) < FEWEST_GROUPS:
        return 0.0
    middle = statistics.median(factors)
    return 1.4826 * statistics.median(abs(f / middle - 1) for f in factors)


def require_same_machine(old: dict, new: dict) -> None:
    """InputError unless two machine_infos are of one device, used alike."""
    for name in ("device", "threads", "clock"):
        if old.get(name) != new.get(name):
            raise InputError(
                f"cannot compare: the old record has {name} {old.get(name)}, "
                f"this run has {new.get(name)}"
            )


def changes(old: Record, new: Record) -> Iterator[Change]:
    """One Change per contender of taut that both runs measured; InputError if none can be compared."""
    require_same_machine(old.machine, new.machine)
    before = {(row.group, row.contender): row for row in old.rows}
    common = [
        [(before[key], row) for row in rows if (key := (row.group, row.contender)) in before]
        for rows in new.groups().values()
    ]
    if not any(row.role == "taut" for pairs in common for _, row in pairs):
        raise InputError("cannot compare: the old record has none of the cases of this run")
    measured = [
        (a, b, *_machine(pairs, b.roof or b.bandwidth, old, new))
        for pairs in common
        for a, b in pairs
        if b.role == "taut"
    ]
    uneven = _unevenness([machine for *_, machine, _ in measured])
    for a, b, machine, spread in measured:
        noise = max(FLOOR, math.hypot(_spread([a, b]), spread, uneven))
        yield Change(b, machine, b.median / a.median / machine, noise)
