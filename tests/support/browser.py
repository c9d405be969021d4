"""Chromium without a screen, as Debian installs it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from selenium import webdriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

_PROGRAMS = ("chromium", "chromedriver")


def why_missing() -> str:
    """Return how to install the browser if it is missing, and otherwise an empty string."""
    if all(map(shutil.which, _PROGRAMS)):
        return ""
    return "Chromium is missing: apt-get install chromium chromium-driver"


@contextmanager
def open_browser(profile: Path) -> Iterator[Chrome]:
    """Open a browser that sends no requests but those of its pages.

    Args:
        profile: the folder of its profile.
    """
    binary, driver = map(shutil.which, _PROGRAMS)
    assert binary is not None
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        "--window-size=1200,1600",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
