"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest

_OPTIONS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic")

_CLOSE_SECONDS = 60.0
"""What the browser and its driver may take to end; they are killed then, for the tests are over."""


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium; tests are skipped where there is none (``make test`` installs it where it can)."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    before = set(psutil.Process().children())
    with ExitStack() as opened:
        browser = opened.enter_context(sync_playwright()).chromium.launch(executable_path=executable, args=_OPTIONS)
        driver = set(psutil.Process().children()) - before
        opened.callback(browser.close)
        yield browser
        with _killed_in_time(driver):
            opened.close()


@contextmanager
def _killed_in_time(processes: set[psutil.Process]) -> Iterator[None]:
    def kill() -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    timer = threading.Timer(_CLOSE_SECONDS, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
