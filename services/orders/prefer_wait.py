"""Apply the header Prefer to the calls for one order, and wake requests when orders are final.

`wait=N` delays the answer until the order is final. `return=representation` asks for the whole
order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import structlog
from flask import Flask, Response, jsonify
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

import settle_outbox as outbox
from services.orders import orders
from services.orders.models import CREATED, Order
from services.orders.schemas import WholeOrderSchema
from services.orders.settlements import SETTLED_CHANNEL
from settle_outbox.errors import first_line
from settle_outbox.storage.sqlstate import sqlstate_of
from shared.web.idempotency.request_keys import created_id
from shared.web.sessions import session_factory, transaction
from shared.web.waiting import prefer_header
from shared.web.waiting.waiters import current_waiters, register_waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session, sessionmaker

    from shared.settings import WebSettings

T = TypeVar("T")

log = structlog.get_logger(__name__)

_WHOLE = WholeOrderSchema()


def start_settlement_listener(app: Flask, settings: WebSettings) -> None:
    """Allow requests of an app to wait for orders, and start the thread that wakes them.

    At most half of a process's threads may wait. The others serve requests.
    """
    waiters = register_waiters(app, limit=settings.api_threads // 2)
    sessions = session_factory(app)
    listener = outbox.NotificationWatcher(
        settings.database_url,
        SETTLED_CHANNEL,
        waiters,
        lambda order_ids: find_final(sessions, order_ids),
        name="orders-watch",
    )
    app.extensions["orders-watch"] = listener
    listener.start()


def find_final(sessions: sessionmaker[Session], order_ids: Sequence[UUID]) -> Sequence[UUID]:
    """Return which of these orders are final."""
    query = select(Order.id).where(Order.id.in_(order_ids), Order.status != CREATED)
    with sessions.begin() as session:
        return session.scalars(query).all()


def wait_for_status(order_id: UUID) -> tuple[str, int | None]:
    """Read the status of an order. If the request prefers to wait, wait until it is final.

    Returns:
        The status, and the requested wait in seconds; None if no wait was honoured.

    Raises:
        UnknownOrderError: there is no such order.
    """
    return _wait_for(order_id, orders.read_status, lambda status: status != CREATED)


def wait_for_order(order_id: UUID) -> tuple[Order, int | None]:
    """Read an order. If the request prefers to wait, wait until the order is final.

    Returns and raises what `wait_for_status` does, with the order in place of its status.
    """
    return _wait_for(order_id, orders.read_order, lambda order: order.status != CREATED)


def _wait_for(
    order_id: UUID, read: Callable[[Session, UUID], T], is_final: Callable[[T], bool]
) -> tuple[T, int | None]:
    def read_once() -> T:
        # A new transaction for each read, so that the request holds none while it waits.
        with transaction() as session:
            return read(session, order_id)

    wait_s = prefer_header.requested_preferences().wait_s
    if wait_s is None:
        return read_once(), None
    found, honoured = current_waiters().wait(order_id, wait_s, read_once, is_final)
    return found, wait_s if honoured else None


def apply_preferences(response: Response) -> Response:
    """Complete the answer to `POST /orders` as the request prefers.

    The answer that is stored for an Idempotency-Key says only that the order was accepted. So this
    runs for the first request and for each repeated one, with the preferences of that request.
    """
    preferences = prefer_header.requested_preferences()
    returned, waited_s = preferences.returned, None
    whole = returned == prefer_header.REPRESENTATION
    if whole or preferences.wait_s is not None:
        order = None
        order_id = created_id()  # None: the answer was stored by an earlier release
        if order_id is not None:
            try:
                order, waited_s = wait_for_order(order_id)
            except SQLAlchemyError as error:
                # The order is committed, so the answer must still be that it was accepted.
                log.warning(
                    "orders.preference_dropped",
                    order_id=str(order_id),
                    error=first_line(error),
                    sqlstate=sqlstate_of(error),
                )
        if order is None:
            returned = None
        elif whole:
            response.set_data(jsonify(_WHOLE.dump(order)).get_data())
    response.headers.update(prefer_header.response_headers(returned=returned, wait_s=waited_s))
    return response
