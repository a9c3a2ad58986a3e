"""How a record's numbers are written: the same in the terminal, in HTML and in Markdown."""

from taut.bench.record import Record, Row, advantage, unit_of

COLUMNS = (
    "case", "dtype", "contender", "median", "spread", "useful rate", "of roof", "taut / peer",
    "error",
)  # fmt: skip
_TIMES = ((1, "s"), (1e-3, "ms"), (1e-6, "us"))
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _figures(value: float) -> str:
    """Three figures, or all that stand before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def seconds(value: float) -> str:
    """3.21 ms"""
    scale, unit = next((t for t in _TIMES if value >= t[0]), _TIMES[-1])
    return f"{_figures(value / scale)} {unit}"


def rate(value: float, unit: str) -> str:
    """435 GFLOP/s, 17 500 tokens/s"""
    if unit in ("tokens/s", "calls/s"):
        return f"{value:,.0f} {unit}".replace(",", " ")
    scale, prefix = next((p for p in _PREFIXES if value >= p[0]), (1, ""))
    return f"{_figures(value / scale)} {prefix}{unit}"


def percent(share: float | None) -> str:
    return "" if not share else f"{100 * share:.0f} %"


def times(factor: float | None) -> str:
    """2.31 x"""
    return "" if factor is None else f"{_figures(factor)} x"


def cells(row: Row, group: list[Row]) -> tuple[str, ...]:
    """The row's text under COLUMNS; group is its group."""
    return (
        row.case,
        row.group_dtype,
        row.contender,
        seconds(row.median),
        f"{100 * row.spread:.1f} %",
        rate(*row.rate),
        percent(row.roof_share),
        times(advantage(row, group)),
        "" if row.deviation is None else f"{row.deviation:.1e}",
    )


def environment(record: Record) -> dict[str, str]:
    """Where, when and at which commit a record was made."""
    machine, commit = record.machine, record.commit
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    clock = ", CPU time of one thread" if machine.get("clock") == "cpu" else ""
    quick = ", few cases and rounds (--quick)" if machine.get("quick") else ""
    several = f", {n} processes" if (n := machine.get("processes", 1)) > 1 else ""
    return {
        "device": f"{machine['device']} ({machine.get('cpu', 'unknown')})",
        "instruction set": str(machine.get("isa")),
        "threads": str(machine.get("threads")),
        "versions": f"taut {machine.get('taut')}, torch {machine.get('torch')}",
        "measured": f"{record.datetime[:16].replace('T', ' ')}{several}{clock}{quick}",
        "commit": f"{str(commit.get('id'))[:12]}{dirty}",
    }


def roofs(record: Record) -> str:
    """The probed ceilings in a line."""
    return ", ".join(f"{name} {rate(value, unit_of(name))}" for name, value in record.roofs.items())


def peers(record: Record) -> dict[str, str]:
    """{package and version: which contenders come from it}."""
    found: dict[str, dict[str, None]] = {}
    for row in record.rows:
        if row.role == "peer":
            found.setdefault(row.peer_version or "no version", {})[row.contender] = None
    return {version: ", ".join(names) for version, names in found.items()}


def skipped(record: Record) -> dict[str, str]:
    """{why: which contenders were left out for it}."""
    found: dict[str, dict[str, None]] = {}
    for test, cause in record.skipped.items():
        found.setdefault(cause, {})[test.rpartition(" | ")[2].removesuffix("]")] = None
    return {cause: ", ".join(names) for cause, names in found.items()}
