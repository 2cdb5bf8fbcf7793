"""Chromium, for those who test and time the pages: users open them in whatever they have."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlloss.errors import NotInstalled

BINARIES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (  # silent on the network of its own accord
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """The machine's Chromium, without a window, driven by playwright. Raises: NotInstalled where either is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NotInstalled("playwright is not installed; pip install 'rlloss[test]'") from error
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        raise NotInstalled(f"found none of {', '.join(BINARIES)}; apt-get install chromium")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium refuses its sandbox
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=[*QUIET, *(["--no-sandbox"] if root else [])])
        try:
            yield browser
        finally:
            browser.close()
