"""Answers every error of an app with a problem document."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from settle_outbox.errors import first_line
from settle_outbox.storage.sqlstate import (
    LOCK_NOT_AVAILABLE,
    QUERY_CANCELED,
    UNIQUE_VIOLATION,
    is_transient,
    is_unreachable,
    sqlstate_of,
)
from settle_outbox.trace import current_trace
from shared.web.problems import problem_types
from shared.web.problems.documents import ProblemError, problem, unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask, Response

    from settle_outbox.errors import SettleError

# werkzeug's own sentences are about browsers and spelling.
_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address; see /docs for the calls.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not support this method; see Allow.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 128 KiB.",
}

UNREACHABLE = (
    "The database cannot be reached. Nothing was changed, unless only its confirmation was lost."
    " Send the request again."
)
TOO_SLOW = "The database did not answer in time. Nothing was changed; send the request again."
ROLLED_BACK = (
    "The database rolled this request back because of a concurrent request. Nothing was changed;"
    " send the request again."
)
REFUSES = (
    "The database refuses this request for now. Nothing was changed; send the request again later."
)
FAILED = "The service failed. Its log has the error under this request_id."
# statement_timeout and lock_timeout.
_TIMED_OUT = {QUERY_CANCELED, LOCK_NOT_AVAILABLE}
# The class of the SQLSTATEs of a deadlock and a serialization failure.
_ROLLBACK = "40"

log = structlog.get_logger(__name__)


def register(app: Flask, domain: Mapping[type[SettleError], problem_types.ProblemType]) -> None:
    """Answer every error of an app with a problem document.

    `domain` has the problem type of each error of the use cases. The error's text is the detail.
    """

    def on_domain_error(error: Exception) -> Response:
        problem_type = next(domain[base] for base in type(error).__mro__ if base in domain)
        return problem(problem_type, str(error))

    for error_class in domain:
        app.register_error_handler(error_class, on_domain_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(ProblemError, _on_problem)
    app.register_error_handler(PoolTimeoutError, _on_database_error)
    app.register_error_handler(DBAPIError, _on_database_error)
    app.register_error_handler(Exception, _on_defect)


def _on_problem(error: ProblemError) -> Response:
    return problem(error.problem_type, error.detail, **error.members)


def _on_http_error(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {
        name: value
        for name, value in error.get_headers()
        if name.lower() not in {"content-type", "content-length"}
    }
    is_stock = error.description == type(error).description
    detail = _DETAILS.get(status) if is_stock else None
    problem_type = problem_types.problem_type_of(status)
    return problem(problem_type, detail or error.description or status.phrase, headers=headers)


def _on_database_error(error: DBAPIError | PoolTimeoutError) -> Response:
    sqlstate = sqlstate_of(error)
    # The use cases handle the duplicates that requests can cause. Any other duplicate comes from a
    # sequence that was set back. The error ends when the sequence is above the existing ids, so
    # clients may try again.
    if not is_transient(error) and sqlstate != UNIQUE_VIOLATION:
        return _on_defect(error)
    log.warning(
        "web.database_unavailable",
        error=first_line(error),
        sqlstate=sqlstate,
        request_id=current_trace.get().request_id,
    )
    if sqlstate in _TIMED_OUT:
        return unavailable(problem_types.DATABASE_TOO_SLOW, TOO_SLOW)
    if is_unreachable(error):
        return unavailable(problem_types.DATABASE_UNAVAILABLE, UNREACHABLE)
    rolled_back = sqlstate is not None and sqlstate.startswith(_ROLLBACK)
    return unavailable(problem_types.DATABASE_UNAVAILABLE, ROLLED_BACK if rolled_back else REFUSES)


def _on_defect(error: Exception) -> Response:
    if isinstance(error, DBAPIError):
        # Only the first line is logged: below it, PostgreSQL quotes the row, which users wrote.
        for each in filter(None, (error, error.orig)):
            each.args = (str(each.args[0]).partition("\n")[0], *each.args[1:])
    log.error("web.request_failed", exc_info=error, request_id=current_trace.get().request_id)
    return problem(problem_types.INTERNAL_ERROR, FAILED)
