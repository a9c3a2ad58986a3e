"""The HTML report of a record: one file that needs nothing else."""

from html import escape

from taut.bench import plots, table
from taut.bench.record import Record, Row, unit_of

STYLE = """
:root { --ink: #1b1f24; --muted: #59616a; --faint: #9aa1a9; --paper: #ffffff; --panel: #f7f8fa;
  --line: #e3e6ea; --accent: #c2410c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --muted: #a3abb3; --faint: #6d757e;
  --paper: #15181c; --panel: #1d2126; --line: #30363d; --accent: #ff8a4c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 30px; letter-spacing: -.02em; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 52px 0 14px; padding-top: 10px; border-top: 1px solid var(--line); }
.lead { color: var(--muted); margin: 0 0 26px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 26px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 11px 14px; line-height: 1.4; }
.tile b { display: block; font-size: 18px; font-weight: 650;
  white-space: nowrap; }
.tile span { color: var(--muted); font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 18px; padding: 14px 18px 10px; background: var(--panel);
  border: 1px solid var(--line); border-radius: 8px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr));
  gap: 0 16px; }
.wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; margin-bottom: 6px; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
input { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; padding: 6px 12px; width: min(360px, 100%); margin-bottom: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: 4px 10px; white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--paper); }
tr.group th { font-weight: 400; padding-top: 14px; border-bottom: 1px solid var(--line);
  white-space: normal; }
tr.group i { font-style: normal; color: var(--muted); padding-left: 6px; }
tr.taut td { font-weight: 650; }
tr.taut td:first-child { color: var(--accent); }
.number { text-align: right; }
.failed { color: #e03131; }
"""
# Shows the groups that hold every word of the field.
SCRIPT = """
const field = document.getElementById('filter');
field.addEventListener('input', () => {
  const words = field.value.toLowerCase().split(/\\s+/);
  for (const body of document.querySelectorAll('#results tbody')) {
    const text = body.dataset.text;
    body.hidden = !words.every((word) => text.includes(word));
  }
});
"""
FAITHFUL = 0.99  # mean cosine from which a quantized encoder is worth a headline
COLUMNS = table.COLUMNS[2:]  # what comes before is said once per group


def _tiles(record: Record) -> str:
    """The fastest encoder that embeds as the original does, how many cases, and the roofs."""
    tiles = []
    own = [row for row in record.rows if row.role == "taut"]
    encoders = [row for row in own if (row.mean_cosine or 0) >= FAITHFUL]
    if encoders:
        best = max(encoders, key=lambda row: row.rate[0])
        cosine = f"mean cosine {best.mean_cosine:.4f}"
        tiles.append((table.rate(*best.rate), f"{best.contender}, {best.case}, {cosine}"))
    groups = record.groups()
    tiles.append((str(len(groups)), f"cases, {len({row.op for row in record.rows})} ops"))
    for name, value in record.roofs.items():
        tiles.append((table.rate(value, unit_of(name)), f"{name} roof, probed"))
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in tiles
    )


def _facts(record: Record) -> str:
    facts = table.environment(record)
    facts["peers"] = "; ".join(f"{k}: {v}" for k, v in table.peers(record).items())
    if missing := record.machine.get("peers_missing"):
        facts["peers missing"] = ", ".join(missing)
    items = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    items += [
        f'<dt class="failed">failed</dt><dd class="failed">{escape(test)}: {escape(cause)}</dd>'
        for test, cause in record.failures.items()
    ]
    items += [
        f"<dt>skipped</dt><dd>{escape(contenders)}: {escape(cause)}</dd>"
        for cause, contenders in table.skipped(record).items()
    ]
    return f"<dl>{''.join(items)}</dl>"


def _body(group: list[Row]) -> str:
    """The group's rows, under what they share."""
    first = group[0]
    lines = [
        f'<tr class="group"><th colspan="{len(COLUMNS)}"><b>{escape(first.heading)}</b>'
        f" {escape(first.case)} <i>{escape(first.group_dtype)}</i></th></tr>"
    ]
    for row in group:
        contender, *numbers = table.cells(row, group)[2:]
        numbers = "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
        lines.append(f'<tr class="{row.role}"><td>{escape(contender)}</td>{numbers}</tr>')
    words = " ".join((first.group, *(row.contender for row in group))).lower()
    return f'<tbody data-text="{escape(words)}">{"".join(lines)}</tbody>'


def _results(record: Record) -> str:
    contender, *numbers = COLUMNS
    heads = "".join(f'<th class="number">{column}</th>' for column in numbers)
    bodies = "".join(map(_body, record.groups().values()))
    return (
        '<input id="filter" type="search" placeholder="Filter: attention bf16"'
        ' aria-label="Filter the results">'
        f'<div class="scroll"><table id="results"><thead><tr><th>{contender}</th>{heads}</tr>'
        f"</thead>{bodies}</table></div>"
    )


def page(record: Record) -> str:
    """The report as one HTML document without references to anything outside it."""
    sections = {"Where and when": _facts(record)}
    for title, draw in plots.FIGURES.items():
        figures = "".join(
            f"<figure{' class=wide' if plot.wide else ''}><figcaption>{escape(plot.title)}"
            f"</figcaption>{plot.svg}</figure>"
            for plot in draw(record)
        )
        if figures:
            sections[title] = f'<div class="figures">{figures}</div>'
    sections["All results"] = _results(record)
    anchors = {title: title.lower().replace(" ", "-").replace(":", "") for title in sections}
    links = "".join(f'<a href="#{anchors[title]}">{escape(title)}</a>' for title in sections)
    content = "".join(
        f'<section><h2 id="{anchors[title]}">{escape(title)}</h2>{body}</section>'
        for title, body in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>taut bench: {escape(record.device)}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>taut bench</h1>"
        f'<p class="lead">{escape(record.device)}, {record.datetime[:10]}. Medians of interleaved '
        "rounds, spread is the interquartile range; useful work is counted from real tokens; error "
        "is the largest difference to fp64, for encoders 1 - the worst cosine. Every row passed its "
        "check.</p>"
        f'<div class="tiles">{_tiles(record)}</div><nav style="margin-top:26px">{links}</nav>'
        f"{content}</main><script>{SCRIPT}</script></body></html>\n"
    )
