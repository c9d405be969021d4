"""Placing orders and looking them up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select
from uuid_utils.compat import uuid7

import settle_outbox as outbox
from services.orders.events import order_created
from services.orders.models import CREATED, Order
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import Session


class UnknownOrderError(SettleError):
    """There is no such order."""


# Built once: building a statement costs as much as executing it (benchmarks/README.md).
_STATUS = select(Order.status).where(Order.id == bindparam("order_id"))
_FIND = select(Order).where(Order.id == bindparam("order_id"))


def place(session: Session, *, user_id: UUID, amount: int, description: str) -> UUID:
    """Store a new order, and publish `order.created` in the same transaction.

    Args:
        session: the caller commits both the order and the event.
        user_id: the paying user.
        amount: in minor units, such as cents.
        description: free text.

    Returns:
        The order's id.
    """
    now = datetime.now(UTC)
    order = Order(
        id=uuid7(),
        user_id=user_id,
        amount=amount,
        description=description,
        status=CREATED,
        created_at=now,
        updated_at=now,
    )
    session.add(order)
    outbox.add(session, order_created(order))
    return order.id


def status(session: Session, order_id: UUID) -> str:
    """Return an order's status: created, success or failed.

    Raises:
        UnknownOrderError: there is no such order.
    """
    found = session.scalar(_STATUS, {"order_id": order_id})
    if found is None:
        raise _unknown(order_id)
    return found


def find(session: Session, order_id: UUID) -> Order:
    """Return an order.

    Raises:
        UnknownOrderError: there is no such order.
    """
    found = session.scalar(_FIND, {"order_id": order_id})
    if found is None:
        raise _unknown(order_id)
    return found


def _unknown(order_id: UUID) -> UnknownOrderError:
    return UnknownOrderError(f"There is no order {order_id}.")
