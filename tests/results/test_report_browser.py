"""The HTML report in headless Chromium: silent, self-sufficient, legible, sortable."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepcache.files import write_text
from deepcache.results import report
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout
from deepcache.results.record import Record, read
from tests.examples import SETTINGS

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "bench" / "records.jsonl"
LEGIBLE = 4.5  # WCAG 2.2, success criterion 1.4.3
CONTRAST = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
      .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  return ["body", ".lead", ".notes li", ".published .number", "figcaption", "a", ".plot text"].map((selector) => {
    const style = getComputedStyle(document.querySelector(selector));
    const ink = luminance(selector === ".plot text" ? style.fill : style.color);
    return [selector, (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05)];
  });
}"""

OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll, .skip") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Table 1 with its plot, a picture wider than a phone, and names that do not break."""
    wide = picture("figure7", "A grid of images.", Image.new("RGB", (1500, 200)))
    table = Layout("figure7", columns=(Column("macs", "MACs (G)", 4, scale=1e9),))
    long = Record(
        table, {"method": "x" * 200}, {**SETTINGS, "model": "m" * 200}, {"macs": 1e7}, {}, "failed", {}, [wide]
    )
    records = [*(record for record in read(RESULTS) if record.table.name == "table1"), long]
    return write_text(
        tmp_path_factory.mktemp("report") / "report.html", report.page(records, "pytest bench " + "y" * 200)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The page of the committed results: every experiment of `tox -e bench`."""
    return write_text(tmp_path_factory.mktemp("report") / "whole.html", report.page(read(RESULTS)))


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Opens the page; afterwards nothing was said on the console and nothing but the file was asked for."""
    troubles: list[str] = []
    pages = []

    def open_page(path: Path = file, **options: Any) -> Any:
        def route(route: Any) -> None:
            if route.request.url == path.as_uri() or route.request.url.startswith("data:"):
                route.continue_()
            else:
                troubles.append(route.request.url)
                route.abort()

        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.route("**/*", route)
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert troubles == []


def test_nothing_overflows_and_a_wide_table_scrolls_by_itself(opened):
    page = opened()
    for width in (400, 1366):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
        table, region = page.evaluate("""(({ scrollWidth, clientWidth }) => [scrollWidth, clientWidth])(
            document.querySelector("#table1 .scroll"))""")
        assert table > region


def test_the_page_of_all_results_is_silent_and_fits(opened, whole):
    page = opened(whole)
    assert page.locator("section").count() > 10
    for width, scheme in ((400, "light"), (1200, "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []


def test_text_is_legible(opened):
    page = opened()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = dict(page.evaluate(CONTRAST))
        assert {name: ratio for name, ratio in found.items() if ratio < LEGIBLE} == {}
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", dark))) < 128) == (scheme == "dark")


def test_sorting_keeps_the_lines_of_a_row_together(opened):
    """A click sorts the table, and then the keyboard does."""
    page = opened()
    button = page.locator("#table1 .results th button", has_text="sFID")
    groups = """[...document.querySelectorAll("#table1 .results tbody")].map((group) =>
        [...group.rows].map((row) => row.innerText.trim()))"""
    column = """[...document.querySelectorAll("#table1 .results tbody")].map((group) =>
        Number(group.rows[0].cells[6].dataset.value))"""
    before = page.evaluate(groups)
    unsorted = page.evaluate(column)
    assert unsorted != sorted(unsorted)
    for direction, act in (("ascending", button.click), ("descending", lambda: button.press("Enter"))):
        act()
        assert page.evaluate(column) == sorted(unsorted, reverse=direction == "descending")
        assert sorted(page.evaluate(groups)) == sorted(before)
        assert button.locator("..").get_attribute("aria-sort") == direction
        assert page.locator(f"#table1 th[aria-sort={direction}]").count() == 1


def test_everything_recorded_and_the_source_are_sorted_too(opened):
    page = opened()
    page.locator("#table1 .results th button", has_text="source").click()
    assert page.locator("#table1 .results th[aria-sort=ascending]").inner_text() == "source"
    headers = page.locator("#table1 .details thead th").all_inner_texts()
    column = f"""[...document.querySelector("#table1 .details tbody").rows].map((row) =>
        row.cells[{headers.index("speedup")}].innerText)"""
    button = page.locator("#table1 .details th button", has_text=re.compile("^speedup$"))
    for sign in (1, -1):
        button.click()
        shown = page.evaluate(column)
        values = [float(text) for text in shown if text != "-"]
        assert values == sorted(values, key=lambda value: sign * value)
        assert shown == [text for text in shown if text != "-"] + ["-"] * shown.count("-")


def test_a_tap_on_a_plot_names_the_point(opened):
    page = opened(viewport={"width": 400, "height": 800}, has_touch=True)
    named = page.evaluate("document.querySelectorAll('#table1 .plot title')[3].textContent")
    page.locator("#table1 .plot g:has(> title)").nth(3).tap(force=True)
    assert page.locator("#table1 .plot output").inner_text() == named


def test_what_was_not_measured_sorts_last_and_names_sort_as_numbers(opened):
    page = opened()
    button = page.locator("#table1 .results th button", has_text="FID drift")
    first = "document.querySelector('#table1 .results tbody th').innerText"
    last = "[...document.querySelectorAll('#table1 .results tbody th')].at(-1).innerText"
    for _ in ("ascending", "descending"):
        button.click()
        assert page.evaluate(last) == "uncached"
    page.locator("#table1 .results th button", has_text="method").click()
    assert page.evaluate(first) == "10 steps (MACs of N=10)"
    names = page.locator("#table1 .results tbody th").all_inner_texts()
    assert names.index("uniform N=5") < names.index("uniform N=10")


def test_a_request_would_be_noticed(browser, file, tmp_path):
    """The guard itself: a page that asks for something does so under the same route."""
    leaking = tmp_path / "leaking.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", file.read_text())
    leaking.write_text(text.replace("</main>", '<img src="file:///nothing.png"></main>'))
    page, asked = browser.new_page(), []
    page.route("**/*", lambda route: (asked.append(route.request.url), route.continue_()))
    page.goto(leaking.as_uri())
    page.close()
    assert "file:///nothing.png" in asked
