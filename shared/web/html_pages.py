"""What the pages for people have in common: their form and their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request

from shared.web.caching import vary_by

if TYPE_CHECKING:
    from flask import Response

_HEADERS = {
    # Nothing from elsewhere, and none of this in a frame. Swagger UI styles elements in place, and
    # its icons are data.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def wants_page() -> bool:
    """Whether the request comes from a person's browser, and not from a program."""
    vary_by("Accept")
    kinds = ["application/json", "text/html"]
    return request.accept_mimetypes.best_match(kinds) == "text/html"


def secure(response: Response) -> Response:
    """Bound what a page may do in a browser."""
    response.headers.update(_HEADERS)
    return response
