"""Tells caches what to do with an answer: `Cache-Control` (RFC 9111) and `Vary` (RFC 9110).

By default, an answer must not be stored. Balances and statuses change, and they belong to one user.
Errors must not be stored either: some caches would store a 404 or 405.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Response, after_this_request, request
from werkzeug.http import parse_date

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

HEADER = "Cache-Control"
NOT_STORED = "no-store"
REVALIDATED = "no-cache"
_DATES = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE")


def ignore_unreadable_dates(environ: WSGIEnvironment) -> None:
    """Remove conditions whose date makes werkzeug fail: they are ignored (RFC 9110, 13.1.3).

    werkzeug ignores most invalid dates, but raises an error if a number in the date is too large.
    """
    for name in _DATES:
        if name in environ:
            try:
                parse_date(environ[name])
            except (OverflowError, ValueError):
                del environ[name]


def vary_by(header: str) -> None:
    """Add a header to `Vary`: the answer to this request depends on it."""

    @after_this_request
    def add(response: Response) -> Response:
        response.vary.add(header)
        return response


def revalidate(response: Response) -> Response:
    """Let caches store a page and revalidate it each time (RFC 9110, section 13)."""
    if response.status_code != HTTPStatus.OK or request.method == "OPTIONS":
        return response
    if "ETag" not in response.headers:  # Flask has set all of this for files
        response.headers[HEADER] = REVALIDATED
        response.add_etag()
        response.make_conditional(request)
    return response
