"""The HTML report: what its text holds, and what a real browser shows of it."""

import re
from html.parser import HTMLParser

import pytest

import bench_records
import chromium
from taut.bench import record, report

FIGURES = """[...document.querySelectorAll('figure')].map((figure) => {
  const box = figure.querySelector('svg').getBoundingClientRect();
  return {caption: figure.querySelector('figcaption').textContent, x: box.x,
          y: box.y + window.scrollY, width: box.width, height: box.height}; })"""
SHOWN = "[...document.querySelectorAll('#results tbody')].filter((b) => !b.hidden).length"
FILTERED = f"""(() => {{ const field = document.getElementById('filter');
  const search = (words) => {{ field.value = words; field.dispatchEvent(new Event('input')); }};
  search('layer_norm 4096'); const shown = {SHOWN}; search(''); return shown; }})()"""
OVERFLOW = """[document.documentElement, ...document.querySelectorAll('.tile, figure, dl')]
  .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent.slice(0, 80))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.page(record.parse(bench_records.document())), encoding="utf-8")
    return path


class References(HTMLParser):
    """Every attribute that could make a browser ask for something."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]


def test_the_page_refers_to_nothing_outside_it(page):
    text = page.read_text(encoding="utf-8")
    references = References()
    references.feed(text)
    assert references.found and all(r.startswith(("#", "data:")) for r in references.found)
    assert set(re.findall(r"url\((.)", text)) == {"#"} and "@import" not in text
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names)), "names of SVG parts collide"


def test_what_is_measured_is_in_the_page(page):
    text = page.read_text(encoding="utf-8")
    for needed in ("0123456789ab", "2026-11-21 09:30", "Made-up CPU", "openvino, ctranslate2",
                   "torch 2.13.0", "25 300 tokens/s", "mean cosine 0.9993"):  # fmt: skip
        assert needed in text, needed
    rows = record.parse(bench_records.document()).rows
    assert len(re.findall(r'<tr class="(?:taut|peer)">', text)) == len(rows)


def test_a_failure_is_told_and_escaped():
    document = bench_records.document()
    document["benchmarks"] = document["benchmarks"][-14:]
    document["failures"] = {"bench_norm.py::test_norm[x]": "taut is wrong: error <3> & more"}
    text = report.page(record.parse(document))
    assert "taut is wrong: error &lt;3&gt; &amp; more" in text


def colors_in(image, box):
    """How many colors a box of the picture holds."""
    corner = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    crop = image.crop(tuple(map(int, corner)))
    return len(crop.getcolors(crop.width * crop.height))


@pytest.mark.parametrize("dark", (False, True), ids=("light", "dark"))
def test_a_browser_shows_every_plot_and_complains_of_nothing(page, tmp_path, dark):
    seen = chromium.look(page, tmp_path, (FIGURES, SHOWN, FILTERED, OVERFLOW), dark=dark)
    assert seen.complaints == []
    assert [u for u in seen.requests if not u.startswith("data:")] == [page.as_uri()]
    figures, shown, filtered, overflow = seen.values
    captions = [figure["caption"] for figure in figures]
    assert "varlen_attention, bf16, head dim 64" in captions
    assert "minilm, arrival" in captions
    assert any(c.startswith("lowbit_linear, rows 512") for c in captions)
    for figure in figures:
        assert figure["width"] > 400 and figure["height"] > 200, figure
        assert colors_in(seen.screenshot, figure) > 100, f"blank: {figure}"
    assert shown == len(record.parse(bench_records.document()).groups()) and filtered == 1
    assert overflow == [], "wider than the place it has"
    ground = seen.screenshot.getpixel((2, 2))
    assert max(ground) < 60 if dark else ground == (255, 255, 255)


def test_trouble_would_be_seen(tmp_path):
    """The same look at a page that is blank, throws, and asks for what is not there."""
    path = tmp_path / "bad.html"
    path.write_text('<!doctype html><img src="missing.png"><script>undefined_function()</script>')
    seen = chromium.look(path, tmp_path / "profile")
    assert any("Uncaught" in complaint for complaint in seen.complaints)
    assert any(url.endswith("missing.png") for url in seen.requests)
    whole = {"x": 100, "y": 100, "width": 800, "height": 700}
    assert colors_in(seen.screenshot, whole) == 1
