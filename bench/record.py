"""A benchmark record: pytest-benchmark's JSON with our extra_info, read and checked.

A row is one contender of one case; rows of one case and dtype share a group and were measured in
turns. What extra_info and machine_info hold is what the fields below say.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from taut.registry import OPS
from taut.text_io import InputError

OP_STEMS = {op.stem for op in OPS.values()}
ENCODE = "encode"  # the stem of whole encoders: their rate is tokens per second


def unit_of(roof: str | None) -> str:
    """What machine_info["roofs"][roof] counts."""
    units = {"memory": "B/s", "cache": "B/s", "int8": "OP/s", "popcount": "OP/s"}
    return units.get(roof, "FLOP/s")


@dataclass(frozen=True)
class Row:
    """One contender of one case. Seconds; operations and bytes of one call, from real tokens."""

    group: str
    stem: str
    op: str
    contender: str
    role: str  # taut or peer
    case: str
    dtype: str
    median: float
    iqr: float
    rounds: int
    processes: int = 1  # that its rounds come from
    axes: dict = field(default_factory=dict)
    device: str = "cpu"
    variant: str | None = None  # of taut's kernels, the one that ran
    peer_version: str | None = None
    tokens: int = 0
    flops: float = 0
    bytes: float = 0
    roof: str | None = None  # what its arithmetic is held against; None where memory bounds it
    bandwidth: str = "memory"  # or cache: what its bytes are held against
    roof_share: float | None = None
    error: float | None = None  # an op: largest difference; an encoder: 1 - worst cosine
    allowed_error: float | None = None
    quantization_error: float | None = None  # as error, to what nothing quantizes
    mean_cosine: float | None = None
    size_mb: float | None = None

    @property
    def group_dtype(self) -> str:
        """What the group's rows have in common; each contender may have its own."""
        return self.group.rpartition(" | ")[2]

    @property
    def heading(self) -> str:
        """What it is listed under: its op, or what is measured across ops."""
        return self.op if self.stem in OP_STEMS else self.stem

    @property
    def deviation(self) -> float | None:
        """From what nothing quantizes."""
        return self.error if self.quantization_error is None else self.quantization_error

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        return self.iqr / self.median

    @property
    def rate(self) -> tuple[float, str]:
        """Useful work per second and its unit."""
        if self.stem == ENCODE:
            return self.tokens / self.median, "tokens/s"
        if not self.flops and not self.bytes:
            return 1 / self.median, "calls/s"
        if self.roof is None:
            return self.bytes / self.median, "B/s"
        return self.flops / self.median, unit_of(self.roof)


@dataclass(frozen=True)
class Record:
    """Every row of one run on one machine."""

    device: str
    machine: dict
    commit: dict
    datetime: str
    rows: tuple[Row, ...]
    failures: dict[str, str]  # test -> why it gave no row
    skipped: dict[str, str] = field(default_factory=dict)  # test -> why it was left out
    gpu_check: dict | None = None  # what bench/gpu_record.py adds

    @property
    def roofs(self) -> dict[str, float]:
        return self.machine.get("roofs", {})

    def groups(self, stems: Iterable[str] | None = None) -> dict[str, list[Row]]:
        """{group: its rows, taut's first, then by time}, in the order of the run."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if stems is None or row.stem in stems:
                found.setdefault(row.group, []).append(row)
        return {
            group: sorted(rows, key=lambda r: (r.role != "taut", r.median))
            for group, rows in found.items()
        }


def advantage(row: Row, group: list[Row]) -> float | None:
    """How many times faster than this peer taut is: of several contenders the fastest that errs at
    most twice as much, or the most exact if none does."""
    taut = [r for r in group if r.role == "taut"]
    if row.role != "peer" or not taut:
        return None
    as_exact = [r for r in taut if (r.deviation or 0) <= 2 * (row.deviation or 0)]
    most_exact = min(taut, key=lambda r: r.deviation or 0)
    own = min(as_exact, key=lambda r: r.median, default=most_exact)
    return row.median / own.median


def compact(document: dict) -> dict:
    """The document without single durations, which are nearly all of its size, and without the
    names of the host and of the folder and branch it was made in."""
    for benchmark in document["benchmarks"]:
        benchmark["stats"].pop("data", None)
    document["machine_info"].pop("node", None)
    for name in ("project", "branch"):
        document["commit_info"].pop(name, None)
    return document


_EXTRA = {f.name for f in fields(Row)} - {"group", "median", "iqr", "rounds"}


def parse(document: dict) -> Record:
    """The record in a JSON document, without rows that failed their check; KeyError, TypeError if it
    is none."""
    rows = []
    for benchmark in document["benchmarks"]:
        stats, extra = benchmark["stats"], benchmark["extra_info"]
        if not extra.get("correct", True):
            continue
        known = {name: value for name, value in extra.items() if name in _EXTRA}
        rows.append(
            Row(
                group=benchmark["group"],
                **{name: stats[name] for name in ("median", "iqr", "rounds")},
                **known,
            )
        )
    machine = document["machine_info"]
    return Record(
        machine["device"],
        machine,
        document["commit_info"],
        document["datetime"],
        tuple(rows),
        document.get("failures", {}),
        document.get("skipped", {}),
        document.get("gpu_check"),
    )


def read(path: Path) -> Record:
    """The record in a file; InputError says why it is none."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of taut bench: {error!r}") from None
