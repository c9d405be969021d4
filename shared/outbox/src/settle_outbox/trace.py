"""What follows a request through every process: its id, and its trace context."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """Carried from an HTTP request into each event it causes.

    Args:
        request_id: from, or given in, ``X-Request-ID``; None outside any request.
        traceparent: W3C Trace Context, passed through untouched.
    """

    request_id: str | None = None
    traceparent: str | None = None


current_trace: ContextVar[Trace] = ContextVar("current_trace", default=Trace())  # noqa: B039 - frozen
