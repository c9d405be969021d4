"""Processes are restarted in turn, as docs/how-to/upgrade.md says, while clients place orders."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import socket
import threading
from configparser import ConfigParser
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from subprocess import Popen
from time import monotonic
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import pytest
import requests
from psutil import pid_exists

from settle_outbox.runtime.health import read_heartbeats
from support.delivery import BIN
from support.ports import free_port
from support.system import children, send
from support.traffic import SERVICES
from support.waiting import wait_until
from support.web import ROOT, gunicorn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.delivery import Delivery, Process

TIMEOUT_S = 30
DELAY_MAX_S = 1.0
# Enough users for most partitions to have orders.
USERS = 20
PROGRAMS = [
    (program, service) for program in ("outbox-relay", "inbox-consumer") for service in SERVICES
]


class Clients:
    """Three clients that place orders and read balances, and record each failure.

    The first client closes its connection after each request. The second one keeps its connection.
    The third one keeps its connection, and waits for the outcome of each order.

    Args:
        orders: URL of the API of orders.
        payments: URL of the API of payments.
        users: who place orders, in turn. Each has an account.
    """

    def __init__(self, orders: str, payments: str, users: list[str]) -> None:
        self.failures: list[str] = []
        self.answered_s: dict[str, float] = {}
        """By id of each accepted order, the time until the answer; 0 with `Prefer: wait`."""
        self._orders, self._payments = orders, payments
        self._stop = threading.Event()
        self._users = cycle(users)
        self._threads = [
            threading.Thread(target=self._run, args=(headers,))
            for headers in ({"Connection": "close"}, {}, {"Prefer": "wait=5"})
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, headers: dict[str, str]) -> None:
        with requests.Session() as session:
            session.headers.update(headers)
            while not self._stop.wait(0.2):
                try:
                    self._place(session, next(self._users))
                except requests.RequestException as error:
                    self.failures.append(repr(error))

    def _place(self, session: requests.Session, user_id: str) -> None:
        url = f"{self._payments}/accounts/balance?user_id={user_id}"
        session.get(url, timeout=TIMEOUT_S).raise_for_status()
        body = {"user_id": user_id, "amount": 1}
        began = monotonic()
        answer = session.post(f"{self._orders}/orders", json=body, timeout=TIMEOUT_S)
        answer.raise_for_status()
        order_id = answer.headers["Location"].removeprefix("/order/")
        # `slowest_s` adds the time until the order's outcome. With `Prefer: wait`, the answer comes
        # after the outcome, so its time would count twice.
        includes_outcome = "Prefer" in session.headers
        self.answered_s[order_id] = 0 if includes_outcome else monotonic() - began

    def wait_more(self, count: int) -> None:
        """Wait until `count` more orders are accepted."""
        enough = len(self.answered_s) + count
        wait_until(lambda: len(self.answered_s) >= enough, what=f"{count} more orders")


def is_ready(address: str) -> bool:
    """Return whether an API is ready."""
    try:
        return requests.get(f"{address}/readyz", timeout=TIMEOUT_S).ok
    except requests.ConnectionError:
        return False


@contextmanager
def api(service: str, url: str, log: Path) -> Iterator[tuple[Popen[bytes], str]]:
    """Run an API. Yield its process and its address when it is ready."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = gunicorn(service, url, port, log)
    try:
        wait_until(lambda: is_ready(address), timeout_s=60, what=f"the API; see {log}")
        yield process, address
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def reload(process: Popen[bytes]) -> None:
    """Reload an API with SIGHUP, and wait until its old workers have ended.

    The master process stays the same: it executes gunicorn again.
    """
    old = set(children(process.pid))
    process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: not old & set(children(process.pid)), timeout_s=60, what="the old workers to end"
    )


def test_a_reload_of_an_api_runs_new_processes_and_fails_no_request(
    delivery: Delivery, tmp_path: Path
) -> None:
    log = tmp_path / "orders.log"
    with (
        api("payments", delivery.payments_url, tmp_path / "payments.log") as (_, payments),
        api("orders", delivery.orders_url, log) as (process, orders),
        Clients(orders, payments, [str(delivery.open_account(1_000_000))]) as clients,
    ):
        clients.wait_more(10)
        for starts in (2, 3):
            reload(process)

            clients.wait_more(10)
            assert log.read_text().count("Starting gunicorn") == starts
            assert len(children(process.pid)) == 2

    assert clients.failures == []


def handles_sighup(process: Popen[bytes]) -> bool:
    """Return whether the master has a handler for SIGHUP. During a reload, it has none."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) & 1 << signal.SIGHUP - 1)


def wait_reloaded(process: Popen[bytes], log: Path, old: set[int], *, starts: int) -> None:
    """Wait until the master, after `starts` starts with two workers each, has only the last two."""
    wait_until(
        lambda: (
            not old & set(children(process.pid))
            and len(children(process.pid)) == 2
            and log.read_text().count("Booting worker") == 2 * starts
        ),
        timeout_s=60,
        what="the workers of earlier starts to end",
    )
    assert log.read_text().count("Starting gunicorn") == starts


def test_a_sighup_is_ignored_while_a_reload_starts_the_master(
    delivery: Delivery, tmp_path: Path
) -> None:
    log = tmp_path / "orders.log"
    with (
        api("payments", delivery.payments_url, tmp_path / "payments.log") as (_, payments),
        api("orders", delivery.orders_url, log) as (process, orders),
        Clients(orders, payments, [str(delivery.open_account(1_000_000))]) as clients,
    ):
        old = set(children(process.pid))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not handles_sighup(process), timeout_s=60, what="the master to restart")

        process.send_signal(signal.SIGHUP)

        wait_reloaded(process, log, old, starts=2)
        clients.wait_more(10)

    assert clients.failures == []


def test_a_second_reload_ends_the_old_workers_if_the_workers_of_the_first_are_killed(
    delivery: Delivery, tmp_path: Path
) -> None:
    log = tmp_path / "orders.log"
    with (
        api("payments", delivery.payments_url, tmp_path / "payments.log") as (_, payments),
        api("orders", delivery.orders_url, log) as (process, orders),
        Clients(orders, payments, [str(delivery.open_account(1_000_000))]) as clients,
    ):
        old = set(children(process.pid))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not handles_sighup(process), timeout_s=60, what="the master to restart")
        wait_until(
            lambda: handles_sighup(process), timeout_s=60, what="the master to handle signals"
        )
        process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: not handles_sighup(process), timeout_s=60, what="the master to restart again"
        )

        send([pid for pid in children(process.pid) if pid not in old], signal.SIGKILL)

        wait_reloaded(process, log, old, starts=3)
        # The killed workers may have been processing requests.
        failures = list(clients.failures)
        clients.wait_more(10)

    assert clients.failures == failures


@pytest.mark.parametrize("service", SERVICES)
def test_sighup_does_not_end_an_api_that_starts(
    delivery: Delivery, tmp_path: Path, service: str
) -> None:
    """With its command in deploy/programs, the API ignores SIGHUP until gunicorn handles it."""
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / f"deploy/programs/{service}.conf")
    command = shlex.split(parser[f"program:{service}-api"]["command"])
    port = free_port()
    settings = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PORT": str(port),
        f"{service.upper()}_DATABASE_URL": delivery.url(service),
    }
    with (tmp_path / "log").open("wb") as log:
        process = Popen(command, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)
    try:
        wait_until(
            lambda: b"python" in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0],
            what="the start of Python",
        )
        process.send_signal(signal.SIGHUP)

        wait_until(
            lambda: is_ready(f"http://127.0.0.1:{port}"), timeout_s=60, what="the API to be ready"
        )
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_sigterm_stops_an_api_while_it_reloads(orders_url: str, tmp_path: Path) -> None:
    with api("orders", orders_url, tmp_path / "log") as (process, address):
        old = children(process.pid)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not handles_sighup(process), timeout_s=60, what="the master to restart")

        process.terminate()

        assert process.wait(TIMEOUT_S) == -signal.SIGTERM
        wait_until(lambda: not any(map(pid_exists, old)), timeout_s=60, what="its workers to end")
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{address}/livez", timeout=TIMEOUT_S)


@contextmanager
def running(delivery: Delivery, health: Path, program: str, service: str) -> Iterator[Process]:
    """Run a relay or consumer, and yield its process when it is ready."""
    with delivery.process(program, "run", service, HEALTH_DIR=str(health)) as process:

        def ready() -> bool:
            beats = read_heartbeats(health, f"{program}-{service}").values()
            return any(beat and beat.pid == process.pid and beat.state == "ready" for beat in beats)

        wait_until(ready, timeout_s=60, what=f"{program} of {service}: {process.lines[-5:]}")
        yield process


def slowest_s(delivery: Delivery, clients: Clients, earlier: set[str]) -> float:
    """Wait for all orders that are not in `earlier`. Return the longest time until an outcome."""
    placed = sorted(set(clients.answered_s) - earlier)

    def times() -> dict[str, float]:
        rows = delivery.query(
            "orders",
            "SELECT id::text, extract(epoch FROM updated_at - created_at)::float FROM orders"
            " WHERE status <> 'created' AND id = ANY(CAST(:ids AS uuid[]))",
            ids=placed,
        )
        return dict(rows) if len(rows) == len(placed) else {}

    settled = wait_until(times, timeout_s=60, what=f"{len(placed)} orders to settle")
    return max(clients.answered_s[order] + settled[order] for order in placed)


def measure_delay_s(
    delivery: Delivery, clients: Clients, restart: Callable[[], None], *, attempts: int = 3
) -> float:
    """Return how much longer the slowest order takes while a process is restarted.

    The comparison is with the slowest order just before, while an unrelated process starts. If the
    delay is too long, measure up to `attempts` times: a busy machine does not delay an order in
    each attempt.
    """
    before = set(clients.answered_s)
    delivery.run("outbox-relay", "run", "--help")
    clients.wait_more(8)
    usual_s = slowest_s(delivery, clients, before)

    before = set(clients.answered_s)
    restart()
    clients.wait_more(8)
    delay_s = slowest_s(delivery, clients, before) - usual_s

    if delay_s < DELAY_MAX_S or attempts == 1:
        return delay_s
    return measure_delay_s(delivery, clients, restart, attempts=attempts - 1)


@pytest.mark.timeout(400)
def test_a_restart_of_each_process_in_turn_delays_no_order(
    delivery: Delivery, tmp_path: Path
) -> None:
    """A relay or consumer gets SIGTERM only when its successor is ready."""
    with ExitStack() as stack:
        apis = {
            service: stack.enter_context(
                api(service, delivery.url(service), tmp_path / f"{service}.log")
            )
            for service in SERVICES
        }
        current = {
            each: stack.enter_context(running(delivery, tmp_path, *each)) for each in PROGRAMS
        }

        def replace(each: tuple[str, str]) -> None:
            old, current[each] = (
                current[each],
                stack.enter_context(running(delivery, tmp_path, *each)),
            )
            old.signal(signal.SIGTERM)
            assert old.wait() == 0, old.lines[-5:]

        restarts = {service: partial(reload, process) for service, (process, _) in apis.items()}
        restarts |= {" ".join(each): partial(replace, each) for each in PROGRAMS}
        users = [str(delivery.open_account(1_000_000)) for _ in range(USERS)]
        clients = stack.enter_context(Clients(apis["orders"][1], apis["payments"][1], users))

        delays_s = {
            name: measure_delay_s(delivery, clients, restart) for name, restart in restarts.items()
        }

    assert clients.failures == []
    assert max(delays_s.values()) < DELAY_MAX_S, delays_s


def test_an_api_that_stops_refuses_new_connections_and_answers_the_request_it_has(
    orders_url: str, tmp_path: Path
) -> None:
    """If the connection is refused, a proxy can safely send the request to another instance.

    If the request was sent and got no answer, it cannot: the request may have had an effect.
    """
    body = json.dumps({"user_id": str(uuid4()), "amount": 1}).encode()
    with api("orders", orders_url, tmp_path / "log") as (process, address):
        host, port = address.removeprefix("http://").split(":")

        def refuses() -> bool:
            with socket.socket() as client:
                return client.connect_ex((host, int(port))) == errno.ECONNREFUSED

        with closing(HTTPConnection(host, int(port), timeout=TIMEOUT_S)) as client:
            client.putrequest("POST", "/orders")
            client.putheader("Content-Type", "application/json")
            client.putheader("Content-Length", str(len(body)))
            client.endheaders(body[:10])

            process.terminate()
            wait_until(refuses, timeout_s=5, what="the port to be closed")
            client.send(body[10:])
            response = client.getresponse()

        assert (response.status, response.headers["Connection"]) == (202, "close")
        assert process.wait(TIMEOUT_S) == 0
