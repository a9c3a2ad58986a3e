"""`taut bench`: runs the suite, prints its table, and writes, compares or plots the record."""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taut.bench import session, table
from taut.bench.compare import Change, changes
from taut.bench.record import ENCODE, Record, compact, parse, read
from taut.bench.session import SUITE, in_fresh_process
from taut.registry import OPS
from taut.text_io import InputError, check_place, whole_or_nothing

EXTRA = "pip install 'taut[bench]'"
PIPED_WIDTH = 140  # columns where there is no terminal to ask


def stems() -> list[str]:
    """What there are benchmarks of: op stems, and whole encoders."""
    return [*sorted(file.stem[6:] for file in SUITE.glob("bench_*.py")), ENCODE]


def _chosen(names: Sequence[str]) -> tuple[list[Path], set[str]]:
    """The files to run, and the single ops wanted of them; no names: everything."""
    known = stems()
    single = {name: op.stem for name, op in OPS.items() if op.stem in known}
    for name in names:
        if name not in known and name not in single:
            raise InputError(
                f"no benchmark of {name!r}; there is {', '.join(known)}, "
                f"and of single ops {', '.join(sorted(single))}"
            )
    wanted = [single.get(name, name) for name in names] or known
    files = [ENCODE if stem == ENCODE else f"bench_{stem}" for stem in dict.fromkeys(wanted)]
    return [SUITE / f"{file}.py" for file in files], {n for n in names if n not in known}


def _require(modules: dict[str, str]) -> None:
    for module, distribution in modules.items():
        if find_spec(module) is None:
            raise InputError(f"taut bench needs {distribution}: {EXTRA}")


def measure(
    names: Sequence[str], quick: bool, processes: int | None = None, old: Record | None = None
) -> dict:
    """The record's document of the suite, or of the stems and ops named, measured in so many fresh
    processes; InputError, and nothing measured, if it could not be compared with `old`."""
    from taut.bench.merge import merged  # and with it pytest-benchmark

    options = ["--quick"] if quick else []
    if processes is not None:
        options.append(f"--processes={processes}")
    given = *_chosen(names), options, None if old is None else old.machine
    first = in_fresh_process(session.run, *given, 1)
    documents = [first]
    for process in range(2, first["machine_info"]["processes"] + 1):
        if document := in_fresh_process(session.run, *given, process):
            documents.append(document)
    document = compact(merged(documents))
    for kind in ("failures", "skipped"):
        if not document[kind]:
            del document[kind]
    return document


def _empty_table(heading: str) -> Table:
    found = Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in table.COLUMNS:
        text = column in ("case", "dtype", "contender")
        found.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=column not in ("case", "contender"),
        )
    return found


def show(record: Record, console: Console) -> None:
    """The record as a table per op, and what is missing from it."""
    tables: dict[str, Table] = {}
    for group in record.groups().values():
        heading = group[0].heading
        if heading not in tables:
            tables[heading] = _empty_table(heading)
        for index, row in enumerate(group):
            case, dtype, *rest = table.cells(row, group)
            shared = ("", "") if index else (case, dtype)
            style = "bold" if row.role == "taut" else None
            tables[heading].add_row(*map(escape, (*shared, *rest)), style=style)
        tables[heading].add_section()
    for op_table in tables.values():
        console.print(op_table)
    for name, value in table.environment(record).items():
        console.print(f"{name:<16} {value}", highlight=False, markup=False)
    if record.roofs:
        console.print(f"{'roofs, probed':<16} {table.roofs(record)}", highlight=False)
    if missing := record.machine.get("peers_missing"):
        console.print(f"{'peers missing':<16} {', '.join(missing)}", highlight=False)
    for cause, contenders in table.skipped(record).items():
        console.print(f"{'skipped':<16} {contenders}: {cause}", highlight=False, markup=False)
    for test, cause in record.failures.items():
        console.print(f"FAILED {test}: {cause}", style="red", highlight=False, markup=False)


def show_changes(found: list[Change], console: Console) -> None:
    """What regressed; or that nothing did."""
    regressed = [change for change in found if change.regressed]
    for change in regressed:
        row = change.row
        console.print(
            f"SLOWER {row.group}, {row.contender}: {change.slowdown:.2f} times the old median "
            f"({table.seconds(row.median)} now, noise {100 * change.noise:.0f} %, machine "
            f"{change.machine:.2f} times the old)",
            style="red", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    console.print(f"{len(found)} compared, {len(regressed)} slower beyond noise", highlight=False)


def run(
    names: Sequence[str],
    quick: bool,
    json_path: Path | None,
    old: Path | None,
    html: Path | None,
    processes: int | None = None,
) -> int:
    """The whole command; its exit status."""
    _require({"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"})
    if html is not None:
        _require({"matplotlib": "matplotlib"})
    _chosen(names)
    before = None if old is None else read(old)
    for path in filter(None, (json_path, html)):
        check_place(path)
    document = measure(names, quick, processes, before)
    record = parse(document)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    show(record, console)
    if json_path is not None:
        with whole_or_nothing(json_path) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if html is not None:
        from taut.bench import report  # and with it matplotlib

        with whole_or_nothing(html) as temporary:
            temporary.write_text(report.page(record), encoding="utf-8")
    found = [] if before is None else list(changes(before, record))
    if before is not None:
        show_changes(found, console)
    return int(bool(record.failures) or any(change.regressed for change in found))
