"""What is believed of a proxy before a service, and what is told to a browser before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from shared.web.tracing import REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from flask import Flask, Response

    from shared.settings import Settings

# Of the CORS protocol (the Fetch standard, section 3.2): what scripts of another origin may send,
# and what they may see of an answer.
_MAY_SEND = ("Content-Type", "Idempotency-Key", "Prefer", REQUEST_ID, TRACEPARENT)
_MAY_SEE = (
    "Idempotent-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    REQUEST_ID,
)
_PREFLIGHT_KEPT_S = 600


def register(app: Flask, settings: Settings) -> None:
    """Have an app believe its proxies, and browsers, as far as the settings say; by default not."""
    app.after_request(_as_typed)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]  # Flask's way to add middleware
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_port=0, x_prefix=0
        )
    if settings.cors_origins:
        CORS(
            app,
            origins=list(settings.cors_origins),
            methods=["GET", "POST"],
            allow_headers=_MAY_SEND,
            expose_headers=_MAY_SEE,
            max_age=_PREFLIGHT_KEPT_S,
        )


def _as_typed(response: Response) -> Response:
    """Keep browsers from guessing another type than the one that is said."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
