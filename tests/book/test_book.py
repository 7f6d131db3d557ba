"""The book that `make book` made: its links lead somewhere, it needs no network, and it shows what the notebooks found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "build" / "book"
SITE = BOOK / "site"
pytestmark = pytest.mark.book


class Links(HTMLParser):
    """What a page names, what it links to, and what a browser fetches to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.leads_to: list[str] = []
        self.fetches: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names |= {found[key] or "" for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.leads_to.append(found["href"] or "")
        if tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.fetches.append(found["src"] or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.fetches.append(found["href"] or "")


def pages() -> list[Path]:
    return [path for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts]


@pytest.fixture(scope="module")
def read() -> dict[Path, Links]:
    assert (SITE / "index.html").is_file(), "make it first: make book"
    return {path: Links(path.read_text(encoding="utf-8")) for path in pages()}


def test_every_link_within_the_book_leads_to_a_page_and_a_heading(read: dict[Path, Links]) -> None:
    broken = []
    for page, links in read.items():
        for link in links.leads_to:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                broken.append(f"{page.relative_to(SITE)}: {link}")
            elif parts.fragment and target in read and unquote(parts.fragment) not in read[target].names:
                broken.append(f"{page.relative_to(SITE)}: no heading {link}")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(read: dict[Path, Links]) -> None:
    fetched = {link for links in read.values() for link in links.fetches if not link.startswith("data:")}
    assert not {link for link in fetched if urlsplit(link).scheme or link.startswith("//")}
    for page, links in read.items():
        for link in links.fetches:
            if not link.startswith("data:"):
                assert (page.parent / unquote(urlsplit(link).path)).is_file(), (page, link)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_shows_what_it_found(path: Path) -> None:
    made = json.loads((BOOK / "source" / "notebooks" / path.name).read_text(encoding="utf-8"))
    outputs = [output for cell in made["cells"] for output in cell.get("outputs", ())]
    assert len(outputs) >= 3
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = (SITE / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    assert text.count('class="cell_output') >= 3
    assert "application/vnd.jupyter.widget-view" not in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from jupyter_servers import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 420)])
def test_every_page_opens_without_a_network_an_error_or_a_sideways_scroll(
    browser: Any, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    shown = context.new_page()
    faults: list[str] = []
    shown.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("requestfailed", lambda request: faults.append(request.url))
    for page in pages():
        shown.goto(page.as_uri())
        assert shown.locator("h1").count() >= 1 or page.stem in ("genindex", "search"), page
        over = shown.evaluate("document.documentElement.scrollWidth - innerWidth")
        if over > 0:
            faults.append(f"{page.relative_to(SITE)} is {over} pixels wider than the window")
    context.close()
    assert not faults
