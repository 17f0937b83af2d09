"""A real Chromium, from Debian's package (`make build/chromium/chromium`), driven by Playwright."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path(__file__).parents[2] / "build" / "chromium" / "chromium"
expect.set_options(timeout=30_000)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run Chromium without a window; the test fails where it is missing."""
    if not CHROMIUM.is_file():
        pytest.fail(f"{CHROMIUM} is missing: tools/fetch_chromium.sh build/chromium brings it")
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers and root do not have; it only loads pages of this machine here.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def until(page: Page, condition: str, *, within_s: float = 30) -> None:
    """Wait until a JavaScript expression is true; Playwright's own wait needs eval, which the page forbids."""
    end = time.monotonic() + within_s
    while not page.evaluate(condition):
        if time.monotonic() > end:
            pytest.fail(f"not within {within_s:g} s: {condition}")
        page.wait_for_timeout(25)
