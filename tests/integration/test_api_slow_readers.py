"""Clients that ask for much and do not read it, on the server as it is deployed.

Many more of them than there are threads; the workers stay small, and the others are served at once.
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

# 40 MB, in descriptions of 10,000 characters.
ROWS = 1000
WORKER_MAX_KB = 200_000
LIVEZ_MAX_S = 5.0
CLIENTS = 100

LIST = "/orders?limit=1000"
BUNDLE = "/docs/files/swagger-ui-bundle.js"


@pytest.fixture(scope="module")
def rows(database_url: str) -> None:
    """Fill the database with orders that are as large as can be."""
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
def impatient_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "impatient-orders-api.log"


@pytest.fixture(scope="module")
def url(database_url: str, rows: None, log: Path) -> Iterator[str]:
    """Where gunicorn listens, with little room for answers on its connections."""
    with serve("orders", database_url, log, **worker("SmallBufferWorker")) as url:
        yield url


@pytest.fixture(scope="module")
def impatient_url(database_url: str, rows: None, impatient_log: Path) -> Iterator[str]:
    """Where gunicorn listens, with little patience as well."""
    with serve("orders", database_url, impatient_log, **worker("ImpatientWorker")) as url:
        yield url


def worker(name: str) -> dict[str, str]:
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class support.small_limits.{name}",
        "PYTHONPATH": str(ROOT / "tests"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("address", [LIST, BUNDLE])
def test_clients_that_do_not_read_cost_neither_memory_nor_threads(
    url: str, log: Path, address: str
) -> None:
    """They come one after the other: what takes long is to be due to those who do not read."""
    slowest_s = 0.0
    before = answers(log, address)

    with ExitStack() as stack:
        for number in range(1, CLIENTS + 1):
            ask(stack.enter_context(connect(url)), address)
            made = partial(has_made, log, address, before + number)
            wait_until(made, what="an answer to be made")
            if number % 10 == 0:
                began = time.monotonic()
                assert requests.get(f"{url}/livez", timeout=10).ok
                slowest_s = max(slowest_s, time.monotonic() - began)
        assert place(url).status_code == 202

    assert slowest_s < LIVEZ_MAX_S
    assert max(peaks_kb(log)) < WORKER_MAX_KB


def test_clients_that_all_come_at_once(url: str, log: Path) -> None:
    wanted = answers(log, LIST) + 24

    with ExitStack() as stack:
        for _ in range(24):
            ask(stack.enter_context(connect(url)), LIST)
        began = time.monotonic()
        assert requests.get(f"{url}/livez", timeout=10).ok
        took_s = time.monotonic() - began
        wait_until(partial(has_made, log, LIST, wanted), what="their answers to be made")

    assert took_s < LIVEZ_MAX_S
    assert max(peaks_kb(log)) < WORKER_MAX_KB


@pytest.mark.parametrize("address", [LIST, BUNDLE])
def test_a_client_that_reads_slowly_gets_all_and_may_ask_again(url: str, address: str) -> None:
    whole = requests.get(f"{url}{address}", timeout=30).content
    with closing(HTTPConnection("127.0.0.1", port_of(url), timeout=30)) as client:
        client.sock = connect(url)
        client.request("GET", address)
        # The rest of the answer waits in the server when this comes.
        assert requests.get(f"{url}/livez", timeout=10).ok

        found = client.getresponse().read()
        client.request("GET", "/livez")
        after = client.getresponse()

        assert found == whole
        assert after.status == 200


def test_the_time_for_an_answer_is_that_of_the_whole(
    impatient_url: str, impatient_log: Path
) -> None:
    """A client that takes some of it now and then is given up as well."""
    with connect(impatient_url) as client:
        ask(client, BUNDLE)
        began = time.monotonic()
        wait_until(
            lambda: client.recv(1024) and "web.answer_not_taken" in impatient_log.read_text(),
            timeout_s=20 * PATIENCE_S,
            what="it to be given up",
        )

        assert time.monotonic() - began > PATIENCE_S


def test_a_client_that_says_it_will_close_and_does_not_has_its_answer(impatient_url: str) -> None:
    with connect(impatient_url) as client:
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
    # Small, and thus the whole way holds little.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.settimeout(30)
    client.connect(("127.0.0.1", port_of(url)))
    return client


def ask(client: socket.socket, address: str) -> None:
    client.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def answers(log: Path, address: str) -> int:
    """How many answers the server has made; whether they were taken is not known to the log."""
    path = address.partition("?")[0]
    return log.read_text().count(f'"path": "{path}", "status": 200')


def has_made(log: Path, address: str, count: int) -> bool:
    return answers(log, address) >= count


def place(url: str) -> requests.Response:
    return requests.post(f"{url}/orders", json={"user_id": str(uuid4()), "amount": 1}, timeout=10)


def peaks_kb(log: Path) -> list[int]:
    """The most memory that each worker ever had."""
    pids = re.findall(r"Booting worker with pid: (\d+)", log.read_text())
    assert pids
    statuses = [Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in pids]
    return [int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) for status in statuses]
