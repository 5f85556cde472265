"""The documentation that `tox -e docs` builds, in headless Chromium: legible at both widths, and nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[1] / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = [
    pytest.mark.skipif(not SITE.is_dir(), reason="needs the built site: tox -e docs"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
PAGES = [path.relative_to(SITE).as_posix() for path in sorted(SITE.glob("**/index.html"))]
OVERFLOWING = "document.documentElement.scrollWidth > innerWidth + 1"
BROKEN = "[...document.images].filter((i) => i.loading !== 'lazy' && !i.naturalWidth).map((i) => i.src)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_page_fits_and_fetches_nothing(browser: Any, width: int, scheme: str) -> None:
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("request", lambda request: asked.append(request.url))
    assert len(PAGES) > 30
    faults = {}
    for name in PAGES:
        page.goto((SITE / name).as_uri())
        found = [*page.evaluate(BROKEN), *(["overflows"] if page.evaluate(OVERFLOWING) else [])]
        faults |= {name: found} if found else {}
    page.close()
    assert faults == {}
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_dark_page_is_dark(browser: Any) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((SITE / "index.html").as_uri())
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert grounds[0] != grounds[1]
