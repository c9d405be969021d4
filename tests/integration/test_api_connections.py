"""The deployed server answers in time while some clients hold many connections or requests."""

from __future__ import annotations

import json
import re
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPResponse
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests
from sqlalchemy import NullPool, create_engine, text

from shared.settings import DEFAULT_THREADS as THREADS
from shared.web.json_body import MAX_BYTES
from support.peak_memory import PEAK_MAX_MB, peak_mb
from support.waiting import wait_until
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

WORKERS = 2
# Maximum time for an answer while other clients hold connections or requests. It is less than the
# 10 s (READ_S) for which the server waits for the rest of an incomplete request.
SOON_S = 8.0
# Less than `graceful_timeout` (20 s), which a stop would take if it waited for the clients.
STOP_MAX_S = 15.0

BODY = json.dumps({"user_id": str(uuid4()), "amount": 5}).encode()
HEAD = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WITH_LENGTH = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
IN_CHUNKS = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
)
# Requests, each with the number of bytes that the client sends before it pauses.
PAUSED = [
    (WITH_LENGTH, 1),
    (WITH_LENGTH, len(HEAD)),
    (WITH_LENGTH, len(WITH_LENGTH) - len(BODY)),
    (WITH_LENGTH, len(WITH_LENGTH) - 1),
    (IN_CHUNKS, IN_CHUNKS.index(BODY)),
    (IN_CHUNKS, len(IN_CHUNKS) - 1),
]

SMALL_CONNECTIONS = 20
MANY = 1000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "orders-api.log"


@pytest.fixture(scope="module")
def port(database_url: str, log: Path) -> Iterator[int]:
    """Start the API in gunicorn, and yield its port."""
    with serve("orders", database_url, log) as url:
        yield port_of(url)


@pytest.fixture
def small_port(database_url: str, tmp_path: Path) -> Iterator[int]:
    """Start the API with one worker and a low connection limit, and yield its port."""
    few = f"--workers 1 --worker-connections {SMALL_CONNECTIONS}"
    with serve("orders", database_url, tmp_path / "log", GUNICORN_CMD_ARGS=few) as url:
        yield port_of(url)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def status_on(client: socket.socket) -> int:
    response = HTTPResponse(client)
    response.begin()
    assert response.read()
    return response.status


def livez_s(port: int) -> float:
    """Return how many seconds an answer of /livez takes."""
    began = time.monotonic()
    assert requests.get(f"http://127.0.0.1:{port}/livez", timeout=30).ok
    return time.monotonic() - began


def check_livez(port: int) -> None:
    assert livez_s(port) < SOON_S


def place(port: int, *, timeout_s: float = SOON_S) -> requests.Response:
    body = {"user_id": str(uuid4()), "amount": 1}
    return requests.post(f"http://127.0.0.1:{port}/orders", json=body, timeout=timeout_s)


@contextmanager
def many_open_files() -> Iterator[None]:
    """Raise this process's limit of open files, for many connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("request_", "first_bytes"), PAUSED)
def test_clients_that_pause_in_a_request_hold_no_thread(
    port: int, request_: bytes, first_bytes: int
) -> None:
    """The server keeps what the clients sent, and answers each one after the rest has arrived."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(3 * WORKERS * THREADS)]
        for client in clients:
            client.sendall(request_[:first_bytes])

        check_livez(port)
        assert place(port).status_code == 202
        for client in clients:
            client.sendall(request_[first_bytes:])

        assert [status_on(client) for client in clients] == [202] * len(clients)


def test_a_request_whose_body_comes_late_is_logged_once(port: int, log: Path) -> None:
    """The log has exactly one line with the request id of the answer."""
    address = f"/orders/{uuid4()}"
    head = WITH_LENGTH[: -len(BODY)]
    with connect(port) as client:
        client.sendall(head)
        check_livez(port)
        client.sendall(BODY)
        response = HTTPResponse(client)
        response.begin()
        response.read()
        assert response.status == 202
    request_id = response.headers["X-Request-ID"]
    # When this later request is logged, a wrong second line of the first one would be written, too.
    requests.get(f"http://127.0.0.1:{port}{address}", timeout=30)
    wait_until(
        lambda: all(each in log.read_text() for each in (address, request_id)),
        what="both lines of the log to be written",
    )

    lines = [json.loads(line) for line in log.read_text().splitlines() if "web.request" in line]

    placed = [line for line in lines if line["path"] == "/orders"]
    assert [line["request_id"] for line in placed].count(request_id) == 1


def test_bodies_that_never_end_cost_little_memory(database_url: str, tmp_path: Path) -> None:
    """The oldest requests are refused. The server still waits for the rest of the newest one."""
    log = tmp_path / "log"
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (MAX_BYTES - 100, b" " * (MAX_BYTES - 100))
    with ExitStack() as stack:
        stack.enter_context(many_open_files())
        url = stack.enter_context(
            serve("orders", database_url, log, GUNICORN_CMD_ARGS="--workers 1")
        )
        clients = []

        for _ in range(MANY):
            clients.append(stack.enter_context(connect(port_of(url))))
            clients[-1].sendall(head + chunk)
        check_livez(port_of(url))
        assert place(port_of(url)).status_code == 202
        clients[-1].sendall(b"0\r\n\r\n")

        refused = HTTPResponse(clients[0])
        refused.begin()
        assert refused.status == 408
        assert "too many incomplete requests" in json.load(refused)["detail"]
        assert status_on(clients[-1]) == 400  # white space is not JSON
        (pid,) = re.findall(r"Booting worker with pid: (\d+)", log.read_text())
        assert peak_mb(int(pid)) < PEAK_MAX_MB


def test_silent_connections_make_room_for_others(small_port: int) -> None:
    """The connection that was silent for the longest time is closed first."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(small_port)) for _ in range(3 * SMALL_CONNECTIONS)]

        check_livez(small_port)
        assert place(small_port).status_code == 202

        assert clients[0].recv(1) == b""
        clients[-1].sendall(WITH_LENGTH)
        assert status_on(clients[-1]) == 202


def test_incomplete_requests_make_room_for_others(small_port: int) -> None:
    with ExitStack() as stack:
        clients = []
        for _ in range(3 * SMALL_CONNECTIONS):
            clients.append(stack.enter_context(connect(small_port)))
            clients[-1].sendall(HEAD)

        check_livez(small_port)
        assert place(small_port).status_code == 202

        assert status_on(clients[0]) == 408
        assert clients[0].recv(1) == b""


def test_a_request_in_progress_keeps_its_connection(small_port: int) -> None:
    with ExitStack() as stack:
        waiting = stack.enter_context(connect(small_port))
        waiting.sendall(WITH_LENGTH.replace(b"Host:", b"Prefer: wait=2\r\nHost:"))
        clients = [stack.enter_context(connect(small_port)) for _ in range(3 * SMALL_CONNECTIONS)]

        assert clients[0].recv(1) == b""

        assert status_on(waiting) == 202


def test_a_worker_that_is_nearly_full_closes_connections_after_an_answer(small_port: int) -> None:
    """The answer says ``Connection: close``, so clients do not reuse the connection.

    See RFC 9112, section 9.6.
    """
    url = f"http://127.0.0.1:{small_port}/livez"
    with ExitStack() as stack:
        before = requests.get(url, timeout=30).headers["Connection"]

        # A worker keeps at most this number of connections open after an answer.
        for _ in range(SMALL_CONNECTIONS - THREADS):
            stack.enter_context(connect(small_port))
        check_livez(small_port)

        assert before == "keep-alive"
        assert requests.get(url, timeout=30).headers["Connection"] == "close"


def test_a_stop_does_not_wait_for_connections_without_a_request(
    database_url: str, tmp_path: Path
) -> None:
    long_keep_alive = "--keep-alive 60"
    with ExitStack() as stack:
        with serve(
            "orders", database_url, tmp_path / "log", GUNICORN_CMD_ARGS=long_keep_alive
        ) as url:
            silent, kept = (stack.enter_context(connect(port_of(url))) for _ in range(2))
            kept.sendall(WITH_LENGTH)
            assert status_on(kept) == 202
            began = time.monotonic()

        assert time.monotonic() - began < STOP_MAX_S
        assert silent.recv(1) == b""
        assert kept.recv(1) == b""


def test_a_busy_worker_answers_its_liveness_probe(port: int, database_url: str) -> None:
    """Many clients pipeline slow list requests. /livez is answered while an order waits."""
    fill(database_url)
    request = b"GET /orders?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    over = threading.Event()

    def read_lists() -> None:
        with connect(port) as client:
            client.sendall(request * 50)
            while not over.is_set() and client.recv(1024 * 1024):
                pass

    threads = [threading.Thread(target=read_lists) for _ in range(64)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(1) as pool:
        try:
            wait_until(partial(times_out, port), what="the worker to be busy")
            order = pool.submit(place, port, timeout_s=60)
            order_was_waiting = []
            for _ in range(5):
                livez_s(port)
                order_was_waiting.append(not order.done())
            # At least one probe was answered while the order waited in the queue.
            assert any(order_was_waiting)
        finally:
            over.set()
            for thread in threads:
                thread.join()


def times_out(port: int) -> bool:
    """Return whether an order is not answered within a second."""
    try:
        place(port, timeout_s=1)
    except requests.Timeout:
        return True
    return False


def fill(database_url: str) -> None:
    """Insert 1,000 orders."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO orders (id, user_id, amount, description, status, created_at,"
                " updated_at) SELECT gen_random_uuid(), gen_random_uuid(), 1, '', 'created', now(),"
                " now() FROM generate_series(1, 1000)"
            )
        )
