"""The id and the trace context of an HTTP request. Its events carry them through all processes."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """The origin of an event. It is copied from an HTTP request to each event that it causes.

    Args:
        request_id: the ``X-Request-ID`` of the request, or None outside a request.
        traceparent: the header of W3C Trace Context, unchanged.
    """

    request_id: str | None = None
    traceparent: str | None = None


current_trace: ContextVar[Trace] = ContextVar("current_trace", default=Trace())  # noqa: B039 - frozen
