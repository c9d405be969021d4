"""What the HTML pages have in common: when they are shown, and their headers."""

from __future__ import annotations

from flask import Response, request

from shared.web.caching import vary_by

_HEADERS = {
    # Load nothing from other origins, and allow no frames. Swagger UI needs inline styles, and its
    # icons are data: URLs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def wants_page() -> bool:
    """Return whether the request prefers HTML to JSON, as a browser's does."""
    vary_by("Accept")
    offered = ["application/json", "text/html"]
    return request.accept_mimetypes.best_match(offered) == "text/html"


def add_security_headers(response: Response) -> Response:
    """Restrict what a page may do in a browser."""
    response.headers.update(_HEADERS)
    return response
