"""Answers that depend on a request's headers alone do not wait for its body.

Most clients here announce a body to the deployed server and do not send it.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests

from shared.settings import DEFAULT_THREADS as THREADS
from shared.web.problems.documents import MEDIA_TYPE
from shared.web.server.request_reader import READ_S
from shared.web.server.worker import LINGER_MAX_BYTES, LINGER_S
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

WORKERS = 2
BODY = json.dumps({"user_id": str(uuid4()), "amount": 5}).encode()
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: 500\r\n"
LARGE = b"Content-Length: 3000000\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EXPECT = b"Expect: 100-continue\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Request line, headers and expected status.
EARLY_ANSWERS = [
    (b"POST /orders", JSON + LARGE, 413),
    (b"GET /orders", LARGE, 413),
    (b"POST /x", JSON + LENGTH, 404),
    (b"POST /x", JSON + LARGE, 404),
    (b"POST /x", JSON + CHUNKED, 404),
    (b"PUT /orders", JSON + LENGTH, 405),
    (b"POST /orders", LENGTH, 415),
    (b"POST /orders", b"Content-Type: text/plain\r\n" + CHUNKED, 415),
    (b"POST /orders", JSON + b"Content-Encoding: gzip\r\n" + LENGTH, 415),
    (b"POST /orders", JSON + b"Idempotency-Key: a b\r\n" + LENGTH, 422),
    (b"GET /livez", LENGTH, 200),
]


@pytest.fixture(scope="module")
def port(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start the API in gunicorn, and yield its port."""
    log = tmp_path_factory.mktemp("gunicorn") / "orders-api.log"
    with serve("orders", database_url, log) as url:
        yield int(url.rpartition(":")[2])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def head(line: bytes, headers: bytes) -> bytes:
    return line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n"


def send_slowly(client: socket.socket, seconds: float) -> None:
    """Send a byte every 50 ms for this number of seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.sendall(b" ")
        time.sleep(0.05)


def send_chunks(client: socket.socket, size: int) -> None:
    """Send `size` bytes in chunks of 64 KiB, as fast as the server reads them."""
    for _ in range(size // 0x10000):
        client.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def answer_on(client: socket.socket) -> HTTPResponse:
    response = HTTPResponse(client)
    response.begin()
    return response


@pytest.mark.parametrize("expect", [b"", EXPECT], ids=["", "expect"])
@pytest.mark.parametrize(("line", "headers", "status"), EARLY_ANSWERS)
def test_an_answer_that_needs_no_body_is_sent_at_once(
    port: int, line: bytes, headers: bytes, status: int, expect: bytes
) -> None:
    """The server does not send 100 Continue first (RFC 9110, section 10.1.1)."""
    began = time.monotonic()
    with connect(port) as client:
        client.sendall(head(line, headers + expect))

        assert client.recv(len(CONTINUE), socket.MSG_PEEK) != CONTINUE
        response = answer_on(client)
        assert response.status == status
        assert response.headers["Connection"] == "close"
        if status != 200:
            assert response.headers["Content-Type"] == MEDIA_TYPE
        assert response.read()
        assert client.recv(1) == b""
    assert time.monotonic() - began < READ_S / 2


def test_clients_that_do_not_send_the_body_hold_no_thread(port: int) -> None:
    """There are more clients than threads, and no client closes its connection."""
    began = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(8 * WORKERS * THREADS)]
        for client in clients:
            client.sendall(head(b"POST /orders", JSON + LARGE))
        for client in clients:
            assert answer_on(client).status == 413
        assert place(port).status_code == 202
        # If each connection held a thread for LINGER_S (2 s), it would take 8 times LINGER_S.
        assert time.monotonic() - began < 8 * LINGER_S / 2


def test_a_client_that_keeps_sending_slowly_is_disconnected_soon(port: int) -> None:
    with connect(port) as client:
        client.sendall(head(b"POST /orders", JSON + LARGE))
        assert answer_on(client).status == 413

        with pytest.raises(ConnectionError):
            send_slowly(client, READ_S)


def test_a_client_that_keeps_sending_fast_is_disconnected_soon(port: int) -> None:
    with connect(port) as client:
        client.sendall(head(b"POST /orders", JSON + CHUNKED))

        with pytest.raises(ConnectionError):
            send_chunks(client, 10 * LINGER_MAX_BYTES)


def test_a_client_that_waits_for_100_continue_gets_it(port: int) -> None:
    """The server sends `100 Continue` once for each request."""
    with connect(port) as client:
        length = b"Content-Length: %d\r\n" % len(BODY)
        for _ in range(2):
            client.sendall(head(b"POST /orders", JSON + length + EXPECT))
            assert client.recv(100) == CONTINUE
            client.sendall(BODY)
            response = answer_on(client)
            assert response.status == 202
            assert response.headers["Connection"] == "keep-alive"
            assert response.read()


def test_a_client_that_sends_the_body_at_once_gets_no_100_continue(port: int) -> None:
    with connect(port) as client:
        length = b"Content-Length: %d\r\n" % len(BODY)

        client.sendall(head(b"POST /orders", JSON + length + EXPECT) + BODY)

        assert client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 202"


def test_a_small_unread_body_does_not_end_the_connection(port: int) -> None:
    """The body arrives together with the headers, so the server need not wait for it."""
    with connect(port) as client:
        length = b"Content-Length: %d\r\n" % len(BODY)
        for _ in range(2):
            client.sendall(head(b"POST /x", JSON + length) + BODY)
            response = answer_on(client)
            assert response.status == 404
            assert response.headers["Connection"] == "keep-alive"
            assert response.read()


def place(port: int) -> requests.Response:
    body = {"user_id": str(uuid4()), "amount": 1}
    return requests.post(f"http://127.0.0.1:{port}/orders", json=body, timeout=30)


@pytest.mark.parametrize(("size", "status"), [(1, 413), (100, 400)])
def test_the_framing_of_chunks_counts_towards_the_size_limit(
    port: int, size: int, status: int
) -> None:
    """100 kB are too large in chunks of one byte. In larger chunks, they are only invalid JSON."""
    chunk = b"%x\r\n%b\r\n" % (size, b" " * size)
    body = chunk * (100_000 // size) + b"0\r\n\r\n"

    with connect(port) as client:
        client.sendall(head(b"POST /orders", JSON + CHUNKED) + body)
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
