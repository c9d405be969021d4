"""Whether a service lives, and whether it can take requests."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from marshmallow import fields
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.storage.sqlstate import UNDEFINED_TABLE, sqlstate_of
from shared.fields import OpenSchema
from shared.web.blueprint import Blueprint
from shared.web.problems import problem_types
from shared.web.problems.documents import unavailable
from shared.web.sessions import transaction

if TYPE_CHECKING:
    from flask import Response

log = structlog.get_logger(__name__)

_REVISION = text("SELECT version_num FROM alembic_version")


class HealthSchema(OpenSchema):
    """That all is well."""

    status = fields.String(
        required=True, metadata={"description": "That all is well.", "enum": ["ok"]}
    )


_OK = {"status": "ok"}


def make_blueprint(revision: str) -> Blueprint:
    """Make ``/livez`` and ``/readyz``.

    Readiness asks the database alone: with the broker down, requests are taken all the same.

    Args:
        revision: the migration that the app's code is made for.
    """
    blueprint = Blueprint("health", __name__, description="For those who watch the service")

    @blueprint.route("/livez", methods=["GET"])
    @blueprint.response(HTTPStatus.OK, HealthSchema, description="It lives.", example=_OK)
    def livez() -> dict[str, str]:
        """Tell whether the process lives.

        It asks nothing but itself: a process that does not answer should be started again.
        """
        return _OK

    @blueprint.route("/readyz", methods=["GET"])
    @blueprint.response(HTTPStatus.OK, HealthSchema, description="It is ready.", example=_OK)
    @blueprint.problem(
        problem_types.NOT_READY,
        "The database cannot be asked for its revision.",
        f"The database is at revision 0000, this needs {revision}: run the migrations.",
    )
    def readyz() -> dict[str, str] | Response:
        """Tell whether the service can take requests.

        The database must be reached, and its migrations must be those that the code needs. The
        broker is not asked: without it orders are accepted, and settle later.
        """
        try:
            with transaction() as session:
                found = session.scalar(_REVISION)
        except SQLAlchemyError as error:
            sqlstate = sqlstate_of(error)
            if sqlstate == UNDEFINED_TABLE:
                return unavailable(
                    problem_types.NOT_READY,
                    f"The database is at no revision, this needs {revision}: run the migrations.",
                )
            log.warning("web.not_ready", error=str(error).partition("\n")[0], sqlstate=sqlstate)
            return unavailable(
                problem_types.NOT_READY, "The database cannot be asked for its revision."
            )
        if found != revision:
            return unavailable(
                problem_types.NOT_READY,
                f"The database is at revision {found}, this needs {revision}: run the migrations.",
            )
        return _OK

    return blueprint
