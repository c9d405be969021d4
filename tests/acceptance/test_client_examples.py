"""The examples of docs/api.md work for a client even if answers are lost."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from support.ports import free_port
from support.tcp_proxy import Wire, http_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.stack import Stack

pytestmark = pytest.mark.acceptance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
ADDRESS = "http://localhost:8081"


def example(language: str) -> str:
    """Return the page's only example in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert ADDRESS in found
    return str(found)


@contextmanager
def drop_first_answer(port: int) -> Iterator[str]:
    """Yield the URL of a proxy that drops the server's first answer."""
    with Wire(http_client, free_port(), port) as wire, wire.losing_an_answer():
        yield f"http://127.0.0.1:{wire.port}"


def order_statuses(stack: Stack, user_id: str) -> list[str]:
    listed = requests.get(f"{stack.orders}/orders?user_id={user_id}", timeout=10)
    return [order["Status"] for order in listed.json()]


def test_the_script_places_one_order_if_its_first_answer_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    user_id = stack.open_account(5000)
    with drop_first_answer(stack.ports["ORDERS_PORT"]) as address:
        script = tmp_path / "place_order.py"
        script.write_text(example("python").replace(ADDRESS, address), "utf-8")
        results = [
            subprocess.run(
                [sys.executable, str(script), user_id, "3900"],
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
            ).stdout.split()
            for _ in range(2)
        ]
    assert [words[1:] for words in results] == [["success"], ["failed", "insufficient_funds"]]
    assert order_statuses(stack, user_id) == ["failed", "success"]
    assert stack.balance(user_id) == 1100


def test_the_commands_place_one_order_if_its_first_answer_is_lost(stack: Stack) -> None:
    user_id = stack.open_account(5000)
    with drop_first_answer(stack.ports["ORDERS_PORT"]) as address:
        output = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example("sh").replace(ADDRESS, address)],
            env={**stack.env, "USER_ID": user_id},
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout
    assert '"Status":"success"' in output
    assert order_statuses(stack, user_id) == ["success"]
