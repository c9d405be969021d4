"""One log line for each request, with what it came to and how long that took."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import structlog
from flask import Response, g, request

from shared.trace import current_trace

if TYPE_CHECKING:
    from flask import Flask

# Asked every few seconds, by machines; they are told at DEBUG.
_PROBES = frozenset({"/livez", "/readyz"})

log = structlog.get_logger(__name__)


def register(app: Flask) -> None:
    """Log each request of an app.

    Registered first, it sees a request before, and its answer after, all others do.
    """
    app.before_request(_begin)
    app.after_request(_tell)


def _begin() -> None:
    g.began = perf_counter()


def _tell(response: Response) -> Response:
    tell = log.debug if request.path in _PROBES else log.info
    # The path alone: a query may hold what is nobody else's business.
    tell(
        "web.request",
        method=request.method,
        path=request.path,
        status=response.status_code,
        ms=round((perf_counter() - g.began) * 1000, 1),
        request_id=current_trace.get().request_id,
    )
    return response
