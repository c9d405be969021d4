"""Concurrent requests with an Idempotency-Key, and killed workers, in the deployed gunicorn."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests
from sqlalchemy import NullPool, create_engine, text

from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


AT_ONCE = 20

_EFFECTS = text(
    """
    SELECT (SELECT count(*) FROM orders WHERE user_id = :user_id),
           (SELECT count(*) FROM outbox WHERE aggregateid = CAST(:user_id AS text)),
           (SELECT count(*) FROM idempotency_keys WHERE key = :key)
    """
)


@pytest.fixture(scope="module")
def url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the API with two worker processes, and yield its URL."""
    log = tmp_path_factory.mktemp("gunicorn") / "orders-api.log"
    with serve("orders", database_url, log) as address:
        yield address


class Order:
    """An order request and its idempotency key."""

    def __init__(self) -> None:
        self.user_id = str(uuid4())
        self.key = str(uuid4())

    def place(self, url: str) -> requests.Response:
        body = {"user_id": self.user_id, "amount": 1}
        headers = {"Idempotency-Key": f'"{self.key}"'}
        return requests.post(f"{url}/orders", json=body, headers=headers, timeout=30)

    def effects(self, database_url: str) -> tuple[int, int, int]:
        """Return the numbers of orders, events and keys that the request made."""
        engine = create_engine(database_url, poolclass=NullPool)
        with engine.connect() as connection:
            found = connection.execute(_EFFECTS, {"user_id": self.user_id, "key": self.key})
            orders, events, keys = found.one()
            return orders, events, keys


def answer_fields(response: requests.Response) -> tuple[int, str, str | None]:
    return response.status_code, response.text, response.headers.get("Location")


def test_20_concurrent_requests_make_one_order_and_get_the_same_answer(
    url: str, database_url: str
) -> None:
    for _ in range(3):
        order, start = Order(), Barrier(AT_ONCE)

        def place(_: int, order: Order = order, start: Barrier = start) -> requests.Response:
            start.wait()
            return order.place(url)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(place, range(AT_ONCE)))
        assert {answer_fields(each) for each in answers} == {answer_fields(answers[0])}
        assert answers[0].status_code == 202
        replayed = Counter(each.headers.get("Idempotent-Replayed") for each in answers)
        assert replayed == {None: 1, "true": AT_ONCE - 1}
        assert order.effects(database_url) == (1, 1, 1)


@pytest.mark.parametrize(
    ("failpoint", "effects"),
    [("web.claimed", (0, 0, 0)), ("web.kept", (0, 0, 0)), ("web.committed", (1, 1, 1))],
)
def test_a_worker_killed_at_any_place_leaves_all_effects_or_none(
    url: str, database_url: str, tmp_path: Path, failpoint: str, effects: tuple[int, int, int]
) -> None:
    """The client gets no answer, and sends the order again to another server."""
    order = Order()
    log = tmp_path / "orders-api.log"
    with (
        serve("orders", database_url, log, FAILPOINTS=f"{failpoint}=kill") as dying,
        pytest.raises(requests.ConnectionError),
    ):
        order.place(dying)
    assert "SIGKILL" in log.read_text()
    assert order.effects(database_url) == effects
    placed = order.place(url)
    assert placed.status_code == 202
    assert ("Idempotent-Replayed" in placed.headers) is (failpoint == "web.committed")
    assert order.effects(database_url) == (1, 1, 1)
