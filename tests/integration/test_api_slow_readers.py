"""Clients of the deployed server that request large answers and do not read them.

There are many more such clients than threads. The workers use little memory, and the server answers
other clients in time.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests
from sqlalchemy import NullPool, create_engine, text

from support.small_limits import PATIENCE_S
from support.waiting import wait_until
from support.web import ROOT, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

# 40 MB, in descriptions of 10,000 characters of four bytes.
ROWS = 1000
WORKER_MAX_KB = 200_000
LIVEZ_MAX_S = 5.0
CLIENTS = 100

LIST = "/orders?limit=1000"
BUNDLE = "/docs/files/swagger-ui-bundle.js"


@pytest.fixture(scope="module")
def rows(database_url: str) -> None:
    """Insert orders with descriptions of the maximum size."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO orders (id, user_id, amount, description, status, created_at,"
                " updated_at) SELECT gen_random_uuid(), gen_random_uuid(), n,"
                " repeat(U&'\\+01F600', 10000), 'created', now(), now()"
                " FROM generate_series(1, :rows) AS n"
            ),
            {"rows": ROWS},
        )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "orders-api.log"


@pytest.fixture(scope="module")
def short_timeout_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "impatient-orders-api.log"


@pytest.fixture(scope="module")
def url(database_url: str, rows: None, log: Path) -> Iterator[str]:
    """Start the API with small send buffers, and yield its URL."""
    with serve("orders", database_url, log, **worker("SmallBufferWorker")) as url:
        yield url


@pytest.fixture(scope="module")
def short_timeout_url(database_url: str, rows: None, short_timeout_log: Path) -> Iterator[str]:
    """Start the API with small send buffers and short time-outs, and yield its URL."""
    with serve("orders", database_url, short_timeout_log, **worker("ImpatientWorker")) as url:
        yield url


def worker(name: str) -> dict[str, str]:
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class support.small_limits.{name}",
        "PYTHONPATH": str(ROOT / "tests"),
    }


@pytest.mark.parametrize("address", [LIST, BUNDLE])
def test_clients_that_do_not_read_use_little_memory_and_no_threads(
    url: str, log: Path, address: str
) -> None:
    """The clients connect one by one, so only their unread answers can slow the server down."""
    slowest_s = 0.0
    before = answers(log, address)

    with ExitStack() as stack:
        for number in range(1, CLIENTS + 1):
            send_get(stack.enter_context(connect(url)), address)
            is_generated = partial(has_generated, log, address, before + number)
            wait_until(is_generated, what="the answer to be generated")
            if number % 10 == 0:
                began = time.monotonic()
                assert requests.get(f"{url}/livez", timeout=10).ok
                slowest_s = max(slowest_s, time.monotonic() - began)
        assert place(url).status_code == 202

    assert slowest_s < LIVEZ_MAX_S
    assert max(peaks_kb(log)) < WORKER_MAX_KB


def test_many_clients_at_the_same_time_that_do_not_read_use_little_memory(
    url: str, log: Path
) -> None:
    clients = 24
    wanted = answers(log, LIST) + clients

    with ExitStack() as stack:
        for _ in range(clients):
            send_get(stack.enter_context(connect(url)), LIST)
        began = time.monotonic()
        assert requests.get(f"{url}/livez", timeout=10).ok
        took_s = time.monotonic() - began
        wait_until(partial(has_generated, log, LIST, wanted), what="the answers to be generated")

    assert took_s < LIVEZ_MAX_S
    assert max(peaks_kb(log)) < WORKER_MAX_KB


@pytest.mark.parametrize("address", [LIST, BUNDLE])
def test_a_client_that_reads_slowly_gets_the_whole_answer(url: str, address: str) -> None:
    whole = requests.get(f"{url}{address}", timeout=30).content
    with closing(HTTPConnection("127.0.0.1", port_of(url), timeout=30)) as client:
        client.sock = connect(url)
        client.request("GET", address)
        # The client has read nothing yet, so most of its answer is still in the server.
        assert requests.get(f"{url}/livez", timeout=10).ok

        found = client.getresponse().read()
        client.request("GET", "/livez")
        after = client.getresponse()

        assert found == whole
        assert after.status == 200


def test_the_time_limit_is_for_the_whole_answer(
    short_timeout_url: str, short_timeout_log: Path
) -> None:
    """Even a client that keeps reading small parts is disconnected."""
    with connect(short_timeout_url) as client:
        send_get(client, BUNDLE)
        began = time.monotonic()
        wait_until(
            lambda: client.recv(1024) and "web.answer_not_taken" in short_timeout_log.read_text(),
            timeout_s=20 * PATIENCE_S,
            what="the server to disconnect the client",
        )

        assert time.monotonic() - began > PATIENCE_S


def test_a_client_that_asks_to_close_gets_its_whole_answer(short_timeout_url: str) -> None:
    with connect(short_timeout_url) as client:
        client.sendall(
            f"GET {LIST} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )

        received = b"".join(iter(lambda: client.recv(65536), b""))

    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def connect(url: str) -> socket.socket:
    client = socket.socket()
    # A small buffer, so that most of the answer stays in the server.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.settimeout(30)
    client.connect(("127.0.0.1", port_of(url)))
    return client


def send_get(client: socket.socket, address: str) -> None:
    client.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def answers(log: Path, address: str) -> int:
    """Return how many answers the server has generated, whether or not clients have read them."""
    path = address.partition("?")[0]
    return log.read_text().count(f'"path": "{path}", "status": 200')


def has_generated(log: Path, address: str, count: int) -> bool:
    return answers(log, address) >= count


def place(url: str) -> requests.Response:
    return requests.post(f"{url}/orders", json={"user_id": str(uuid4()), "amount": 1}, timeout=10)


def peaks_kb(log: Path) -> list[int]:
    """Return the peak memory of each worker."""
    pids = re.findall(r"Booting worker with pid: (\d+)", log.read_text())
    assert pids
    statuses = [Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in pids]
    return [int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) for status in statuses]
