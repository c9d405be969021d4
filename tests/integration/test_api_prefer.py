"""The Prefer header (RFC 7240): return the whole order, and wait until it is final."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from services.orders import orders as use_cases
from services.orders import prefer_wait
from support.settle_orders import settler
from support.waiting import wait_until
from support.web import problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session
    from werkzeug.test import TestResponse

# A wait that nothing wakes takes WAIT_S, the longest wait that the API allows. A wait that is woken
# must end within SOON_S.
WAIT_S = 30
SOON_S = 15


def place(orders: FlaskClient, prefer: str | None = None, key: str | None = None) -> TestResponse:
    headers = {"Prefer": prefer, "Idempotency-Key": key}
    response = orders.post(
        "/orders",
        json={"user_id": str(uuid4()), "amount": 100, "description": "Lunch"},
        headers={name: value for name, value in headers.items() if value is not None},
    )
    assert response.status_code == 202, response.text
    assert "Prefer" in response.vary
    return response


def id_of(placed: TestResponse) -> str:
    return placed.headers["Location"].removeprefix("/order/")


def applied(response: TestResponse) -> str | None:
    return response.headers.get("Preference-Applied")


def settle(orders_url: str, order_id: str, *, status: str = "success", notify: bool = True) -> None:
    settler(orders_url, notifies=notify)(order_id, status)


@pytest.fixture
def wait(orders: FlaskClient) -> Iterator[Callable[[str], Future[tuple[TestResponse, float]]]]:
    """Return a function that starts a request with `Prefer: wait` in a thread.

    The function returns a future of the answer and of the seconds until the answer.
    """

    def ask(path: str) -> tuple[TestResponse, float]:
        client = orders.application.test_client()
        began = time.monotonic()
        response = client.get(path, headers={"Prefer": f"wait={WAIT_S}"})
        return response, time.monotonic() - began

    waiters = orders.application.extensions["settle-waiters"]
    with ThreadPoolExecutor(8) as pool:
        yield lambda path: pool.submit(ask, path)
        waiters.end_all()  # so that the pool of a failed test ends at once


@pytest.mark.parametrize("prefer", [None, "return=minimal", "respond-async, x=y", "wait=5 5"])
def test_only_return_representation_and_a_valid_wait_change_the_answer(
    orders: FlaskClient, prefer: str | None
) -> None:
    response = place(orders, prefer)
    assert response.data.strip() == b'{"message":"Order accepted"}'
    assert applied(response) == (prefer if prefer == "return=minimal" else None)
    for path in (response.headers["Location"], f"/orders/{id_of(response)}"):
        assert "Prefer" in orders.get(path).vary


def test_return_representation_returns_the_whole_order(orders: FlaskClient) -> None:
    response = place(orders, "return=representation")
    assert applied(response) == "return=representation"
    assert response.content_type == "application/json"
    assert response.data == orders.get(f"/orders/{id_of(response)}").data
    assert response.get_json()["Status"] == "created"


def test_a_wait_of_zero_seconds_is_applied(orders: FlaskClient) -> None:
    response = place(orders, "return=representation, wait=0")
    assert applied(response) == "return=representation, wait=0"
    path = response.headers["Location"]
    found = orders.get(path, headers={"Prefer": "wait=0"})
    assert (found.get_json()["status"], applied(found)) == ("created", "wait=0")


def test_an_answer_comes_at_the_end_of_the_wait(orders: FlaskClient) -> None:
    path = place(orders).headers["Location"]
    found = orders.get(path, headers={"Prefer": "wait=1, return=representation"})
    assert (found.get_json()["status"], applied(found)) == ("created", "wait=1")


def test_a_final_or_unknown_order_is_answered_without_a_wait(
    orders: FlaskClient, orders_url: str
) -> None:
    order_id = id_of(place(orders))
    settle(orders_url, order_id)
    began = time.monotonic()
    found = orders.get(f"/order/{order_id}", headers={"Prefer": "wait=3600"})  # lowered to WAIT_S
    assert (found.get_json()["status"], applied(found)) == ("success", f"wait={WAIT_S}")
    problem_of(orders.get(f"/order/{uuid4()}", headers={"Prefer": "wait=30"}), 404)
    problem_of(orders.get(f"/orders/{uuid4()}", headers={"Prefer": "wait=30"}), 404)
    assert time.monotonic() - began < SOON_S


def test_a_new_order_is_answered_when_it_is_settled(
    orders: FlaskClient, orders_url: str, orders_session: Session
) -> None:
    """The wait begins after the commit: before it, no other process can settle the order."""

    def settle_it() -> None:
        query = text("SELECT id FROM orders")
        order_id = wait_until(lambda: orders_session.scalar(query), what="the order to be stored")
        settle(orders_url, str(order_id), status="failed")

    with ThreadPoolExecutor(1) as pool:
        settling = pool.submit(settle_it)
        began = time.monotonic()
        response = place(orders, f"wait={WAIT_S}, return=representation", key="k-1")
        assert time.monotonic() - began < SOON_S
        settling.result()
    assert applied(response) == f"return=representation, wait={WAIT_S}"
    assert (response.get_json()["Status"], response.get_json()["FailureReason"]) == (
        "failed",
        "insufficient_funds",
    )


def test_a_replay_applies_the_preferences_of_the_repeated_request(
    orders: FlaskClient, orders_url: str
) -> None:
    """The stored answer says only that the order was accepted, and not the order's status."""
    body = {"user_id": str(uuid4()), "amount": 100}

    def send(prefer: str | None) -> TestResponse:
        headers = {"Idempotency-Key": "k-1"} | ({"Prefer": prefer} if prefer else {})
        return orders.post("/orders", json=body, headers=headers)

    first = send("return=representation")
    order_id = id_of(first)
    settle(orders_url, order_id)
    again = send("return=representation, wait=30")
    plain = send(None)
    assert (first.get_json()["Status"], again.get_json()["Status"]) == ("created", "success")
    assert plain.data.strip() == b'{"message":"Order accepted"}'
    assert applied(again) == "return=representation, wait=30"
    assert applied(plain) is None
    for replay in (again, plain):
        assert replay.status_code == 202
        assert replay.headers["Idempotent-Replayed"] == "true"
        assert id_of(replay) == order_id
    assert len(orders.get("/orders").get_json()) == 1


def test_an_answer_stored_by_an_earlier_release_is_replayed_without_preferences(
    orders: FlaskClient, orders_session: Session
) -> None:
    """The stored answer has no order id. A preference is a hint (RFC 7240, section 2)."""
    body = {"user_id": str(uuid4()), "amount": 100}
    headers = {"Idempotency-Key": "k-1", "Prefer": "return=representation, wait=30"}
    first = orders.post("/orders", json=body, headers={"Idempotency-Key": "k-1"})
    orders_session.execute(text("UPDATE idempotency_keys SET created_id = NULL"))
    orders_session.commit()

    replay = orders.post("/orders", json=body, headers=headers)

    assert (replay.status_code, replay.data) == (202, first.data)
    assert applied(replay) is None
    assert "Prefer" in replay.vary


def test_an_order_is_accepted_even_if_it_cannot_be_read_afterwards(
    orders: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(use_cases, "read_order", fail)
    response = place(orders, "return=representation, wait=5")
    assert response.data.strip() == b'{"message":"Order accepted"}'
    assert applied(response) is None
    assert orders.get(response.headers["Location"]).status_code == 200


def find_nothing(*_: object) -> tuple[()]:
    """Replace the query of the poll, so that it finds no final order."""
    return ()


def test_a_notification_ends_the_wait(
    orders: FlaskClient,
    orders_url: str,
    wait: Callable[[str], Future[tuple[TestResponse, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Polls find nothing here. The notification of an order wakes only the waits for this order."""
    other = place(orders).headers["Location"]
    wait_for_other = wait(other)
    settle(orders_url, other.removeprefix("/order/"))
    wait_for_other.result()  # the listener is connected now
    monkeypatch.setattr(prefer_wait, "find_final", find_nothing)
    waiters = orders.application.extensions["settle-waiters"]
    first, second = (place(orders).headers["Location"] for _ in range(2))
    waiting = {path: [wait(path), wait(path)] for path in (first, second)}
    wait_until(lambda: len(waiters.keys()) == 2)
    connections = orders.application.extensions["settle-sessions"].kw["bind"].pool
    wait_until(lambda: connections.checkedout() == 0, what="all connections to be in the pool")
    for path in (first, second):
        settle(orders_url, path.removeprefix("/order/"))
        for each in waiting.pop(path):
            response, took_s = each.result()
            assert (response.get_json()["status"], applied(response)) == (
                "success",
                f"wait={WAIT_S}",
            )
            assert took_s < SOON_S
        assert not any(each.done() for rest in waiting.values() for each in rest)


@pytest.mark.parametrize("listening", [False, True], ids=["before-listening", "while-listening"])
def test_an_order_settled_right_after_the_status_was_read_is_not_missed(
    orders: FlaskClient,
    orders_url: str,
    wait: Callable[[str], Future[tuple[TestResponse, float]]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    listening: bool,
) -> None:
    """The order is settled, with a notification, just after the waiter read its status."""
    if listening:
        other = place(orders).headers["Location"]
        wait_for_other = wait(other)
        settle(orders_url, other.removeprefix("/order/"))
        wait_for_other.result()  # the listener is connected now
        monkeypatch.setattr(prefer_wait, "find_final", find_nothing)
    path = place(orders).headers["Location"]
    read_status, was_read = use_cases.read_status, threading.Event()

    def read_then_settle(*arguments: Any) -> str:
        found = read_status(*arguments)
        if not was_read.is_set():
            was_read.set()
            settle(orders_url, path.removeprefix("/order/"))
        return found

    monkeypatch.setattr(use_cases, "read_status", read_then_settle)
    response, took_s = wait(path).result()
    assert response.get_json()["status"] == "success"
    assert took_s < SOON_S


def test_the_listener_continues_after_an_error(
    orders: FlaskClient,
    orders_url: str,
    wait: Callable[[str], Future[tuple[TestResponse, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = place(orders).headers["Location"]
    find_final = prefer_wait.find_final
    failed = threading.Event()

    def fail_once(*arguments: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("unforeseen")
        return find_final(*arguments)

    monkeypatch.setattr(prefer_wait, "find_final", fail_once)
    waiting = wait(path)
    assert failed.wait(SOON_S)
    settle(orders_url, path.removeprefix("/order/"))

    response, took_s = waiting.result()
    assert response.get_json()["status"] == "success"
    assert took_s < SOON_S


def test_a_poll_ends_the_wait_without_a_notification(
    orders: FlaskClient,
    orders_url: str,
    wait: Callable[[str], Future[tuple[TestResponse, float]]],
) -> None:
    """This happens if a consumer dies between its commit and its notification."""
    path = place(orders).headers["Location"]
    waiting = wait(path)
    waiters = orders.application.extensions["settle-waiters"]
    wait_until(waiters.keys)
    settle(orders_url, path.removeprefix("/order/"), notify=False)
    response, took_s = waiting.result()
    assert response.get_json()["status"] == "success"
    assert took_s < SOON_S
