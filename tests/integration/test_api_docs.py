"""The API reference in a browser. It loads files from the running service only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from support.browser import open_browser, why_missing
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
WAIT_S = 20
# Addresses that cause no network traffic: the page's icons and the browser's start page.
LOCAL_SCHEMES = ("data:", "chrome:", "chrome-")

CALLS = {
    "payments": [
        "POST /accounts",
        "POST /accounts/{user_id}/deposit",
        "GET /accounts/balance",
        "GET /accounts/{user_id}/transfers",
        "GET /livez",
        "GET /readyz",
    ],
    "orders": [
        "GET /orders",
        "POST /orders",
        "GET /order/{order_id}",
        "GET /orders/{order_id}",
        "GET /livez",
        "GET /readyz",
    ],
}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """Start Chromium with a new profile."""
    if why_missing():
        pytest.skip(why_missing())
    with open_browser(tmp_path / "profile") as opened:
        yield opened


def find(browser: Chrome, selector: str) -> WebElement:
    """Wait until an element is on the page, and return it."""
    return WebDriverWait(browser, WAIT_S).until(
        lambda _: browser.find_element(By.CSS_SELECTOR, selector), selector
    )


def open_docs(browser: Chrome, url: str) -> list[str]:
    """Open the API reference from the index page, and return the calls that it lists."""
    browser.get(url)
    browser.find_element(By.LINK_TEXT, "API reference; you can try each call").click()
    find(browser, ".opblock")
    return [
        " ".join(
            shown.find_element(By.CSS_SELECTOR, selector).text.replace("\u200b", "")
            for selector in (".opblock-summary-method", ".opblock-summary-path")
        )
        for shown in browser.find_elements(By.CSS_SELECTOR, ".opblock")
    ]


def requested_urls(browser: Chrome) -> set[str]:
    """Return every address that the browser requested."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


def browser_errors(browser: Chrome) -> list[str]:
    """Return the browser's errors, such as missing files and violations of the page's policy."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_call_is_tried_out_in_the_docs(
    browser: Chrome, payments_url: str, tmp_path: Path
) -> None:
    with serve("payments", payments_url, tmp_path / "api.log") as url:
        assert sorted(open_docs(browser, url)) == sorted(CALLS["payments"])
        browser.save_screenshot(str(tmp_path / "docs.png"))

        find(browser, "#operations-accounts-post_accounts .opblock-summary-control").click()
        find(browser, ".try-out__btn").click()
        find(browser, ".execute").click()
        answer = ".live-responses-table .response"
        status = find(browser, f"{answer} .response-col_status").text
        body = find(browser, f"{answer} .response-col_description").text
        browser.save_screenshot(str(tmp_path / "tried.png"))

        assert status.startswith("201")
        assert "Account created" in body
        # The browser sent the example of the docs, whose user is USER.
        balance = requests.get(f"{url}/accounts/balance?user_id={USER}", timeout=10)
        assert balance.json() == {"balance": 0}
        assert browser_errors(browser) == []
        requested = requested_urls(browser)
        assert f"{url}/openapi.json" in requested
        assert {
            each for each in requested if not each.startswith((f"{url}/", *LOCAL_SCHEMES))
        } == set()


def test_the_docs_of_orders_show_every_call(
    browser: Chrome, orders_url: str, tmp_path: Path
) -> None:
    with serve("orders", orders_url, tmp_path / "api.log") as url:
        assert sorted(open_docs(browser, url)) == sorted(CALLS["orders"])
        browser.save_screenshot(str(tmp_path / "docs.png"))
        assert browser_errors(browser) == []
