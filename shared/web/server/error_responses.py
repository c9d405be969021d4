"""Answers requests that the server refuses, or that failed outside the app's error handlers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from gunicorn import util

from shared.web import caching
from shared.web.problems.documents import MEDIA_TYPE, document_of
from shared.web.problems.problem_types import problem_type_of
from shared.web.tracing import REQUEST_ID

if TYPE_CHECKING:
    from socket import socket

# Maximum length of a detail. gunicorn quotes the request in it.
_DETAIL_MAX = 200

log = structlog.get_logger(__name__)


def write_problem(client: socket, status: int, reason: str, detail: str) -> None:
    """Answer with a problem document and `Connection: close`. The caller closes the connection.

    The arguments are those of gunicorn's `write_error`: `reason` is the phrase of the status.
    """
    request_id = str(uuid4())  # the client's X-Request-ID is not known here
    detail = (detail or reason)[:_DETAIL_MAX]
    log.warning("web.request_rejected", status=status, error=detail, request_id=request_id)
    body = json.dumps(document_of(problem_type_of(status), detail, path="", request_id=request_id))
    util.write_nonblock(
        client,
        (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
            f"{caching.HEADER}: {caching.NOT_STORED}\r\n"
            f"{REQUEST_ID}: {request_id}\r\n\r\n{body}"
        ).encode("ascii"),
    )
