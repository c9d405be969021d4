"""Wakes the requests that wait for an order when it becomes final."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

import settle_outbox as outbox
from services.orders.models import CREATED, Order
from services.orders.settlements import SETTLED_CHANNEL
from shared.web.sessions import session_factory
from shared.web.waiting.waiters import register_waiters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from flask import Flask
    from sqlalchemy.orm import Session, sessionmaker

    from shared.settings import WebSettings


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
    """Return those of some orders that are final."""
    query = select(Order.id).where(Order.id.in_(order_ids), Order.status != CREATED)
    with sessions.begin() as session:
        return session.scalars(query).all()
