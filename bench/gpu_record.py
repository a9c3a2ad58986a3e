"""What bench/gpu_check.sh left in a folder as one record and one log:  gpu_record.py OUT

gpu_check.json is the suite's record, its parts joined, with "gpu_check" beside: the stages, what the
tests said, what the probes printed. It needs nothing but Python: a stage may have failed for want of
the rest.
"""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree


def _stages(folder: Path) -> dict[str, dict]:
    """The last line of each stage."""
    lines = (folder / "stages.jsonl").read_text().splitlines()
    return {stage["stage"]: stage for stage in map(json.loads, lines)}


def _cases(file: Path) -> list[tuple[str, set[str]]] | None:
    """The names of the tests of a file of pytest's, and what is said of each; None if it did not
    write all of it. A test that was cut off has no name there."""
    try:
        cases = ElementTree.parse(file).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return None
    found = []
    for case in cases:
        kinds = {child.tag for child in case} if case.get("name") else {"error"}
        found.append((case.get("name", "cut off"), kinds))
    return found


def _tests(folder: Path) -> dict[str, dict]:
    """Of every file of tests: how many passed and were skipped, and the names of those that failed."""
    found = {}
    for name in sorted({file.stem for file in folder.glob("test-*.*")}):
        cases = _cases(folder / f"{name}.xml")
        if cases is None:
            found[name.removeprefix("test-")] = {
                "passed": 0, "skipped": 0, "failed": [f"{name.removeprefix('test-')} did not end"]
            }  # fmt: skip
            continue
        failed = [case for case, kind in cases if kind & {"failure", "error"}]
        skipped = sum("skipped" in kind for _, kind in cases)
        found[name.removeprefix("test-")] = {
            "passed": len(cases) - skipped - len(failed),
            "skipped": skipped,
            "failed": failed,
        }
    return found


def _suite(folder: Path) -> dict:
    """The records of single stems joined; roofs are the best that any of their runs reached."""
    files = (_probe(file.read_text()) for file in sorted(folder.glob("bench-*.json")))
    parts = [part for part in files if isinstance(part, dict)]
    if not parts:
        return {"machine_info": {"device": "unknown-gpu"}, "commit_info": {}, "datetime": "",
                "benchmarks": []}  # fmt: skip
    joined = parts[0]
    for part in parts[1:]:
        joined["benchmarks"] += part["benchmarks"]
        roofs = joined["machine_info"].setdefault("roofs", {})
        for name, rate in part["machine_info"].get("roofs", {}).items():
            roofs[name] = max(rate, roofs.get(name, 0))
        for kind in ("failures", "skipped"):
            if kind in part:
                joined.setdefault(kind, {}).update(part[kind])
    return joined


def _probe(text: str) -> object:
    """The JSON that a probe prints, or what it printed before it failed."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    folder = Path(sys.argv[1])
    document = _suite(folder)
    document["gpu_check"] = {
        "stages": _stages(folder),
        "tests": _tests(folder),
        "probes": {f.stem: _probe(f.read_text()) for f in sorted(folder.glob("probe_*.txt"))},
    }
    (folder / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n")
    with (folder / "gpu_check.log").open("w") as log:
        for stage in document["gpu_check"]["stages"]:
            file = folder / f"{stage}.log"
            text = file.read_text(errors="replace") if file.exists() else "did not run\n"
            log.write(f"==== {stage}\n{text}\n")
        for file in sorted(folder.glob("test-*.log")):
            log.write(f"==== {file.stem}\n{file.read_text(errors='replace')}\n")


if __name__ == "__main__":
    main()
