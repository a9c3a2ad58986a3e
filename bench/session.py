"""One run of the suite by pytest, and how to have it in an interpreter of its own."""

import contextlib
import io
import json
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from taut.bench.compare import require_same_machine
from taut.text_io import InputError

SUITE = Path(__file__).parent
PATIENCE = 10  # seconds that an interrupted process has to remove its files
SPAWN = multiprocessing.get_context("spawn")


class _Progress:
    """A pytest plugin: says on standard error which group is being measured, keeps what failed.

    It prints when a group begins rather than from a thread, which would take time from what is
    measured.
    """

    def __init__(self, ops: set[str], old: dict | None) -> None:
        self.ops = ops
        self.old = old  # the machine_info to compare with
        self.refused: InputError | None = None
        self.interrupted = False
        self.groups: dict[str, str] = {}  # test -> its group
        self.begun: list[str] = []
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}  # test -> why
        self.process = ""  # which one of several
        self.stream = sys.stderr  # pytest puts its own in place while tests run
        self.terminal = self.stream.isatty()

    def pytest_keyboard_interrupt(self, excinfo) -> None:
        import pytest

        # pytest's own, of files that cannot be collected, are failures.
        self.interrupted = not isinstance(excinfo.value, pytest.Session.Interrupted)

    def pytest_collection_modifyitems(self, config, items) -> None:
        plugins = config.pluginmanager.get_plugins()
        (suite,) = (config.stash[p.SUITE] for p in plugins if hasattr(p, "ReplayClock"))
        if suite.processes > 1:
            self.process = f"process {suite.process}/{suite.processes}, "
        if self.old is not None:  # before anything is measured
            try:
                require_same_machine(self.old, suite.identity())
            except InputError as error:
                self.refused = error
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
            line = f"{self.process}{len(self.begun)}/{len(set(self.groups.values()))} {group}"
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


def run(
    files: Sequence[Path], ops: set[str], options: Sequence[str], old: dict | None, process: int
) -> dict | None:
    """pytest-benchmark's document of the files, of `ops` alone if there are any, with "failures" and
    "skipped". InputError if nothing of them can be measured here, or not be compared with the
    machine_info `old`; None if all of it was the first process's to measure."""
    import pytest

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
                     "--benchmark-quiet", f"--benchmark-json={output}", *options,
                     f"--process={process}"]  # fmt: skip
        status = pytest.main([*arguments, *map(str, files)], plugins=[progress])
        if progress.interrupted:
            raise KeyboardInterrupt
        if progress.refused:
            raise progress.refused
        ended = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if ended and output.exists():
            document = json.loads(output.read_text(encoding="utf-8"))
            return document | {"failures": progress.failures, "skipped": progress.skipped}
        if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and process > 1:
            return None
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            names = sorted(ops) or [file.stem.removeprefix("bench_") for file in files]
            raise InputError(f"no benchmark of {', '.join(names)} for this device")
        if status == pytest.ExitCode.OK:
            reasons = dict.fromkeys(progress.skipped.values())
            raise InputError(f"nothing can be measured here: {'; '.join(reasons)}")
    sys.exit(f"taut: the suite measured nothing:\n{said.getvalue()}")


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _answer(sender, function: Callable, arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = function(*arguments)
    except (InputError, KeyboardInterrupt, SystemExit) as error:
        answer = error
    sender.send((answer,))


def in_fresh_process(function: Callable, *arguments):
    """function(*arguments) in an interpreter of its own: what it returns, or raises of InputError,
    KeyboardInterrupt and SystemExit. SystemExit, too, if the process dies."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    answer = None
    try:
        (answer,) = receiver.recv()
    except EOFError:
        process.join()
        sys.exit(f"taut: a process of the suite died, its exit code is {process.exitcode}")
    except KeyboardInterrupt:
        process.join(1)  # a terminal interrupts it, too
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        process.join(PATIENCE)
        process.kill()
        raise
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer
