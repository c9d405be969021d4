"""The app of orders: ``gunicorn 'services.orders.app:create_app()'``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.orders.api import blueprint
from services.orders.prefer_wait import start_settlement_listener
from services.orders.problems import PROBLEMS
from services.orders.service import SERVICE
from services.wiring import make_service_app, prepare_process

if TYPE_CHECKING:
    from flask import Flask

    from shared.settings import WebSettings


def create_app(settings: WebSettings | None = None) -> Flask:
    """Make the app. Call this after the fork, because it opens connections and starts threads.

    Without settings, `prepare_process` reads them from the environment, and sets up logging.
    """
    settings = settings or prepare_process(SERVICE)
    app = make_service_app(
        SERVICE,
        settings,
        description="Takes orders and returns their status."
        " The payments service pays them; the two services exchange events.",
        blueprint=blueprint,
        problems=PROBLEMS,
    )
    start_settlement_listener(app, settings)
    return app
