"""What the HTML pages have in common: when they are shown, their frame, and their headers."""

from __future__ import annotations

from html import escape

from flask import Response, request

from shared.web.caching import vary_by

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="{root}docs/files/favicon-32x32.png">
{body}</html>
"""
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


def html_page(title: str, body: str, *, root: str = "") -> Response:
    """Make a page from its title and its body in HTML.

    `root` is the beginning of the icon's path: `/`, or empty for a path relative to the page.
    """
    page = _PAGE.format(title=escape(title), body=body, root=root)
    return Response(page, mimetype="text/html")


def add_security_headers(response: Response) -> Response:
    """Restrict what a page may do in a browser."""
    response.headers.update(_HEADERS)
    return response
