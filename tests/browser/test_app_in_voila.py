"""The app without code: Voila, with its token left on."""

from __future__ import annotations

import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from jupyter_servers import Lab, free_port, picture, serve, watched

pytestmark = pytest.mark.browser

expect = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
).expect


def test_the_app_opens_without_code_and_asks_who_comes_and_fetches_nothing(page: Any, lab: Lab, tmp_path: Path) -> None:
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "voila.log"
    # As `make app` starts it, but for the browser that it would open.
    command = [sys.executable, "-m", "workbench", "app", "--no-browser", f"--port={url.rpartition(':')[2]}"]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in serve(command, url, lab.environment, tmp_path, log, "/"):
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert "/login" in answer.url, "a stranger is asked for the token and sees nothing else"
        token = re.search(r"token=(\w+)", log.read_text())
        assert token, log.read_text()
        errors = watched(page, f"{url}/voila/static/")
        page.goto(f"{url}/?token={token[1]}", timeout=60_000)
        app = page.locator(".workbench").first
        expect(app.get_by_role("tab", name="Model", exact=True)).to_be_visible(timeout=120_000)
        app.locator("button:visible", has_text=re.compile("^Load$")).click()
        expect(app.get_by_text("onnxruntime-cpu can run every operator")).to_be_visible(timeout=60_000)
        picture(page, "voila")
        elsewhere = [item for item in asked if not item.startswith((url, "data:", "blob:"))]
        assert not elsewhere, f"works without a network: {elsewhere}"
        assert not errors, "\n".join(errors)
