"""Clients of the deployed server that stop before or in a request, or while they read an answer.

There are more such clients than threads. The server still answers other clients.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from itertools import cycle
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests
from sqlalchemy import create_engine, text

from services.orders.listing import PAGE_BYTES_MAX
from shared.settings import DEFAULT_THREADS as THREADS
from shared.web.problems.documents import MEDIA_TYPE
from support.small_limits import PATIENCE_S
from support.waiting import wait_until
from support.web import ROOT, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


WORKERS = 2
CLIENTS = 2 * WORKERS * THREADS
# Maximum time until all clients have an answer. They do not close their connections. An unchanged
# gunicorn worker would wait 2 s for each of its clients, one after another: 32 s if each of the two
# workers has half of the clients, and 64 s if one worker has all.
TIMEOUT_S = 25
# Their descriptions fill a page (PAGE_BYTES_MAX), which is more than the socket buffers hold.
ROWS = 100

# 16 silent clients for each thread. If a thread waited 5 s for each of them, it would need 80 s.
SILENT = 16 * WORKERS * THREADS

HEAD = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
INCOMPLETE = [
    b"P",
    b"POST /orders HTTP/1.1\r\nHost:",
    HEAD + b'Content-Length: 100\r\n\r\n{"user_id":',
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "orders-api.log"


@pytest.fixture(scope="module")
def port(database_url: str, log: Path) -> Iterator[int]:
    """Start the API in gunicorn, and yield its port."""
    short_timeouts = {
        "GUNICORN_CMD_ARGS": "--worker-class support.small_limits.ImpatientWorker",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    with serve("orders", database_url, log, **short_timeouts) as url:
        yield int(url.rpartition(":")[2])


def test_clients_that_send_nothing_do_not_block_others(port: int) -> None:
    """Load balancers connect without a request to probe, and browsers to be ready for a request."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(SILENT)]
        # The first client has been silent for the longest time. Its late request is answered.
        clients[0].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert clients[0].recv(15) == b"HTTP/1.1 200 OK"
        assert place(port).status_code == 202


def test_clients_that_stop_in_a_request_are_answered_408(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(CLIENTS)]
        for client, sent in zip(clients, cycle(INCOMPLETE), strict=False):
            client.sendall(sent)
        deadline = time.monotonic() + TIMEOUT_S
        assert place(port).status_code == 202
        for client, sent in zip(clients, cycle(INCOMPLETE), strict=False):
            client.settimeout(max(0.1, deadline - time.monotonic()))
            document, headers = problem_on(client)
            assert document["status"] == 408, sent
            assert document["type"] == "/problems/request-too-slow"
            assert document["request_id"] == headers["X-Request-ID"]
            assert headers["Connection"] == "close"
            assert client.recv(1) == b"", f"the connection stayed open after {sent!r}"


def test_a_client_that_sends_single_bytes_slowly_is_answered_408(port: int) -> None:
    """The time limit is for the whole request, not for the gap between two bytes."""
    with connect(port) as client:
        client.sendall(HEAD + b"Content-Length: 10000\r\n\r\n")
        client.settimeout(PATIENCE_S / 5)
        for _ in range(50):
            try:
                client.sendall(b" ")
                answered = client.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            assert answered
            break
        else:
            pytest.fail("the server still waits for the request")
        client.settimeout(30)
        assert problem_on(client)[0]["status"] == 408


def test_a_connection_may_be_idle_between_two_requests(port: int) -> None:
    """Each request has its own time limit."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.connect()
        first_socket = client.sock
        for _ in range(4):
            client.request("GET", "/livez")
            assert client.getresponse().read()
            with pytest.raises(TimeoutError):
                wait_for_a_byte(first_socket, PATIENCE_S / 2)
        assert client.sock is first_socket  # the server has not closed it


def test_clients_that_do_not_read_their_answer_are_disconnected(
    port: int, database_url: str, log: Path
) -> None:
    fill(database_url)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(f"GET /orders?limit={ROWS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert place(port).status_code == 202
        wait_until(
            lambda: log.read_text().count("web.answer_not_taken") == CLIENTS,
            timeout_s=60,
            what="the server to disconnect all clients",
        )
        for client in clients:
            assert count_bytes(client) < PAGE_BYTES_MAX / 2
    assert "Traceback" not in log.read_text()


def connect(port: int) -> socket.socket:
    client = socket.socket()
    # A small buffer, so that most of the answer stays in the server.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    return client


def problem_on(client: socket.socket) -> tuple[dict[str, object], dict[str, str]]:
    response = HTTPResponse(client)
    response.begin()
    assert response.headers["Content-Type"] == MEDIA_TYPE
    return json.load(response), dict(response.headers)


def place(port: int) -> requests.Response:
    body = {"user_id": str(uuid4()), "amount": 1}
    return requests.post(f"http://127.0.0.1:{port}/orders", json=body, timeout=TIMEOUT_S)


def wait_for_a_byte(connection: socket.socket, timeout_s: float) -> None:
    connection.settimeout(timeout_s)
    try:
        connection.recv(1, socket.MSG_PEEK)
    finally:
        connection.settimeout(30)


def count_bytes(client: socket.socket) -> int:
    """Return the number of bytes received until the connection ends."""
    found = 0
    try:
        while received := client.recv(1024 * 1024):
            found += len(received)
    except ConnectionResetError:
        pass
    return found


def fill(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO orders (id, user_id, amount, description, status, created_at,"
                " updated_at) SELECT gen_random_uuid(), gen_random_uuid(), 1, repeat('x', 10000),"
                " 'created', now(), now() FROM generate_series(1, :rows)"
            ),
            {"rows": ROWS},
        )
    engine.dispose()
