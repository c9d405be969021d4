"""The request id and the trace context of a request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from uuid_utils import uuid4

from settle_outbox.trace import Trace

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

REQUEST_ID = "X-Request-ID"
TRACEPARENT = "traceparent"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context, section 3.2.2: in lower case. The version ff and an id of only zeros are
# invalid. A version above 00 may add fields.
_FIELDS = r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"{_FIELDS}|(?!00){_FIELDS}-[!-~]{{1,200}}")


def trace_of(environ: WSGIEnvironment) -> Trace:
    """Return the trace of a request. An invalid traceparent is ignored.

    The request id is generated if it is missing or invalid.
    """
    given = environ.get("HTTP_X_REQUEST_ID", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
    traceparent = environ.get("HTTP_TRACEPARENT")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    return Trace(request_id, traceparent)
