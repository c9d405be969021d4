"""The app of orders: ``gunicorn 'services.orders.app:create_app()'``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import settle_outbox as outbox
from services.orders.api import blueprint
from services.orders.events import SERVICE
from services.orders.problems import PROBLEMS
from services.orders.watch import Watch
from settle_outbox.log import configure_logging
from settle_outbox.runtime.failpoints import arm
from settle_outbox.settings import Settings, read_settings
from settle_outbox.storage.database import make_engine, make_sessions
from shared import migrations
from shared.web import (
    POOL_SIZE,
    SESSION_SETTINGS,
    THREADS,
    TRANSACTION_S,
    make_app,
    register_waiters,
)

if TYPE_CHECKING:
    from flask import Flask


def create_app(settings: Settings | None = None) -> Flask:
    """Make the app, after fork.

    Args:
        settings: read from the environment, and logging set up by them, unless given.

    Raises:
        SettingsError: a setting is missing or wrong.
    """
    if settings is None:
        settings = read_settings("orders")
        configure_logging(level=settings.log_level, form=settings.log_format)
        arm(os.environ)
    engine = make_engine(
        settings.database_url,
        application_name="orders-api",
        pool_size=POOL_SIZE,
        session_settings=SESSION_SETTINGS,
        deadline_s=TRANSACTION_S,
    )
    sessions = make_sessions(engine, aggregatetypes=SERVICE.aggregatetypes)
    outbox.notify_after_commit(sessions, settings.database_url)
    app = make_app(
        __name__,
        title="Settle orders",
        description="Takes orders and tells their status."
        " An order is paid through events, by the payments service.",
        blueprints=[blueprint],
        session_factory=sessions,
        settings=settings,
        revision=migrations.head("orders"),
        domain=PROBLEMS,
    )
    # A thread that waits serves nobody: half of them may.
    waiters = register_waiters(app, most=THREADS // 2)
    app.extensions["orders-watch"] = Watch(waiters, sessions, settings.database_url)
    app.extensions["orders-watch"].start()
    return app
