"""Placing orders and looking them up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, tuple_
from uuid_utils.compat import uuid7

from services.orders.events import order_created
from services.orders.models import CREATED, orders
from shared import outbox
from shared.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.orm import Session


class UnknownOrderError(SettleError):
    """There is no such order."""


@dataclass(frozen=True, slots=True)
class Page:
    """Orders, newest first.

    Args:
        rows: of the table of orders.
        more: whether others come after them.
    """

    rows: Sequence[Row[tuple[object, ...]]]
    more: bool


_PLACE = insert(orders)
_STATUS = select(orders.c.status)
_NEWEST = select(orders).order_by(orders.c.created_at.desc(), orders.c.id.desc())


def place(session: Session, *, user_id: UUID, amount: int, description: str) -> UUID:
    """Accept an order and tell of it.

    Args:
        session: its transaction holds both the order and the event, or neither.
        user_id: who is to pay.
        amount: in minor units.
        description: free text.

    Returns:
        The order's id.
    """
    order_id = uuid7()
    now = datetime.now(UTC)
    session.execute(
        _PLACE,
        {
            "id": order_id,
            "user_id": user_id,
            "amount": amount,
            "description": description,
            "status": CREATED,
            "created_at": now,
            "updated_at": now,
        },
    )
    event = order_created(order_id=order_id, user_id=user_id, amount=amount, created_at=now)
    outbox.add(session, event)
    return order_id


def status(session: Session, order_id: UUID) -> str:
    """An order's status: created, success or failed.

    Raises:
        UnknownOrderError: there is no such order.
    """
    found: str | None = session.scalar(_STATUS.where(orders.c.id == order_id))
    if found is None:
        raise UnknownOrderError(f"There is no order {order_id}.")
    return found


def newest(
    session: Session,
    *,
    limit: int,
    user_id: UUID | None = None,
    after: tuple[datetime, UUID] | None = None,
) -> Page:
    """List orders, newest first.

    Args:
        session: reads them.
        limit: how many at most.
        user_id: whose; everybody's when None.
        after: created_at and id of the order before the first.
    """
    query = _NEWEST.limit(limit + 1)
    if user_id is not None:
        query = query.where(orders.c.user_id == user_id)
    if after is not None:
        query = query.where(tuple_(orders.c.created_at, orders.c.id) < tuple_(*after))
    rows = session.execute(query).all()
    return Page(rows[:limit], more=len(rows) > limit)
