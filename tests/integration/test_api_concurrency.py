"""Concurrent requests: threads of one app, each with its own database connection."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import func, select

from services.payments.models import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session

# The size of the app's connection pool, so no thread waits for a connection.
THREADS = 10


def call_concurrently(calls: int, call: Callable[[], int]) -> Counter[int]:
    """Make the calls in THREADS threads, and count the answers by status."""
    start = Barrier(THREADS)

    def wait_and_call(number: int) -> int:
        if number < THREADS:
            start.wait()
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return Counter(pool.map(wait_and_call, range(calls)))


def test_50_requests_in_10_threads_create_one_account(payments: FlaskClient) -> None:
    app, body = payments.application, {"user_id": str(uuid4())}

    def create() -> int:
        return app.test_client().post("/accounts", json=body).status_code

    assert call_concurrently(50, create) == {201: 1, 409: 49}


def test_100_deposits_in_10_threads_add_up(
    payments: FlaskClient, payments_session: Session
) -> None:
    app, user_id = payments.application, str(uuid4())
    payments.post("/accounts", json={"user_id": user_id})

    def deposit() -> int:
        path = f"/accounts/{user_id}/deposit"
        return app.test_client().post(path, json={"amount": 7}).status_code

    assert call_concurrently(100, deposit) == {200: 100}
    found = payments.get("/accounts/balance", query_string={"user_id": user_id})
    assert found.json == {"balance": 700}
    moved = select(func.count(), func.sum(Transfer.amount))
    assert payments_session.execute(moved).one() == (100, 700)


def test_a_balance_near_its_maximum_accepts_one_of_many_deposits(payments: FlaskClient) -> None:
    app, user_id = payments.application, str(uuid4())
    payments.post("/accounts", json={"user_id": user_id})
    path = f"/accounts/{user_id}/deposit"
    payments.post(path, json={"amount": 2**63 - 1 - 5})

    def deposit() -> int:
        return app.test_client().post(path, json={"amount": 5}).status_code

    assert call_concurrently(20, deposit) == {200: 1, 409: 19}


def test_100_orders_in_10_threads_are_all_accepted(orders: FlaskClient) -> None:
    app, user_id = orders.application, str(uuid4())

    def place() -> int:
        body = {"user_id": user_id, "amount": 1}
        return app.test_client().post("/orders", json=body).status_code

    assert call_concurrently(100, place) == {202: 100}
    listed = orders.get("/orders?limit=1000").get_json()
    assert len({order["ID"] for order in listed}) == 100
