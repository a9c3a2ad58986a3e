"""PERFORMANCE.md out of the committed records:  python -m taut.bench.performance

What a record does not show is not claimed: kernels that no row names are listed as never run.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from taut.bench import table
from taut.bench.record import ENCODE, Record, Row, advantage, read
from taut.registry import OPS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
OUTPUT = ROOT / "PERFORMANCE.md"
HEADER = """\
# Performance

Written by `python -m taut.bench.performance` from the records in `bench/results`, which
`taut bench --json` makes; a test holds the two together. Medians of interleaved rounds; useful work
is counted from real tokens; a roof is what a probe in the same run reached. Every row passed its
check against fp64.
"""


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _against_peers(groups: list[list[Row]]) -> list[tuple[float, str]]:
    """(taut / fastest peer, which peer and case) of every group that has peers, worst first."""
    found = []
    for group in groups:
        ratios = [(a, row) for row in group if (a := advantage(row, group)) is not None]
        if ratios:
            factor, peer = min(ratios, key=lambda pair: pair[0])
            found.append((factor, f"{peer.contender} ({peer.case})"))
    return sorted(found)


def _ops(record: Record) -> str:
    """A line per op and dtype: its best rate, and its worst and best case against the peers."""
    by_op: dict[tuple[str, str], list[list[Row]]] = {}
    for group in record.groups().values():
        if group[0].stem != ENCODE:
            by_op.setdefault((group[0].heading, group[0].group_dtype), []).append(group)
    lines = []
    for (op, dtype), groups in by_op.items():
        own = [row for group in groups for row in group if row.role == "taut"]
        if not own:
            continue
        best = max(own, key=lambda row: row.rate[0])
        ratios = _against_peers(groups)
        ends = [f"{table.times(factor)} {peer}" for factor, peer in ratios[:1] + ratios[1:][-1:]]
        lines.append((f"`{op}`", dtype, str(len(groups)), table.rate(*best.rate),
                      table.percent(best.roof_share), *(ends + ["", ""])[:2]))  # fmt: skip
    if not lines:
        return ""
    columns = ("op", "dtype", "cases", "best useful rate", "of roof",
               "against the fastest peer: worst case", "best case")  # fmt: skip
    return f"\n### Ops\n\n{_markdown(columns, lines)}"


def _encoders(record: Record) -> Iterator[str]:
    """A table per model and order."""
    columns = ("", "tokens/s", "spread", "taut / peer", "mean cosine", "worst", "MB")
    for group in record.groups((ENCODE,)).values():
        lines = []
        for row in sorted(group, key=lambda r: r.median):
            name = f"**{row.contender}**" if row.role == "taut" else row.contender
            version = f" ({row.peer_version})" if row.peer_version else ""
            lines.append(
                (
                    f"{name}{version}",
                    table.rate(*row.rate).removesuffix(" tokens/s"),
                    f"{100 * row.spread:.1f} %",
                    table.times(advantage(row, group)),
                    "" if row.mean_cosine is None else f"{row.mean_cosine:.4f}",
                    "" if row.deviation is None else f"{1 - row.deviation:.4f}",
                    "" if row.size_mb is None else f"{row.size_mb:.1f}",
                )
            )
        yield f"\n### Encoder: {group[0].case}\n\n{_markdown(columns, lines)}"


def _gpu_tests(record: Record) -> Iterator[str]:
    """What the tests said there, in a record of `bench/gpu_check.sh`."""
    if record.gpu_check is None:
        return
    tests = record.gpu_check["tests"].values()
    failed = [name for file in tests for name in file["failed"]]
    yield (
        f"GPU tests: {sum(file['passed'] for file in tests)} passed, "
        f"{sum(file['skipped'] for file in tests)} skipped, {len(failed)} failed"
        f"{': ' if failed else ''}{', '.join(failed)}."
    )
    stages = record.gpu_check["stages"].values()
    if unfinished := [stage["stage"] for stage in stages if stage["status"]]:
        yield f"Stages of `bench/gpu_check.sh` that failed: {', '.join(unfinished)}."


def _section(record: Record) -> str:
    facts = table.environment(record)
    missing = record.machine.get("peers_missing")
    lines = [
        f"\n## {facts['device']}\n",
        f"{facts['instruction set']}, threads: {facts['threads']}, {facts['versions']}; "
        f"{facts['measured']}, commit {facts['commit']}.",
        f"Roofs: {table.roofs(record)}.",
        *([f"Peers not installed: {', '.join(missing)}."] if missing else []),
        *(f"Failed: {test}: {cause}" for test, cause in record.failures.items()),
        *_gpu_tests(record),
    ]
    return "\n".join(lines) + "\n" + _ops(record) + "".join(_encoders(record))


def _cuda_ops() -> set[str]:
    sources = (ROOT / "csrc" / "cuda").glob("*.cu")
    return {name for file in sources for name in re.findall(r'\.impl\("(\w+)"', file.read_text())}


def _cpu_ops() -> set[str]:
    kernels = {file.name.partition(".")[0] for file in (ROOT / "csrc/cpu").glob("*.kernel.cpp")}
    return {op.name for op in OPS.values() if op.stem in kernels}


def _is_triton(row: Row) -> bool:
    return row.device == "cuda" and (row.variant or "triton").startswith("triton")


def _never_ran(records: list[Record]) -> str:
    """Which kernels no record has a row of, for the backends that development machines lack."""
    rows = [row for record in records for row in record.rows if row.role == "taut"]
    backends: dict[str, tuple[set[str], Callable[[Row], bool]]] = {
        "CPU, AMX": (_cpu_ops(), lambda r: re.match(r"amx(/|$)", r.variant or "") is not None),
        "Triton on a GPU": ({op.name for op in OPS.values() if op.triton}, _is_triton),
        "CUDA": (_cuda_ops(), lambda row: row.device == "cuda" and not _is_triton(row)),
    }
    lines = []
    for backend, (ops, ran_here) in backends.items():
        never = sorted(ops - {row.op for row in rows if ran_here(row)})
        names = "all of them" if len(never) == len(ops) else ", ".join(f"`{op}`" for op in never)
        lines.append((backend, str(len(ops)), str(len(ops) - len(never)), names or "none"))
    return (
        "\n## Never ran on hardware\n\n"
        "Ops with kernels of a kind that no record has a row of. Their tests run them elsewhere: AMX\n"
        "with its instructions emulated, Triton in its interpreter, CUDA in a host executor.\n\n"
        + _markdown(("kernels", "ops", "measured", "never ran"), lines)
    )


def text(results: Path) -> str:
    """PERFORMANCE.md of the records in a folder."""
    records = [read(file) for file in sorted(results.glob("*.json"))]
    sections = "".join(map(_section, records)) or "\nNo record is committed yet.\n"
    return HEADER + sections + _never_ran(records)


if __name__ == "__main__":
    OUTPUT.write_text(text(RESULTS), encoding="utf-8")
