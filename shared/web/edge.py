"""Who may reach a service by which way: trusted proxies, allowed hosts, and CORS."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from flask import request
from werkzeug.middleware.proxy_fix import ProxyFix

from shared.settings import ANY_HOST, is_loopback
from shared.web import kinds
from shared.web.problems import ProblemError
from shared.web.tracing import REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from flask import Flask, Response

    from shared.settings import Settings

# Health checks of load balancers name a service by its address. They change nothing, and tell
# nothing but that the service is there.
PROBES = frozenset({"/livez", "/readyz"})

# RFC 9110, section 7.2, over RFC 3986, section 3.2: a port may be empty.
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
_SHOWN_MAX = 100
WRONG_HOST = (
    "This service does not answer to the host {!r}. If it should, add the name to its setting"
    " ALLOWED_HOSTS."
)

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
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": ", ".join(_MAY_SEND),
    "Access-Control-Max-Age": str(_PREFLIGHT_KEPT_S),
}


def register(app: Flask, settings: Settings) -> None:
    """Let proxies, host names and browsers' origins in as far as the settings say."""
    app.after_request(_as_typed)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]  # Flask's way to add middleware
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_port=0, x_prefix=0
        )
    if ANY_HOST not in settings.allowed_hosts:
        app.before_request(partial(_refuse_hosts, frozenset(settings.allowed_hosts)))
    if settings.cors_origins:
        app.after_request(partial(_answer_origin, frozenset(settings.cors_origins)))


def _refuse_hosts(allowed: AbstractSet[str]) -> None:
    """Refuse a request to a host that this service is not (RFC 9110, section 7.4).

    The owner of a name can point it at this service's address. The browser then takes a page under
    that name and this service for one site, and lets the page send and read anything (DNS
    rebinding). Only the name in Host betrays it.

    Behind trusted proxies, Host itself is checked as well as the host that they forward: a page
    that reaches the service directly can send any X-Forwarded-Host. A request without Host (an old
    client, in HTTP/1.0) does not come from a browser.
    """
    if request.path in PROBES:
        return
    received = request.environ.get("werkzeug.proxy_fix.orig", {}).get("HTTP_HOST")
    for host in (request.headers.get("Host"), received):
        if host is not None and not _is_allowed(host, allowed):
            raise ProblemError(kinds.MISDIRECTED_REQUEST, WRONG_HOST.format(host[:_SHOWN_MAX]))


def _is_allowed(host: str, allowed: AbstractSet[str]) -> bool:
    """Whether a host is named so, in any case, at whatever port; a final dot says no more."""
    found = _HOST.fullmatch(host.lower())
    name = found["name"].removesuffix(".") if found else ""
    return name in allowed or is_loopback(name)


def _answer_origin(origins: AbstractSet[str], response: Response) -> Response:
    """Let scripts of these origins in, by the CORS protocol (the Fetch standard, section 3.2).

    Origins are compared as strings: browsers write each in one way only.
    """
    # Also for an origin that is not let in, or none: caches would mix up the answers.
    response.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers.update(_PREFLIGHT)
        else:
            response.headers["Access-Control-Expose-Headers"] = ", ".join(_MAY_SEE)
    return response


def _as_typed(response: Response) -> Response:
    """Keep browsers from guessing another type than the one that is said."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
