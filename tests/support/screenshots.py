"""Take the pictures of docs/images from a running system: ``make screenshots``.

It needs Chromium, and the default ports must be free.
"""

from __future__ import annotations

import html
import sys
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from settle.stack.definition import PORTS
from support.browser import open_browser, why_missing
from support.stack import Stack
from support.web import ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

IMAGES = ROOT / "docs" / "images"
ORDERS = f"http://localhost:{PORTS['ORDERS_PORT']}"
WINDOW = 1000, 1200
MARGIN = 18
WAIT_S = 20
_TERMINAL = """\
<!doctype html><meta charset="utf-8"><body style="margin: 0; background: #1c1f26">
<pre style="margin: 18px; display: inline-block; color: #d8dee9; font: 14px/1.45 monospace">{}</pre>
"""


def main() -> None:
    """Start the system, take every picture, and remove the system."""
    if why_missing():
        sys.exit(f"Error: {why_missing()}")
    stack = Stack(**{name: str(port) for name, port in PORTS.items()})
    try:
        with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
            _take_all(stack, browser)
    finally:
        stack.discard()


def _take_all(stack: Stack, browser: Chrome) -> None:
    up = stack.up().partition("\nTry next")[0].replace(str(stack.home), ".settle")
    up = up[up.index("  Settings") :]  # without the warning that root gets
    demo = stack.settle("demo").stdout
    _take_terminal(browser, "running", f"$ make up\n{up}\n$ make demo\n{demo}")
    newest = requests.get(f"{ORDERS}/orders", {"limit": 1}, timeout=10).json()[0]["ID"]
    trace = stack.settle("trace", newest).stdout
    _take_terminal(browser, "trace", f"$ settle trace {newest}\n{trace}")
    _take_page(browser, "api-docs", f"{ORDERS}/docs", ".opblock")
    _take_page(browser, "problem", f"{ORDERS}/problems/unknown-order", "p:last-of-type")


def _take_terminal(browser: Chrome, name: str, shown: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as page:
        page.write(_TERMINAL.format(html.escape(shown.rstrip())))
        page.flush()
        _take_page(browser, name, f"file://{page.name}", "pre")


def _take_page(browser: Chrome, name: str, url: str, selector: str) -> None:
    """Store a picture of a page, down to the last element that the CSS selector matches."""
    browser.set_window_size(*WINDOW)
    browser.get(url)
    elements = WebDriverWait(browser, WAIT_S).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, selector)
    )
    last = elements[-1].rect
    clip = {"x": 0, "y": 0, "scale": 1}
    clip |= {
        "width": last["x"] + last["width"] + MARGIN,
        "height": last["y"] + last["height"] + MARGIN,
    }
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}.png").write_bytes(b64decode(shot["data"]))


if __name__ == "__main__":
    main()
