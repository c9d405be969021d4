"""Whether a service lives, and whether it can take requests."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from flask import Blueprint, Response, jsonify
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from shared.web.problems import RETRY_AFTER_S, problem
from shared.web.sessions import transaction

if TYPE_CHECKING:
    from flask import Flask

log = structlog.get_logger(__name__)

_REVISION = text("SELECT version_num FROM alembic_version")


def register(app: Flask, *, revision: str) -> None:
    """Add ``/livez`` and ``/readyz``.

    Readiness asks the database alone: with the broker down, requests are taken all the same.

    Args:
        app: the app.
        revision: the migration that the app's code is made for.
    """
    health = Blueprint("health", __name__)

    @health.get("/livez")
    def livez() -> Response:
        return jsonify(status="ok")

    @health.get("/readyz")
    def readyz() -> Response:
        try:
            with transaction() as session:
                found = session.scalar(_REVISION)
        except SQLAlchemyError as error:
            log.warning("web.not_ready", error=str(error).partition("\n")[0])
            return _not_ready("The database cannot be asked for its revision.")
        if found != revision:
            return _not_ready(
                f"The database is at revision {found}, this needs {revision}: run the migrations."
            )
        return jsonify(status="ok")

    app.register_blueprint(health)


def _not_ready(detail: str) -> Response:
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)}
    )
