"""Requests that wait for orders in the deployed gunicorn: threads, connections and signals.

There is one worker, so that the number of waiting threads is known.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import requests
from sqlalchemy import NullPool, create_engine, text

from support.ports import free_port
from support.settle_orders import settler
from support.waiting import wait_until
from support.web import gunicorn, serve

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from support.delivery import Delivery

pytestmark = pytest.mark.slow

ONE_WORKER = {"GUNICORN_CMD_ARGS": "--workers 1"}
THREADS = 8
# A wait that nothing wakes takes WAIT_S. A wait that is woken must end well before that.
WAIT_S = 30
SOON_S = 18

Answer = tuple[requests.Response, float]


def send(method: str, url: str, prefer: str = f"wait={WAIT_S}", **options: Any) -> Answer:
    began = time.monotonic()
    answer = requests.request(method, url, headers={"Prefer": prefer}, timeout=90, **options)
    return answer, time.monotonic() - began


def place(url: str) -> str:
    answer = requests.post(f"{url}/orders", json={"user_id": str(uuid4()), "amount": 1}, timeout=30)
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"].removeprefix("/order/")


def applied(answer: requests.Response) -> str | None:
    return answer.headers.get("Preference-Applied")


def connections(database_url: str) -> list[tuple[str, str]]:
    """Return application name and state of each connection."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.connect() as connection:
        return [
            (name, state)
            for name, state in connection.execute(
                text(
                    "SELECT application_name, state FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        ]


def drop_listener(database_url: str) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        dropped = connection.scalars(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'orders-watch'"
            )
        ).all()
    assert dropped == [True]


def listener_is_connected(database_url: str) -> bool:
    return ("orders-watch", "idle") in connections(database_url)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as threads:
        yield threads


def fill_waiting_threads(pool: ThreadPoolExecutor, url: str, order_id: str) -> list[Future[Answer]]:
    """Send as many waiting requests as the server has threads, and return those that wait.

    Half of the server's threads may wait. The other requests are answered at once.
    """
    asked = [pool.submit(send, "GET", f"{url}/order/{order_id}") for _ in range(THREADS)]
    wait_until(
        lambda: sum(each.done() for each in asked) == THREADS // 2,
        timeout_s=SOON_S,
        what="half of the requests to be answered",
    )
    for answer, _ in (each.result() for each in asked if each.done()):
        assert (answer.json()["status"], applied(answer)) == ("created", None)
    return [each for each in asked if not each.done()]


def test_half_of_the_threads_may_wait_and_hold_no_connection(
    orders_url: str, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with serve("orders", orders_url, tmp_path / "api.log", **ONE_WORKER) as url:
        order_id = place(url)
        waiting = fill_waiting_threads(pool, url, order_id)
        assert len(waiting) == THREADS // 2

        def all_are_idle() -> bool:
            held = [state for name, state in connections(orders_url) if name == "orders-api"]
            assert held
            assert set(held) == {"idle"}  # returned to the pool
            return True

        wait_until(all_are_idle, what="the connections to be in the pool")
        # The other threads answer without a wait.
        other = place(url)
        answer, took_s = send("GET", f"{url}/orders/{other}")
        assert (answer.status_code, applied(answer)) == (200, None)
        assert took_s < SOON_S
        assert not any(each.done() for each in waiting)

        # Waiting requests are answered even without the listener and without a notification.
        wait_until(lambda: listener_is_connected(orders_url), what="the listener")
        drop_listener(orders_url)
        settler(orders_url, notifies=False)(order_id, "success")
        for answer, took_s in (each.result() for each in waiting):
            assert (answer.json()["status"], applied(answer)) == ("success", f"wait={WAIT_S}")
            assert took_s < SOON_S
    log = (tmp_path / "api.log").read_text()
    assert "watcher.listener_lost" in log
    assert "Traceback" not in log


def test_a_stop_answers_waiting_requests(
    orders_url: str, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        server = gunicorn("orders", orders_url, port, tmp_path / "api.log", **ONE_WORKER)
        stack.callback(end, server)
        wait_until(lambda: order_of(url), timeout_s=60, what="gunicorn")
        waiting = fill_waiting_threads(pool, url, place(url))
        server.terminate()
        for answer, took_s in (each.result() for each in waiting):
            assert (answer.status_code, answer.json()["status"]) == (200, "created")
            assert applied(answer) is None
            assert took_s < SOON_S
        assert server.wait(timeout=60) == 0


def order_of(url: str) -> str | None:
    try:
        return place(url)
    except requests.ConnectionError:
        return None


def end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.kill()
        server.wait()


def test_an_order_that_settles_through_the_broker_ends_the_wait(
    delivery: Delivery, tmp_path: Path
) -> None:
    """One POST request returns the final status, after both services and topics took part."""
    user_id = str(delivery.open_account(100))
    with (
        serve("orders", delivery.orders_url, tmp_path / "api.log", **ONE_WORKER) as url,
        delivery.relay("orders"),
        delivery.consumer("payments"),
        delivery.relay("payments"),
        delivery.consumer("orders"),
    ):

        def order(amount: int) -> Answer:
            return send(
                "POST",
                f"{url}/orders",
                f"wait={WAIT_S}, return=representation",
                json={"user_id": user_id, "amount": amount},
            )

        # The first order may wait until the consumers joined their groups.
        wait_until(
            lambda: order(1)[0].json()["Status"] == "success",
            timeout_s=60,
            what="the first order to settle",
        )
        for amount, status, reason in ((60, "success", None), (60, "failed", "insufficient_funds")):
            answer, took_s = order(amount)
            whole = answer.json()
            assert (whole["Status"], whole["FailureReason"]) == (status, reason)
            assert applied(answer) == f"return=representation, wait={WAIT_S}"
            assert took_s < SOON_S
