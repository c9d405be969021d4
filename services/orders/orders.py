"""Placing orders and looking them up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select, tuple_
from uuid_utils.compat import uuid7

from services.orders.events import order_created
from services.orders.models import CREATED, orders
from shared import outbox
from shared.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, Row
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


_PLACE = outbox.with_event(
    """
    INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
    VALUES (%(id)s, %(user_id)s, %(amount)s, %(description)s, %(status)s, %(now)s, %(now)s)
    """
)
# The driver's own, as `_PLACE` is: clients ask it again and again.
_STATUS = "SELECT status FROM orders WHERE id = %s"
# Made once: to make it takes as long as to execute it.
_FIND = select(orders).where(orders.c.id == bindparam("order_id"))
_NEWEST = select(orders).order_by(orders.c.created_at.desc(), orders.c.id.desc())
_FILTERS: dict[str, Callable[[Any], ColumnElement[bool]]] = {
    "user_id": lambda user_id: orders.c.user_id == user_id,
    "status": lambda status: orders.c.status == status,
    "created_from": lambda moment: orders.c.created_at >= moment,
    "created_before": lambda moment: orders.c.created_at < moment,
}


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
    outbox.add_with(
        session,
        _PLACE,
        {
            "id": str(order_id),
            "user_id": str(user_id),
            "amount": amount,
            "description": description,
            "status": CREATED,
            "now": now,
        },
        order_created(order_id=order_id, user_id=user_id, amount=amount, created_at=now),
    )
    return order_id


def status(session: Session, order_id: UUID) -> str:
    """An order's status: created, success or failed.

    Raises:
        UnknownOrderError: there is no such order.
    """
    found: str | None = session.connection().exec_driver_sql(_STATUS, (str(order_id),)).scalar()
    if found is None:
        raise _unknown(order_id)
    return found


def find(session: Session, order_id: UUID) -> Row[tuple[object, ...]]:
    """An order, whole.

    Raises:
        UnknownOrderError: there is no such order.
    """
    found = session.execute(_FIND, {"order_id": order_id}).one_or_none()
    if found is None:
        raise _unknown(order_id)
    return found


def _unknown(order_id: UUID) -> UnknownOrderError:
    return UnknownOrderError(f"There is no order {order_id}.")


def newest(
    session: Session,
    *,
    limit: int,
    filters: Mapping[str, Any],
    after: tuple[datetime, UUID] | None = None,
) -> Page:
    """List orders, newest first.

    Args:
        session: reads them.
        limit: how many at most.
        filters: which; any of `user_id`, `status`, `created_from` (inclusive) and
            `created_before` (exclusive).
        after: created_at and id of the order before the first; these filters let it through.
    """
    wanted = dict(filters)
    query = _NEWEST
    if after is not None:
        query = query.where(tuple_(orders.c.created_at, orders.c.id) < tuple_(*after))
        # It follows from `after`; but given both, PostgreSQL may enter the index at this one, and
        # read on from there: every page would cost as much as all those before it.
        wanted.pop("created_before", None)
    query = query.where(*(_FILTERS[name](value) for name, value in wanted.items()))
    rows = session.execute(query.limit(limit + 1)).all()
    return Page(rows[:limit], more=len(rows) > limit)
