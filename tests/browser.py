"""Pages in a real Chromium. A page that asks the network for anything, or logs an error, fails its test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUIET = (  # Chromium as root in a container, and silent on the network of its own accord
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright; skips where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'rlloss[test]'")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280, height: int = 900, **context: Any) -> Iterator[Any]:
    """The page of an HTML file, ``width`` pixels wide. Afterwards: no console error, no request beyond the file."""
    tab = browser.new_context(viewport={"width": width, "height": height}, **context)
    page = tab.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = path.resolve().as_uri()
    page.goto(address)
    yield page
    tab.close()
    assert errors == []
    outside = [url for url in asked if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != address]
    assert outside == []


def readable(page: Any, width: int) -> None:
    """Nothing is wider than the window, every picture has loaded, and no letter is smaller than 12 pixels."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, th, code, a, summary, label, button')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12
