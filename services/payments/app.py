"""The app of payments: ``gunicorn 'services.payments.app:create_app()'``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.payments.api import blueprint
from services.payments.events import SERVICE
from services.payments.problems import PROBLEMS
from settle_outbox.log import configure_logging
from settle_outbox.runtime.failpoints import arm
from settle_outbox.settings import Settings, read_settings
from settle_outbox.storage.database import make_engine, make_sessions
from shared import migrations
from shared.web import POOL_SIZE, SESSION_SETTINGS, TRANSACTION_S, make_app

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
        settings = read_settings("payments")
        configure_logging(level=settings.log_level, form=settings.log_format)
        arm(os.environ)
    engine = make_engine(
        settings.database_url,
        application_name="payments-api",
        pool_size=POOL_SIZE,
        session_settings=SESSION_SETTINGS,
        deadline_s=TRANSACTION_S,
    )
    return make_app(
        __name__,
        title="Settle payments",
        description="Keeps the accounts of users: deposits, balances, and the charges for orders.",
        blueprints=[blueprint],
        session_factory=make_sessions(engine, aggregatetypes=SERVICE.aggregatetypes),
        settings=settings,
        revision=migrations.head("payments"),
        domain=PROBLEMS,
    )
