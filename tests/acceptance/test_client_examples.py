"""The examples of docs/api.md, as a client would run them, while answers get lost."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.stack import Stack

pytestmark = pytest.mark.acceptance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
ADDRESS = "http://localhost:8081"


def example(language: str) -> str:
    """The page's only example in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert ADDRESS in found
    return str(found)


@contextmanager
def losing_the_first_answer(port: int) -> Iterator[str]:
    """Where a server's first answer is lost, though it carried the request out; its address."""
    lost = threading.Event()

    def pass_on(client: socket.socket) -> None:
        # An answer may come in pieces: what there is goes on, whichever side it is from.
        with client, socket.create_connection(("127.0.0.1", port)) as server, suppress(OSError):
            to = {client: server, server: client}
            while ready := select.select([client, server], [], [], 30)[0]:
                for one in ready:
                    data = one.recv(65536)
                    if one is server and data and not lost.is_set():
                        lost.set()
                        return
                    if not data:
                        return
                    to[one].sendall(data)

    def accept() -> None:
        threads = []
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=pass_on, args=(listening.accept()[0],))
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
    assert lost.is_set()


def orders_of(stack: Stack, user_id: str) -> list[str]:
    listed = requests.get(f"{stack.orders}/orders?user_id={user_id}", timeout=10)
    return [order["Status"] for order in listed.json()]


def test_the_script_places_one_order_though_its_answer_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    user_id = stack.open_account(5000)
    with losing_the_first_answer(stack.ports["ORDERS_PORT"]) as address:
        script = tmp_path / "place_order.py"
        script.write_text(example("python").replace(ADDRESS, address), "utf-8")
        told = [
            subprocess.run(
                [sys.executable, str(script), user_id, "3900"],
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
            ).stdout.split()
            for _ in range(2)
        ]
    assert [words[1:] for words in told] == [["success"], ["failed", "insufficient_funds"]]
    assert orders_of(stack, user_id) == ["failed", "success"]
    assert stack.balance(user_id) == 1100


def test_the_commands_place_one_order_though_its_answer_is_lost(stack: Stack) -> None:
    user_id = stack.open_account(5000)
    with losing_the_first_answer(stack.ports["ORDERS_PORT"]) as address:
        told = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example("sh").replace(ADDRESS, address)],
            env={**stack.env, "USER_ID": user_id},
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout
    assert '"Status":"success"' in told
    assert orders_of(stack, user_id) == ["success"]
