"""`taut bench`: runs the suite, prints its table, and writes, compares or plots the record."""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taut.bench import table
from taut.bench.compare import Change, changes, require_same_machine
from taut.bench.record import ENCODE, Record, compact, parse, read
from taut.registry import OPS
from taut.text_io import InputError, check_place, whole_or_nothing

SUITE = Path(__file__).parent
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


class _Progress:
    """A pytest plugin: says on standard error which group is being measured, keeps what failed.

    It prints when a group begins rather than from a thread, which would take time from what is
    measured.
    """

    def __init__(self, ops: set[str], old: Record | None = None) -> None:
        self.ops = ops
        self.old = old  # to compare with
        self.refused: InputError | None = None
        self.interrupted = False
        self.groups: dict[str, str] = {}  # test -> its group
        self.begun: list[str] = []
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}  # test -> why
        self.stream = sys.stderr  # pytest puts its own in place while tests run
        self.terminal = self.stream.isatty()

    def pytest_keyboard_interrupt(self, excinfo) -> None:
        import pytest

        # pytest's own, of files that cannot be collected, are failures.
        self.interrupted = not isinstance(excinfo.value, pytest.Session.Interrupted)

    def _check_machine(self, config) -> None:
        """Before anything is measured; the suite's settings are its conftest's."""
        plugins = config.pluginmanager.get_plugins()
        (suite,) = (config.stash[p.SUITE] for p in plugins if hasattr(p, "ReplayClock"))
        try:
            require_same_machine(self.old.machine, suite.identity())
        except InputError as error:
            self.refused = error

    def pytest_collection_modifyitems(self, config, items) -> None:
        if self.old is not None:
            self._check_machine(config)
        if self.refused:
            items.clear()
        for item in items:
            if marker := item.get_closest_marker("benchmark"):  # a file without cases has none
                group = marker.kwargs["group"]
                if not self.ops or group.split(" | ")[0] in self.ops:
                    self.groups[item.nodeid] = group
        items[:] = [item for item in items if item.nodeid in self.groups]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        group = self.groups[nodeid]
        if group not in self.begun:
            self.begun.append(group)
            line = f"{len(self.begun)}/{len(set(self.groups.values()))} {group}"
            print(f"\r\x1b[K{line}" if self.terminal else line,
                  end="" if self.terminal else "\n", file=self.stream, flush=True)  # fmt: skip

    def pytest_collectreport(self, report) -> None:
        self.pytest_runtest_logreport(report)

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            self.failures[report.nodeid] = text
        elif report.skipped:
            self.skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_sessionfinish(self) -> None:
        if self.terminal and self.begun:
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def measure(names: Sequence[str], quick: bool, old: Record | None = None) -> dict:
    """The record's document of the suite, or of the stems and ops named; InputError, and nothing
    measured, if it could not be compared with `old`."""
    import pytest

    files, ops = _chosen(names)
    progress = _Progress(ops, old)
    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        output = Path(folder) / "record.json"
        # No configuration but this: not that of a project whose folder we stand in.
        arguments = ["-q", "-c", os.devnull, f"--rootdir={SUITE}", "-p", "no:cacheprovider",
                     "--benchmark-quiet", f"--benchmark-json={output}",
                     *(["--quick"] if quick else [])]  # fmt: skip
        status = pytest.main([*arguments, *map(str, files)], plugins=[progress])
        if progress.interrupted:
            raise KeyboardInterrupt
        if progress.refused:
            raise progress.refused
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise InputError(f"no benchmark of {', '.join(names)} for this device")
        if status == pytest.ExitCode.OK and not output.exists():
            reasons = dict.fromkeys(progress.skipped.values())
            raise InputError(f"nothing can be measured here: {'; '.join(reasons)}")
        if not output.exists():
            sys.exit(f"taut: the suite measured nothing:\n{said.getvalue()}")
        document = compact(json.loads(output.read_text(encoding="utf-8")))
    if progress.skipped:
        document["skipped"] = progress.skipped
    if progress.failures:
        document["failures"] = progress.failures
        failed = {nodeid.partition("::")[2] for nodeid in progress.failures}
        document["benchmarks"] = [b for b in document["benchmarks"] if b["name"] not in failed]
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
    names: Sequence[str], quick: bool, json_path: Path | None, old: Path | None, html: Path | None
) -> int:
    """The whole command; its exit status."""
    _require({"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"})
    if html is not None:
        _require({"matplotlib": "matplotlib"})
    _chosen(names)
    before = None if old is None else read(old)
    for path in filter(None, (json_path, html)):
        check_place(path)
    document = measure(names, quick, before)
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
