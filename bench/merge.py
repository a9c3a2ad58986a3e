"""One record out of those that several processes made of the same suite.

Some speeds hold for the life of a process: its hash seed, its heap, where memory lands. Rounds of
several, pooled, have that in their spread.
"""

import statistics
from collections.abc import Sequence

from pytest_benchmark.stats import Stats

from taut.bench import machine


def _pooled(rows: Sequence[dict], roofs: dict[str, float]) -> dict:
    """The row of the largest error, with the rounds of all."""
    row = max(rows, key=lambda r: r["extra_info"]["error"])
    stats, extra = Stats(), row["extra_info"]
    for one in rows:
        for duration in one["stats"]["data"]:
            stats.update(duration)
    share = machine.share_of(
        roofs, extra["roof"], extra["bandwidth"], extra["flops"], extra["bytes"], stats.median
    )
    return row | {
        "stats": row["stats"] | stats.as_dict() | {"data": stats.data},
        "extra_info": extra | {"roof_share": share, "processes": len(rows)},
    }


def merged(documents: Sequence[dict]) -> dict:
    """Documents of `session.run`, as one: rounds pooled, roofs the medians of all probes, the rest
    as the first has it. What failed anywhere is no row; what was skipped is none if no process
    measured it."""
    first = documents[0]
    roofs = {
        name: statistics.median(document["machine_info"]["roofs"][name] for document in documents)
        for name in first["machine_info"]["roofs"]
    }
    failures, skipped, rows = {}, {}, {}
    for document in reversed(documents):
        failures |= document["failures"]
        skipped |= document["skipped"]
    for document in documents:
        for row in document["benchmarks"]:
            if row["fullname"] not in failures:
                rows.setdefault(row["fullname"], []).append(row)
    return first | {
        "machine_info": first["machine_info"] | {"roofs": roofs, "processes": len(documents)},
        "benchmarks": [_pooled(of_one, roofs) for of_one in rows.values()],
        "failures": failures,
        "skipped": {test: why for test, why in skipped.items() if test not in rows | failures},
    }
