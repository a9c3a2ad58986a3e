"""The report's plots, each an inline SVG whose ink takes the page's colours."""

import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter  # noqa: E402

from taut.bench.record import ENCODE, Record, Row, unit_of  # noqa: E402

# Axes that are swept, and what they are called.
SWEPT = {"length": "tokens per sequence", "rows": "M, rows", "bits": "bits"}
TAUT = ("#d9480f", "#f2b705", "#a61e4d", "#8d5524", "#ff8fab", "#e03131")
PEERS = ("#1971c2", "#2f9e44", "#6741d9", "#0c8599", "#868e96", "#5c940d", "#9c36b5", "#495057")
INK, FAINT = "#010203", "#040506"  # stand for the page's own colours, see _svg
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
# Axes that say the same as the swept one in other words.
SYNONYMS = {"length": {"lengths"}, "bits": {"scheme"}}
plt.rcParams.update(
    {
        "svg.fonttype": "none", "svg.hashsalt": "taut", "font.size": 10.5, "axes.grid": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "axes.titlesize": 11, "axes.titleweight": "regular",
        "axes.titlecolor": INK, "axes.titlelocation": "left", "text.color": INK,
        "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
        "ytick.labelcolor": INK, "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6,
        "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5.5,
        "figure.constrained_layout.use": True,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One figure of the report."""

    title: str
    svg: str
    wide: bool = False  # takes the page's whole width


def _svg(figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Names of parts must be unique in the page that the figures share.
    name = re.sub(r"\W+", "-", label)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


class _Colors:
    """One colour per contender in the whole report: warm for taut, cold for the others."""

    def __init__(self, record: Record) -> None:
        self.of: dict[str, str] = {}
        for role, palette in (("taut", TAUT), ("peer", PEERS)):
            names = dict.fromkeys(row.contender for row in record.rows if row.role == role)
            self.of.update(zip(names, itertools.cycle(palette), strict=False))


def _plain_ticks(axis, values: list[float]) -> None:
    """Ticks at the measured sizes, written out."""
    axis.set_major_locator(NullLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(values, [f"{value:g}" for value in values])


def _families(record: Record, axis: str) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of what was measured at several values of an axis, all else equal that the
    contenders of a case share."""
    found: dict[str, list[Row]] = {}
    changing = {axis, *SYNONYMS.get(axis, ())}
    for group in record.groups().values():
        rows = [row for row in group if isinstance(row.axes.get(axis), int | float)]
        if not rows or rows[0].stem == ENCODE:
            continue
        fixed = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in rows[0].axes.items()
            if name not in changing and all(row.axes.get(name) == value for row in rows)
        ]
        # Along bits, each number of bits may have a dtype of its own.
        dtype = [] if axis == "bits" else [rows[0].group_dtype]
        found.setdefault(", ".join((rows[0].op, *dtype, *fixed)), []).extend(rows)
    for title, rows in found.items():
        if len({row.axes[axis] for row in rows}) > 1:
            yield title, rows


def _sweep(title: str, rows: list[Row], axis: str, colors: _Colors) -> Plot:
    """Time and throughput along an axis, a line per contender and dtype."""
    figure, (time, rate) = plt.subplots(1, 2, figsize=(6, 3.2))
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.role != "taut", r.axes[axis])):
        lines.setdefault((row.contender, row.group_dtype), []).append(row)
    dtypes = list(dict.fromkeys(row.group_dtype for row in rows))
    legend = {}
    for (name, dtype), points in lines.items():
        x = [row.axes[axis] for row in points]
        taut = points[0].role == "taut"
        style = {
            "color": colors.of[name], "marker": "o" if taut else "s", "zorder": 3 if taut else 2,
            "linewidth": 2.6 if taut else 1.4, "linestyle": LINES[dtypes.index(dtype) % len(LINES)],
        }  # fmt: skip
        time.errorbar(x, [1e3 * r.median for r in points], [500 * r.iqr for r in points], **style)
        (line,) = rate.plot(x, [r.rate[0] / 1e9 for r in points], **style)
        legend[name if len(dtypes) == 1 else f"{name}, {dtype}"] = line
    for axes, label in ((time, "ms per call"), (rate, f"G{rows[0].rate[1]}")):
        axes.set_title(label)
        axes.set_xlabel(SWEPT[axis])
        axes.set_xscale("log", base=2)
        _plain_ticks(axes.xaxis, sorted({row.axes[axis] for row in rows}))
    rate.set_ylim(bottom=0)
    span = max(row.median for row in rows) / min(row.median for row in rows)
    if span > 10:
        time.set_yscale("log")
        time.yaxis.set_major_locator(LogLocator(10, subs=(1,) if span > 300 else (1, 3)))
        time.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        time.yaxis.set_minor_formatter(NullFormatter())
    else:
        time.set_ylim(bottom=0)
    # matplotlib leaves out of a legend what begins with an underscore, as _int_mm does.
    names = [name.lstrip("_") for name in legend]
    figure.legend([*legend.values()], names, loc="outside lower center", ncols=3)
    return Plot(title, _svg(figure, f"{axis}: {title}"))


def sweeps(record: Record, axis: str) -> list[Plot]:
    """Time and throughput against length, rows or bits, a plot per op and fixed rest."""
    colors = _Colors(record)
    return [_sweep(title, rows, axis, colors) for title, rows in _families(record, axis)]


def roofline(record: Record) -> list[Plot]:
    """Every row of taut under the probed roofs, by operations per byte."""
    rows = [r for r in record.rows if r.role == "taut" and r.flops and r.bytes]
    bandwidths = {n: b for n, b in record.roofs.items() if unit_of(n) == "B/s"}
    peaks = {name: peak for name, peak in record.roofs.items() if name not in bandwidths}
    if not rows or not bandwidths or not peaks:
        return []
    figure, axes = plt.subplots(figsize=(11.5, 5))
    intensity = [row.flops / row.bytes for row in rows]
    low, high = min(intensity) / 3, max(intensity) * 4
    line = {"color": INK, "linewidth": 1.2, "alpha": 0.7, "zorder": 1}
    fastest, highest = max(bandwidths.values()), max(peaks.values())
    for name, bandwidth in bandwidths.items():
        end = min(highest / bandwidth, high)
        axes.plot([low, end], [bandwidth * x / 1e9 for x in (low, end)], **line)
        axes.annotate(f"{name}, {bandwidth / 1e9:,.0f} GB/s", (low, bandwidth * low / 1e9),
                      xytext=(6, 0), textcoords="offset points", va="top")  # fmt: skip
    for name, peak in peaks.items():
        axes.plot([max(peak / fastest, low), high], [peak / 1e9] * 2, **line)
        axes.annotate(f"{name}, {peak / 1e9:,.0f} G{unit_of(name)}", (high, peak / 1e9),
                      xytext=(0, 4), textcoords="offset points", ha="right")  # fmt: skip
    palette = TAUT[:1] + PEERS
    ops = list(dict.fromkeys(row.op for row in rows))
    for index, op in enumerate(ops):
        mine = [row for row in rows if row.op == op]
        axes.scatter([r.flops / r.bytes for r in mine], [r.flops / r.median / 1e9 for r in mine],
                     label=op, s=34, marker=MARKERS[index // len(palette) % len(MARKERS)],
                     color=palette[index % len(palette)], alpha=0.85,
                     zorder=2)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(low, high),
             xlabel="operations per byte (from real tokens)")  # fmt: skip
    axes.set_title("billions of useful operations per second")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(10))
    figure.legend(loc="outside right upper")
    return [Plot(record.device, _svg(figure, f"roofline: {record.device}"), wide=True)]


def accuracy(record: Record) -> list[Plot]:
    """Encoders: what accuracy they lose for what speed, a plot per model and order."""
    colors = _Colors(record)
    plots = []
    for group in record.groups((ENCODE,)).values():
        rows = [row for row in group if row.mean_cosine is not None]
        if len(rows) < 2:
            continue
        figure, axes = plt.subplots(figsize=(11.5, 4.6))
        for row in rows:
            loss, rate = max(1 - row.mean_cosine, 1e-9), row.rate[0] / 1e3
            taut = row.role == "taut"
            axes.scatter(rate, loss, s=20 + 5 * (row.size_mb or 0), zorder=2, alpha=0.8,
                         color=colors.of[row.contender], marker="o" if taut else "s")  # fmt: skip
            size = f", {row.size_mb:.0f} MB" if row.size_mb else ""
            axes.annotate(f"{row.contender}{size}", (rate, loss),
                          xytext=(0, 13 if taut else -13), textcoords="offset points",
                          ha="center", va="bottom" if taut else "top", fontsize=9.5,
                          fontweight="bold" if taut else "normal")  # fmt: skip
        axes.set(yscale="log", xlabel="thousands of tokens per second")
        axes.invert_yaxis()
        axes.margins(0.12, 0.16)
        axes.set_title(
            "1 - mean cosine to the exact embeddings (up is more exact, right is faster)"
        )
        title = rows[0].case
        plots.append(Plot(title, _svg(figure, f"accuracy: {title}"), wide=True))
    return plots


FIGURES: dict[str, Callable[[Record], list[Plot]]] = {
    "Encoders: accuracy against speed": accuracy,
    "Roofline": roofline,
    "Against length": lambda record: sweeps(record, "length"),
    "Against M": lambda record: sweeps(record, "rows"),
    "Against bits": lambda record: sweeps(record, "bits"),
}
