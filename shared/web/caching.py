"""What caches may do with an answer: `Cache-Control` (RFC 9111, section 5.2) and `Vary` (RFC 9110).

Unless its route says otherwise, an answer is not stored: balances and statuses change, and what is
one user's is not for others. Errors are not stored either; some caches would keep a 404 or 405.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import after_this_request, request
from werkzeug.http import parse_date, parse_set_header

if TYPE_CHECKING:
    from flask import Flask, Response

HEADER = "Cache-Control"
NOT_STORED = "no-store"
REVALIDATED = "no-cache"


def register(app: Flask) -> None:
    """Complete both headers of every answer of an app. Register it before what adds to `Vary`."""
    app.before_request(_ignore_unreadable_dates)
    app.after_request(_complete)


def _complete(response: Response) -> Response:
    response.headers.setdefault(HEADER, NOT_STORED)
    vary = response.headers.getlist("Vary")
    if len(vary) > 1:
        response.headers["Vary"] = parse_set_header(", ".join(vary)).to_header()
    return response


def _ignore_unreadable_dates() -> None:
    """Ignore conditions whose date cannot be read (RFC 9110, section 13.1.3).

    werkzeug does so as well, but for a year, hour or zone that is out of range it raises an error.
    """
    for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE"):
        try:
            parse_date(request.environ.get(name))
        except (OverflowError, ValueError):
            del request.environ[name]


def vary_by(header: str) -> None:
    """Say that the answer to this request depends on one of its headers."""

    @after_this_request
    def add(response: Response) -> Response:
        response.vary.add(header)
        return response


def revalidate(response: Response) -> Response:
    """Let caches store a page, and ask each time whether it has changed (RFC 9110, section 13)."""
    if response.status_code != HTTPStatus.OK or request.method == "OPTIONS":
        return response
    if "ETag" not in response.headers:  # files have one
        response.headers[HEADER] = REVALIDATED
        response.add_etag()
        response.make_conditional(request)
    return response
