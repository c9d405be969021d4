"""The request id and the trace context of a request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flask import Response, g, request
from uuid_utils import uuid4

from settle_outbox.trace import Trace, current_trace

if TYPE_CHECKING:
    from flask import Flask

REQUEST_ID = "X-Request-ID"
TRACEPARENT = "traceparent"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context, section 3.2.2: lowercase, no version ff, neither id all zeros; a version above
# 00 may add fields.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_FUTURE_TRACEPARENT = re.compile(rf"(?!00){_TRACEPARENT.pattern}-[!-~]{{1,200}}")


def register(app: Flask) -> None:
    """Set the current trace for each request, and send its id with the answer."""
    app.before_request(_begin)
    app.after_request(_answer)
    app.teardown_request(_end)


def _begin() -> None:
    given = request.headers.get(REQUEST_ID, "")
    request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
    traceparent = request.headers.get(TRACEPARENT)
    if traceparent is not None and not _is_valid(traceparent):
        traceparent = None
    g.trace_token = current_trace.set(Trace(request_id, traceparent))


def _is_valid(traceparent: str) -> bool:
    return bool(_TRACEPARENT.fullmatch(traceparent) or _FUTURE_TRACEPARENT.fullmatch(traceparent))


def _answer(response: Response) -> Response:
    request_id = current_trace.get().request_id
    if request_id is not None:
        response.headers[REQUEST_ID] = request_id
    return response


def _end(_: BaseException | None) -> None:
    token = g.pop("trace_token", None)
    if token is not None:
        current_trace.reset(token)
