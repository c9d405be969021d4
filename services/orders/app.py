"""The app of orders: ``gunicorn 'services.orders.app:create_app()'``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.orders.api import blueprint
from services.orders.problems import PROBLEMS
from services.orders.service import SERVICE
from services.orders.settlement_listener import start_watch
from services.wiring import make_service_app, start_process

if TYPE_CHECKING:
    from flask import Flask

    from shared.settings import WebSettings


def create_app(settings: WebSettings | None = None) -> Flask:
    """Make the app, after fork.

    Args:
        settings: read from the environment, and logging set up by them, unless given.

    Raises:
        SettingsError: a setting is missing or wrong.
    """
    settings = settings or start_process(SERVICE)
    app = make_service_app(
        SERVICE,
        settings,
        description="Takes orders and tells their status."
        " An order is paid through events, by the payments service.",
        blueprint=blueprint,
        problems=PROBLEMS,
    )
    start_watch(app, settings.database_url)
    return app
