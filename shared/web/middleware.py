"""Wraps an app: traces each request, completes the headers of its answer, and logs both.

It is a WSGI middleware because Flask's hooks for the same would take much of a request's time
(benchmarks/README.md).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from settle_outbox.trace import current_trace
from shared.web.access_log import writer
from shared.web.caching import HEADER, NOT_STORED, ignore_unreadable_dates
from shared.web.proxy_and_cors import PROBES
from shared.web.tracing import REQUEST_ID, trace_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from flask import Flask


def register(app: Flask) -> None:
    """Wrap an app. Call it after fork, because the log has a thread.

    Call it after other middleware is added, because this one must be the outermost.
    """
    app.wsgi_app = RequestMiddleware(app.wsgi_app)  # type: ignore[method-assign]  # Flask documents this assignment


class RequestMiddleware:
    """Traces and logs the requests of an app."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._writer = writer()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request to the app."""
        began = time.perf_counter()
        trace = trace_of(environ)
        request_id = trace.request_id or ""
        # Read now, because the app changes the environ.
        path = environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            if HEADER not in [name for name, _ in headers]:
                headers.append((HEADER, NOT_STORED))
            # Browsers must not guess another content type.
            headers.append(("X-Content-Type-Options", "nosniff"))
            headers.append((REQUEST_ID, request_id))
            self._writer.write(
                # Load balancers send probes every few seconds.
                logging.DEBUG if path in PROBES else logging.INFO,
                {
                    "method": environ["REQUEST_METHOD"],
                    # Without the query, which may hold private data.
                    "path": path,
                    "status": int(status[:3]),
                    "ms": round((time.perf_counter() - began) * 1000, 1),
                    "request_id": request_id,
                },
            )
            return start_response(status, headers, exc_info)

        ignore_unreadable_dates(environ)
        token = current_trace.set(trace)
        try:
            return self._app(environ, start)
        finally:
            current_trace.reset(token)
