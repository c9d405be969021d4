"""Every error is answered as a problem document (RFC 9457), whoever raised it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from flask import Response, current_app
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from shared.trace import current_trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from shared.errors import SettleError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

# In place of werkzeug's sentences, which speak of browsers and spelling.
_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address; /docs lists what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; see Allow.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 1 MiB.",
}

AWAY = (
    "The database cannot be reached just now. Nothing was changed unless its answer was lost on the"
    " way; try again."
)
TOO_SLOW = "The database did not answer in time. Nothing was changed; try again."
# statement_timeout and lock_timeout (PostgreSQL's documentation, appendix A).
_TIMED_OUT = {"57014", "55P03"}

log = structlog.get_logger(__name__)


class InvalidInputError(HTTPException):
    """The request is well-formed, but says something wrong.

    Args:
        errors: where each fault is (`pointer`, a JSON Pointer into the body, or `parameter`, a
            name in the query) and what it is (`detail`).
    """

    code = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("The request is well-formed, but some of it cannot be accepted.")
        self.errors = errors


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # whatever JSON holds
) -> Response:
    """Make a problem document.

    Args:
        status: the HTTP status.
        detail: a sentence for a person, on this occurrence.
        headers: to be sent with it.
        members: extension members (RFC 9457, section 3.2).
    """
    document = document_of(status, detail, **members)
    response = Response(current_app.json.dumps(document), status=status, mimetype=MEDIA_TYPE)
    response.headers.update(headers or {})
    return response


def document_of(status: int, detail: str, **members: Any) -> dict[str, Any]:
    """The members of a problem document; the arguments are those of `problem`."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        **members,
    }


def register(app: Flask, statuses: Mapping[type[SettleError], int]) -> None:
    """Answer every error of an app with a problem document.

    Args:
        app: the app.
        statuses: of the errors that its use cases raise; their sentence becomes the detail.
    """

    def on_domain_error(error: Exception) -> Response:
        status = next(statuses[base] for base in type(error).__mro__ if base in statuses)
        return problem(status, str(error))

    for error_class in statuses:
        app.register_error_handler(error_class, on_domain_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(InvalidInputError, _on_invalid_input)
    app.register_error_handler(PoolTimeoutError, _on_database_trouble)
    app.register_error_handler(DBAPIError, _on_database_error)
    app.register_error_handler(Exception, _on_defect)


def _on_http_error(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {
        name: value
        for name, value in error.get_headers()
        if name.lower() not in {"content-type", "content-length"}
    }
    detail = _DETAILS.get(status) if _is_stock(error) else None
    return problem(status, detail or error.description or status.phrase, headers=headers)


def _is_stock(error: HTTPException) -> bool:
    return error.description == type(error).description


def _on_invalid_input(error: InvalidInputError) -> Response:
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.description or "", errors=error.errors)


def _on_database_error(error: DBAPIError) -> Response:
    if getattr(error.orig, "pgcode", None) in _TIMED_OUT:
        return _on_database_trouble(error, TOO_SLOW)
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return _on_database_trouble(error)
    return _on_defect(error)


def _on_database_trouble(error: Exception, detail: str = AWAY) -> Response:
    log.warning(
        "web.database_unavailable",
        error=str(error).partition("\n")[0],
        request_id=current_trace.get().request_id,
    )
    return unavailable(detail)


def unavailable(detail: str) -> Response:
    """Make a problem document that asks to come again."""
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)}
    )


def _on_defect(error: Exception) -> Response:
    request_id = current_trace.get().request_id
    log.error("web.request_failed", exc_info=error, request_id=request_id)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong here. The log tells what, under this request_id.",
        request_id=request_id,
    )
