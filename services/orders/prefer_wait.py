"""Answering about an order as the request prefers: when it is final, or with the whole of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog
from flask import jsonify
from sqlalchemy.exc import SQLAlchemyError

from services.orders import orders
from services.orders.models import CREATED
from services.orders.schemas import WholeOrderSchema
from settle_outbox.storage.sqlstate import sqlstate_of
from shared.web.idempotency.request_keys import created_id
from shared.web.sessions import transaction
from shared.web.waiting import prefer_header
from shared.web.waiting.waiters import current_waiters

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from flask import Response
    from sqlalchemy.orm import Session

    from services.orders.models import Order

T = TypeVar("T")

log = structlog.get_logger(__name__)

_WHOLE = WholeOrderSchema()


def look(
    order_id: UUID, find: Callable[[Session, UUID], T], status_of: Callable[[T], str]
) -> tuple[T, int | None]:
    """Look at an order; when the request would rather wait, only once it is final.

    Args:
        order_id: the order.
        find: reads of it what is to be answered.
        status_of: the status in that.

    Returns:
        What was found, and how many seconds were waited for as preferred; None when they were not.

    Raises:
        UnknownOrderError: there is no such order.
    """
    wait_s = prefer_header.preferences().wait_s
    read = partial(_read, find, order_id)
    if wait_s is None:
        return read(), None
    found, honoured = current_waiters().hold(
        order_id, wait_s, read, lambda seen: status_of(seen) != CREATED
    )
    return found, wait_s if honoured else None


def _read(find: Callable[[Session, UUID], T], order_id: UUID) -> T:
    """Read in a transaction of its own: none is held while the request waits."""
    with transaction() as session:
        return find(session, order_id)


def as_preferred(response: Response) -> Response:
    """Answer that an order was accepted, after its end or with the whole of it if preferred.

    What is kept for an Idempotency-Key is that the order was accepted. Each request that comes with
    the key, the first and the later ones, waits and is answered by its own preferences.
    """
    preferred = prefer_header.preferences()
    whole = preferred.returned == prefer_header.REPRESENTATION
    waited_s = None
    if whole or preferred.wait_s is not None:
        order_id = created_id()
        if order_id is None:  # kept by an earlier release; what is preferred is only a hint
            response.headers.update(prefer_header.headers())
            return response
        try:
            found, waited_s = look(order_id, orders.find, status_of)
        except SQLAlchemyError as error:
            # The order is committed, so the answer must still be that it was accepted.
            log.warning(
                "orders.not_looked_at",
                error=str(error).partition("\n")[0],
                sqlstate=sqlstate_of(error),
            )
            response.headers.update(prefer_header.headers())
            return response
        if whole:
            response.set_data(jsonify(_WHOLE.dump(found)).get_data())
    response.headers.update(prefer_header.headers(returned=preferred.returned, wait_s=waited_s))
    return response


def status_of(found: Order) -> str:
    """The status in a whole order."""
    return found.status
