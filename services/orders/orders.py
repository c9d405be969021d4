"""Use cases: place an order, and read it."""

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

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"There is no order {order_id}.")


# Built once: building a statement costs as much as executing it (benchmarks/README.md).
_READ_STATUS = select(Order.status).where(Order.id == bindparam("order_id"))
_READ_ORDER = select(Order).where(Order.id == bindparam("order_id"))


def place_order(session: Session, *, user_id: UUID, amount: int, description: str) -> UUID:
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


def read_status(session: Session, order_id: UUID) -> str:
    """Return the status of an order: created, success or failed.

    Raises:
        UnknownOrderError: there is no such order.
    """
    status = session.scalar(_READ_STATUS, {"order_id": order_id})
    if status is None:
        raise UnknownOrderError(order_id)
    return status


def read_order(session: Session, order_id: UUID) -> Order:
    """Return an order.

    Raises:
        UnknownOrderError: there is no such order.
    """
    order = session.scalar(_READ_ORDER, {"order_id": order_id})
    if order is None:
        raise UnknownOrderError(order_id)
    return order
