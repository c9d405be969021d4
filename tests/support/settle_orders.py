"""Settle orders without a broker, with or without waking the requests that wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

import settle_outbox as outbox
from services.orders.settlements import Settlement, settle

if TYPE_CHECKING:
    from collections.abc import Callable

REASON = "insufficient_funds"


def settle_one(session: Session, order_id: str, status: str) -> None:
    """Give an order its final status, and commit."""
    user_id, amount = session.execute(
        text("SELECT user_id, amount FROM orders WHERE id = :id"), {"id": order_id}
    ).one()
    reason = REASON if status == "failed" else None
    (refusal,) = settle(session, [Settlement(UUID(order_id), user_id, amount, status, reason)])
    assert refusal is None
    session.commit()


def settler(orders_url: str, *, notifies: bool) -> Callable[[str, str], None]:
    """Return a function that gives an order its final status.

    Args:
        orders_url: The URL of the database of orders.
        notifies: Whether to wake, after the commit, the requests that wait for the order. The
            consumer does so. False is like a consumer that dies between commit and notification.
    """
    sessions = sessionmaker(create_engine(orders_url, poolclass=NullPool))
    if notifies:
        outbox.notify_after_commit(sessions, orders_url)

    def settle_order(order_id: str, status: str) -> None:
        with sessions() as session:
            settle_one(session, order_id, status)

    return settle_order
