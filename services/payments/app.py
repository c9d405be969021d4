"""The app of payments: ``gunicorn 'services.payments.app:create_app()'``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.payments.api import blueprint
from services.payments.problems import PROBLEMS
from services.payments.service import SERVICE
from services.wiring import make_service_app, prepare_process

if TYPE_CHECKING:
    from flask import Flask

    from shared.settings import WebSettings


def create_app(settings: WebSettings | None = None) -> Flask:
    """Make the app. Call this after the fork, because it opens connections and starts threads.

    Without settings, `prepare_process` reads them from the environment, and sets up logging.
    """
    return make_service_app(
        SERVICE,
        settings or prepare_process(SERVICE),
        description="Keeps the accounts of users: deposits, balances, and charges for orders.",
        blueprint=blueprint,
        problems=PROBLEMS,
    )
