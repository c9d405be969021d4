"""The handlers of both services, called directly without the engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select, text

from services.orders import orders
from services.orders.handlers import settle_orders
from services.orders.models import Order
from services.payments import accounts
from services.payments.handlers import charge_orders
from services.payments.models import Account, Payment, Transfer
from settle_outbox import Outcome, ReceivedEvent
from settle_outbox.trace import Trace
from support.delivery import received_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

TRACE = Trace(request_id="r-1")


def event(event_type: str, **data: Any) -> ReceivedEvent:
    return received_event(event_type, data, TRACE)


def created(user_id: UUID, amount: int, order_id: UUID | None = None) -> ReceivedEvent:
    return event("order.created", order_id=order_id or uuid4(), user_id=user_id, amount=amount)


def outbox_events(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the events in the outbox: key, type and data."""
    rows = session.execute(
        text("SELECT aggregateid, type, payload, requestid FROM outbox ORDER BY seq")
    ).all()
    assert {row.requestid for row in rows} <= {TRACE.request_id, None}
    return [(row.aggregateid, row.type, json.loads(bytes(row.payload))) for row in rows]


@pytest.fixture
def user_id(payments_session: Session) -> UUID:
    """Create a user with a balance of 1000, and return the id."""
    new = uuid4()
    accounts.open_account(payments_session, new)
    accounts.deposit(payments_session, new, 1000)
    return new


def failure_reasons(session: Session, events: Sequence[ReceivedEvent]) -> list[str | None]:
    found = dict(session.execute(select(Payment.order_id, Payment.reason)).all())
    return [found[each.data["order_id"]] for each in events]


def test_an_order_that_the_balance_covers_is_charged(
    payments_session: Session, user_id: UUID
) -> None:
    order = created(user_id, 1000)
    assert charge_orders(payments_session, [order]) == {}
    order_id = str(order.data["order_id"])
    assert accounts.read_balance(payments_session, user_id) == 0
    assert outbox_events(payments_session) == [
        (
            order_id,
            "payment.succeeded",
            {"order_id": order_id, "user_id": str(user_id), "amount": 1000, "balance": 0},
        )
    ]


def test_an_order_above_the_balance_fails_finally(payments_session: Session, user_id: UUID) -> None:
    order = created(user_id, 1001)
    assert charge_orders(payments_session, [order]) == {}
    order_id = str(order.data["order_id"])
    failed = {"order_id": order_id, "user_id": str(user_id), "amount": 1001}
    assert outbox_events(payments_session) == [
        (order_id, "payment.failed", failed | {"reason": "insufficient_funds"})
    ]
    accounts.deposit(payments_session, user_id, 1)
    again = created(user_id, 1001, order.data["order_id"])
    (verdict,) = charge_orders(payments_session, [again]).values()
    assert verdict.outcome is Outcome.ANOMALY
    assert accounts.read_balance(payments_session, user_id) == 1001
    assert len(outbox_events(payments_session)) == 1


def test_an_order_of_a_user_without_an_account_fails(payments_session: Session) -> None:
    stranger = uuid4()
    order = created(stranger, 1)
    assert charge_orders(payments_session, [order]) == {}
    order_id = str(order.data["order_id"])
    failed = {"order_id": order_id, "user_id": str(stranger), "amount": 1}
    assert outbox_events(payments_session) == [
        (order_id, "payment.failed", failed | {"reason": "account_not_found"})
    ]


def test_the_orders_of_a_batch_are_decided_one_after_another(
    payments_session: Session, user_id: UUID
) -> None:
    """A small order is paid even if a large order before it fails."""
    batch = [created(user_id, amount) for amount in (400, 700, 600, 1)]
    assert charge_orders(payments_session, batch) == {}
    short = "insufficient_funds"
    assert failure_reasons(payments_session, batch) == [None, short, None, short]
    assert [data.get("balance") for _, _, data in outbox_events(payments_session)] == [
        600,
        None,
        0,
        None,
    ]
    assert accounts.read_balance(payments_session, user_id) == 0


def test_ten_of_fifty_orders_are_paid_when_the_balance_covers_ten(
    payments_session: Session, user_id: UUID
) -> None:
    batch = [created(user_id, 100) for _ in range(50)]
    assert charge_orders(payments_session, batch) == {}
    assert failure_reasons(payments_session, batch) == [None] * 10 + ["insufficient_funds"] * 40
    charged = select(Transfer.order_id).where(Transfer.kind == "charge")
    assert payments_session.scalars(charged.order_by(Transfer.id)).all() == [
        order.data["order_id"] for order in batch[:10]
    ]


def test_each_user_of_a_batch_has_a_separate_balance(
    payments_session: Session, user_id: UUID
) -> None:
    other = uuid4()
    accounts.open_account(payments_session, other)
    accounts.deposit(payments_session, other, 50)
    batch = [created(user_id, 300), created(other, 50), created(user_id, 300), created(other, 1)]
    assert charge_orders(payments_session, batch) == {}
    assert failure_reasons(payments_session, batch) == [None, None, None, "insufficient_funds"]
    balances = select(Account.user_id, Account.balance)
    found = dict(payments_session.execute(balances).all())
    assert (found[user_id], found[other]) == (400, 0)


def test_a_duplicate_order_in_one_batch_is_charged_once(
    payments_session: Session, user_id: UUID
) -> None:
    first = created(user_id, 100)
    second = created(user_id, 100, first.data["order_id"])
    verdicts = charge_orders(payments_session, [first, second])
    assert list(verdicts) == [second.id]
    assert verdicts[second.id].outcome is Outcome.ANOMALY
    assert verdicts[second.id].reason == "payment_already_decided"
    assert str(first.data["order_id"]) in verdicts[second.id].detail
    assert accounts.read_balance(payments_session, user_id) == 900
    assert len(outbox_events(payments_session)) == 1


def test_a_duplicate_order_with_another_amount_is_not_charged_again(
    payments_session: Session, user_id: UUID
) -> None:
    first = created(user_id, 100)
    charge_orders(payments_session, [first])
    second = created(user_id, 500, first.data["order_id"])
    assert list(charge_orders(payments_session, [second])) == [second.id]
    assert accounts.read_balance(payments_session, user_id) == 900


@pytest.fixture
def order(orders_session: Session) -> dict[str, Any]:
    """Place an order, and return its id, user and amount."""
    user_id = uuid4()
    order_id = orders.place_order(orders_session, user_id=user_id, amount=7, description="")
    return {"order_id": order_id, "user_id": user_id, "amount": 7}


def state(session: Session, order_id: UUID) -> tuple[str, str | None]:
    row = session.execute(
        select(Order.status, Order.failure_reason).where(Order.id == order_id)
    ).one()
    return row.status, row.failure_reason


def succeeded(order: dict[str, Any]) -> ReceivedEvent:
    return event("payment.succeeded", **order)


def failed(order: dict[str, Any], reason: str = "insufficient_funds") -> ReceivedEvent:
    return event("payment.failed", **order, reason=reason)


def test_a_payment_settles_its_order(orders_session: Session, order: dict[str, Any]) -> None:
    assert settle_orders(orders_session, [succeeded(order)]) == {}
    assert state(orders_session, order["order_id"]) == ("success", None)
    row = orders_session.execute(select(Order.created_at, Order.updated_at)).one()
    assert row.updated_at > row.created_at


def test_a_failed_payment_fails_its_order(orders_session: Session, order: dict[str, Any]) -> None:
    assert settle_orders(orders_session, [failed(order)]) == {}
    assert state(orders_session, order["order_id"]) == ("failed", "insufficient_funds")


@pytest.mark.parametrize("together", [True, False], ids=["one-batch", "two-batches"])
@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (succeeded, succeeded, "already_final"),
        (failed, failed, "already_final"),
        (succeeded, failed, "contradicts_final_status"),
        (failed, succeeded, "contradicts_final_status"),
    ],
)
def test_a_second_result_is_an_anomaly_and_changes_nothing(
    orders_session: Session,
    order: dict[str, Any],
    first: Any,
    second: Any,
    reason: str,
    together: bool,  # noqa: FBT001
) -> None:
    one, two = first(order), second(order)
    if together:
        verdicts = settle_orders(orders_session, [one, two])
    else:
        assert settle_orders(orders_session, [one]) == {}
        verdicts = settle_orders(orders_session, [two])
    assert list(verdicts) == [two.id]
    assert verdicts[two.id].outcome is Outcome.ANOMALY
    assert verdicts[two.id].reason == reason
    expected = ("success", None) if first is succeeded else ("failed", "insufficient_funds")
    assert state(orders_session, order["order_id"]) == expected


def test_a_result_for_an_unknown_order_is_parked(
    orders_session: Session, order: dict[str, Any]
) -> None:
    """The other results of the batch are applied."""
    unknown = succeeded({**order, "order_id": uuid4()})
    verdicts = settle_orders(orders_session, [unknown, succeeded(order)])
    assert list(verdicts) == [unknown.id]
    assert verdicts[unknown.id].outcome is Outcome.PARKED
    assert verdicts[unknown.id].reason == "unknown_order"
    assert state(orders_session, order["order_id"]) == ("success", None)


@pytest.mark.parametrize("wrong", [{"amount": 8}, {"user_id": uuid4()}])
def test_a_result_with_another_amount_or_user_is_parked(
    orders_session: Session, order: dict[str, Any], wrong: dict[str, Any]
) -> None:
    result = succeeded(order | wrong)
    verdicts = settle_orders(orders_session, [result])
    assert verdicts[result.id].outcome is Outcome.PARKED
    assert verdicts[result.id].reason == "mismatch"
    assert state(orders_session, order["order_id"]) == ("created", None)


def test_an_order_settles_although_the_clock_went_back(
    orders_session: Session, order: dict[str, Any]
) -> None:
    """The database's clock may be behind the clock of the process that placed the order."""
    order_id = uuid4()
    row = orders_session.execute(select(Order.__table__)).one()._asdict()
    future = text("now() + interval '1 hour'")
    orders_session.execute(
        insert(Order).values(row | {"id": order_id, "created_at": future, "updated_at": future})
    )
    assert settle_orders(orders_session, [succeeded({**order, "order_id": order_id})]) == {}
    found = orders_session.scalars(select(Order).where(Order.id == order_id)).one()
    assert found.updated_at >= found.created_at
