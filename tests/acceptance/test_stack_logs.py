"""In the logs of the whole stack, one id leads through every process that handled an order."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest
import requests
from sqlalchemy.engine import make_url

from settle.stack.definition import DATABASE_URLS
from settle.stack.state import StateFolder
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.stack import Stack

pytestmark = pytest.mark.acceptance

# In the order in which they handle an order. payments-api handles none.
PROCESSES = (
    "orders-api",
    "orders-relay",
    "payments-consumer",
    "payments-relay",
    "orders-consumer",
)


def grep(stack: Stack, text: str) -> dict[str, list[str]]:
    """Return the lines that contain a text, by the process that wrote them."""
    logs = sorted((stack.home / "logs").glob("*.log"))
    found = subprocess.run(
        ["grep", "--with-filename", "--fixed-strings", text, *logs],
        capture_output=True,
        text=True,
        check=False,  # no match is a valid result
    )
    lines: dict[str, list[str]] = {}
    for line in found.stdout.splitlines():
        path, _, written = line.partition(":")
        lines.setdefault(path.rpartition("/")[2].removesuffix(".log"), []).append(written)
    return lines


def test_one_grep_follows_an_order_through_every_process(stack: Stack) -> None:
    user_id = stack.open_account(1_000)
    request_id = f"order-of-{uuid.uuid4()}"
    placed = requests.post(
        f"{stack.orders}/orders",
        json={"user_id": user_id, "amount": 10, "description": "a secret wish"},
        headers={"X-Request-ID": request_id},
        timeout=10,
    )
    assert placed.headers["X-Request-ID"] == request_id
    assert stack.wait_settled([placed.headers["Location"]]) == ["success"]

    def followed() -> bool:
        found = grep(stack, request_id)
        assert set(found) == set(PROCESSES)
        return True

    wait_until(followed, what="a line of every process")
    first_lines = {name: json.loads(lines[0]) for name, lines in grep(stack, request_id).items()}
    assert first_lines["orders-api"]["event"] == "web.request"
    assert first_lines["orders-api"]["status"] == 202
    assert grep(stack, "a secret wish") == {}


def test_no_log_holds_a_password(stack: Stack) -> None:
    environment = StateFolder(stack.home).read_env()
    passwords = {make_url(environment[name]).password for name in DATABASE_URLS.values()}
    assert len(passwords) == 2
    for password in passwords:
        assert password
        assert grep(stack, password) == {}
