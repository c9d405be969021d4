"""The probes /livez and /readyz."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from marshmallow import fields
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import first_line
from settle_outbox.storage.sqlstate import UNDEFINED_TABLE, sqlstate_of
from shared.fields import OpenSchema
from shared.web.blueprint import Blueprint
from shared.web.problems import problem_types
from shared.web.problems.documents import unavailable
from shared.web.sessions import transaction
from shared.web.waiting.waiters import is_stopping

if TYPE_CHECKING:
    from flask import Response

log = structlog.get_logger(__name__)

_STOPPING = "The process is stopping."
_UNREADABLE = "The revision of the database cannot be read."
_REVISION = text("SELECT version_num FROM alembic_version")


class HealthSchema(OpenSchema):
    """The result of a successful probe."""

    status = fields.String(required=True, metadata={"description": "Always `ok`.", "enum": ["ok"]})


_OK = {"status": "ok"}


def make_blueprint(revision: str) -> Blueprint:
    """Make ``/livez`` and ``/readyz`` for code that needs a revision of the database."""
    blueprint = Blueprint(
        "health", __name__, description="Probes for load balancers and supervisors"
    )

    @blueprint.route("/livez", methods=["GET"])
    @blueprint.response(
        HTTPStatus.OK, HealthSchema, description="The process responds.", example=_OK
    )
    def livez() -> dict[str, str]:
        """Check that the process responds.

        No other part of the system is checked. Restart a process that does not answer.
        """
        return _OK

    @blueprint.route("/readyz", methods=["GET"])
    @blueprint.response(
        HTTPStatus.OK, HealthSchema, description="The service is ready.", example=_OK
    )
    @blueprint.problem(
        problem_types.NOT_READY,
        _STOPPING,
        _UNREADABLE,
        f"The database is at revision 0000, not at revision {revision}: run the migrations.",
    )
    def readyz() -> dict[str, str] | Response:
        """Check that the service can process requests.

        The database must be reachable and at the revision that the code needs. The broker is not
        checked: without it, orders are accepted and settle later. A process that stops is not
        ready, although it answers the requests of its open connections.
        """
        if is_stopping():
            return unavailable(problem_types.NOT_READY, _STOPPING)
        try:
            with transaction() as session:
                found = f"revision {session.scalar(_REVISION)}"
        except SQLAlchemyError as error:
            sqlstate = sqlstate_of(error)
            if sqlstate != UNDEFINED_TABLE:
                log.warning("web.not_ready", error=first_line(error), sqlstate=sqlstate)
                return unavailable(problem_types.NOT_READY, _UNREADABLE)
            found = "no revision"
        if found == f"revision {revision}":
            return _OK
        detail = f"The database is at {found}, not at revision {revision}: run the migrations."
        return unavailable(problem_types.NOT_READY, detail)

    return blueprint
