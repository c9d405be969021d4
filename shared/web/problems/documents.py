"""Problem documents (RFC 9457), and the errors that end a request with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException

from settle_outbox.trace import current_trace
from shared.web.problems import problem_types

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
INVALID = "The request is well-formed, but parts of it are invalid; see errors."


class ProblemError(HTTPException):
    """Ends a request with a problem document. The arguments are those of `problem`."""

    def __init__(
        self, problem_type: problem_types.ProblemType, detail: str, **members: Any
    ) -> None:
        super().__init__(detail)
        self.code = problem_type.status
        self.problem_type = problem_type
        self.detail = detail
        self.members = members


class InvalidInputError(ProblemError):
    """The request is well-formed, but invalid.

    Args:
        errors: for each fault, its place (`pointer`, a JSON Pointer into the body; `parameter`, a
            name in the query; or `header`) and a sentence (`detail`).
    """

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__(problem_types.INVALID_INPUT, INVALID, errors=errors)


def problem(
    problem_type: problem_types.ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # anything that JSON can hold
) -> Response:
    """Make the answer to the current request from a problem document.

    Args:
        problem_type: with the status.
        detail: a sentence about this occurrence.
        headers: further headers of the answer.
        members: extension members (RFC 9457, section 3.2).
    """
    request_id = current_trace.get().request_id or ""
    document = document_of(problem_type, detail, request.path, request_id, **members)
    text = current_app.json.dumps(document)
    return Response(text, problem_type.status, headers, MEDIA_TYPE)


def unavailable(problem_type: problem_types.ProblemType, detail: str) -> Response:
    """Make an answer that asks the client to send the request again."""
    return problem(problem_type, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def document_of(
    problem_type: problem_types.ProblemType, detail: str, path: str, request_id: str, **members: Any
) -> dict[str, Any]:
    """Return the members of a problem document. Path and id identify the occurrence (3.1.5)."""
    return {
        "type": problem_type.type,
        "title": problem_type.title,
        "status": int(problem_type.status),
        "detail": detail,
        "instance": f"{quote(path, errors='replace')}#{request_id}",
        "request_id": request_id,
        **members,
    }
