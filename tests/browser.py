"""Pages in a real Chromium. A page that asks the network for anything, or logs an error, fails its test."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlloss.errors import ConfigError
from rlloss.graph import browser


@contextmanager
def chromium() -> Iterator[Any]:
    """The Chromium of ``rlloss benchmark --of graph``; skips where it or playwright is missing."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(browser.chromium())
        except ConfigError as missing:
            pytest.skip(str(missing))
        yield running


@contextmanager
def opened(running: Any, path: Path, *, width: int = 1280, height: int = 900, **context: Any) -> Iterator[Any]:
    """The page of an HTML file, ``width`` pixels wide. Afterwards: no console error, no request beyond the file."""
    tab = running.new_context(viewport={"width": width, "height": height}, **context)
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
