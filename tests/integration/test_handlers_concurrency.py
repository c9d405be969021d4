"""Several consumers apply events of the same accounts or orders, which a rebalance can cause."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.orm import Session

from services.payments import accounts
from services.payments.handlers import charge_orders
from services.payments.models import Transfer
from settle_outbox.trace import Trace
from support.delivery import received_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from settle_outbox import ReceivedEvent, Verdict


@pytest.fixture
def engine(payments_url: str) -> Engine:
    return create_engine(payments_url, poolclass=NullPool)


@pytest.fixture
def user_ids(engine: Engine) -> list[UUID]:
    """Create two users with a balance of 1000 each, and return their ids."""
    made = [uuid4(), uuid4()]
    with Session(engine) as session, session.begin():
        for user_id in made:
            accounts.open_account(session, user_id)
            accounts.deposit(session, user_id, 1000)
    return made


def created(user_id: UUID, order_id: UUID) -> ReceivedEvent:
    data: dict[str, Any] = {"order_id": order_id, "user_id": user_id, "amount": 100}
    return received_event("order.created", data, Trace())


def charge_concurrently(
    engine: Engine, batches: list[list[ReceivedEvent]]
) -> list[Mapping[UUID, Verdict]]:
    start = Barrier(len(batches))

    def charge(batch: list[ReceivedEvent]) -> Mapping[UUID, Verdict]:
        with Session(engine) as session, session.begin():
            session.connection()
            start.wait()
            return charge_orders(session, batch)

    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(charge, batches))


def count_charges(engine: Engine) -> int:
    with Session(engine) as session:
        kind = Transfer.kind == "charge"
        return session.scalar(select(func.count()).select_from(Transfer).where(kind)) or 0


def test_a_balance_is_spent_once(engine: Engine, user_ids: list[UUID]) -> None:
    """Each user has 1000 and 50 orders of 100.

    Half of the batches name the users in reverse. Locks in that sequence would cause deadlocks.
    """
    batches = [
        [created(user_id, uuid4()) for _ in range(5) for user_id in users]
        for users in [user_ids, user_ids[::-1]] * 5
    ]
    charge_concurrently(engine, batches)
    assert count_charges(engine) == 20
    with Session(engine) as session:
        assert [accounts.read_balance(session, user_id) for user_id in user_ids] == [0, 0]


def test_concurrent_consumers_charge_an_order_once(engine: Engine, user_ids: list[UUID]) -> None:
    """The order has several event ids, so no inbox row stops the second charge."""
    for _ in range(5):
        order_id = uuid4()
        verdicts = charge_concurrently(engine, [[created(user_ids[0], order_id)] for _ in range(4)])
        assert sorted(len(each) for each in verdicts) == [0, 1, 1, 1]
    assert count_charges(engine) == 5
