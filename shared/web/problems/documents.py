"""Every error is answered as a problem document (RFC 9457), whoever raised it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog
from flask import Response, current_app, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from settle_outbox.errors import SettleError
    from shared.web.problems.problem_types import Kind

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

# In place of werkzeug's sentences, which speak of browsers and spelling.
_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address; /docs lists what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; see Allow.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 128 KiB.",
}

UNREACHABLE = (
    "The database cannot be reached just now. Nothing was changed unless its answer was lost on the"
    " way; try again."
)
TOO_SLOW = "The database did not answer in time. Nothing was changed; try again."
ROLLED_BACK = (
    "The database rolled this request back because of another one at the same time. Nothing was"
    " changed; try again."
)
REFUSES = "The database refuses this request just now. Nothing was changed; try again later."
# statement_timeout and lock_timeout.
_TIMED_OUT = {QUERY_CANCELED, LOCK_NOT_AVAILABLE}
# The class of SQLSTATEs for a deadlock and a serialization failure.
_ROLLBACK = "40"

log = structlog.get_logger(__name__)


class ProblemError(HTTPException):
    """A request that ends as a problem of a kind.

    Args:
        kind: of the problem.
        detail: a sentence for a person, on this occurrence.
        members: extension members (RFC 9457, section 3.2).
    """

    def __init__(self, kind: Kind, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.code = kind.status
        self.kind = kind
        self.detail = detail
        self.members = members


class InvalidInputError(ProblemError):
    """The request is well-formed, but says something wrong.

    Args:
        errors: where each fault is (`pointer`, a JSON Pointer into the body, `parameter`, a name
            in the query, or `header`) and what it is (`detail`).
    """

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__(
            problem_types.INVALID_INPUT,
            "The request is well-formed, but some of it cannot be accepted.",
            errors=errors,
        )


def problem(
    kind: Kind,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # whatever JSON holds
) -> Response:
    """Make a problem document on the request.

    Args:
        kind: of the problem; it has the status.
        detail: a sentence for a person, on this occurrence.
        headers: to be sent with it.
        members: extension members (RFC 9457, section 3.2).
    """
    request_id = current_trace.get().request_id or ""
    document = document_of(kind, detail, path=request.path, request_id=request_id, **members)
    text = current_app.json.dumps(document)
    response = Response(text, status=kind.status, mimetype=MEDIA_TYPE)
    response.headers.update(headers or {})
    return response


def document_of(
    kind: Kind, detail: str, *, path: str, request_id: str, **members: Any
) -> dict[str, Any]:
    """The members of a problem document.

    Args:
        kind: of the problem.
        detail: a sentence for a person, on this occurrence.
        path: of the request; with its id, it identifies the occurrence (section 3.1.5).
        request_id: under which the log tells more.
        members: extension members.
    """
    return {
        "type": kind.type,
        "title": kind.title,
        "status": int(kind.status),
        "detail": detail,
        "instance": f"{quote(path, errors='replace')}#{request_id}",
        "request_id": request_id,
        **members,
    }


def register(app: Flask, domain: Mapping[type[SettleError], Kind]) -> None:
    """Answer every error of an app with a problem document.

    Args:
        app: the app.
        domain: the kinds of the errors that its use cases raise; their sentence becomes the detail.
    """

    def on_domain_error(error: Exception) -> Response:
        kind = next(domain[base] for base in type(error).__mro__ if base in domain)
        return problem(kind, str(error))

    for error_class in domain:
        app.register_error_handler(error_class, on_domain_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(ProblemError, _on_problem)
    app.register_error_handler(PoolTimeoutError, _on_database_error)
    app.register_error_handler(DBAPIError, _on_database_error)
    app.register_error_handler(Exception, _on_defect)


def _on_problem(error: ProblemError) -> Response:
    return problem(error.kind, error.detail, **error.members)


def _on_http_error(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {
        name: value
        for name, value in error.get_headers()
        if name.lower() not in {"content-type", "content-length"}
    }
    detail = _DETAILS.get(status) if _is_stock(error) else None
    kind = problem_types.kind_of(status)
    return problem(kind, detail or error.description or status.phrase, headers=headers)


def _is_stock(error: HTTPException) -> bool:
    return error.description == type(error).description


def _on_database_error(error: DBAPIError | PoolTimeoutError) -> Response:
    sqlstate = sqlstate_of(error)
    # Use cases expect the duplicates that requests can cause. Another one comes from a sequence
    # that was set back, and passes.
    if not is_transient(error) and sqlstate != UNIQUE_VIOLATION:
        return _on_defect(error)
    log.warning(
        "web.database_unavailable",
        error=str(error).partition("\n")[0],
        sqlstate=sqlstate,
        request_id=current_trace.get().request_id,
    )
    if sqlstate in _TIMED_OUT:
        return unavailable(problem_types.DATABASE_TOO_SLOW, TOO_SLOW)
    if is_unreachable(error):
        return unavailable(problem_types.DATABASE_UNAVAILABLE, UNREACHABLE)
    rolled_back = sqlstate is not None and sqlstate.startswith(_ROLLBACK)
    return unavailable(problem_types.DATABASE_UNAVAILABLE, ROLLED_BACK if rolled_back else REFUSES)


def unavailable(kind: Kind, detail: str) -> Response:
    """Make a problem document that asks to come again."""
    return problem(kind, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def _on_defect(error: Exception) -> Response:
    log.error("web.request_failed", exc_info=error, request_id=current_trace.get().request_id)
    return problem(
        problem_types.INTERNAL_ERROR,
        "Something went wrong here. The log tells what, under this request_id.",
    )
