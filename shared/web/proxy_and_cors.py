"""Trusted proxies, allowed hosts, and CORS."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.middleware.proxy_fix import ProxyFix

from shared.settings import ANY_HOST, WebSettings, is_host, is_loopback
from shared.web.problems import problem_types
from shared.web.problems.documents import ProblemError
from shared.web.tracing import REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

# Load balancers call these probes by IP address, so their host is not checked. The probes change
# nothing, and show only whether the service is up and ready.
PROBES = frozenset({"/livez", "/readyz"})

# RFC 9110, section 7.2, and RFC 3986, section 3.2: a port may be empty.
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
_QUOTED_HOST_MAX = 100
WRONG_HOST = "This service does not accept the host {!r}."
ALLOW_HOST = " If it should, add {} to ALLOWED_HOSTS (without the port) and restart the service."

# CORS (the Fetch standard, section 3.2): the request headers that scripts of another origin may
# set, and the response headers that they may read.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type, Idempotency-Key, Prefer,"
    f" {REQUEST_ID}, {TRACEPARENT}",
    "Access-Control-Max-Age": "600",  # seconds
}
_EXPOSED_HEADERS = (
    f"Idempotent-Replayed, Link, Location, Preference-Applied, Retry-After, {REQUEST_ID}"
)


def register(app: Flask, settings: WebSettings) -> None:
    """Apply the settings for trusted proxies, allowed hosts and CORS."""
    if hops := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]  # Flask's way to add middleware
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_port=0, x_prefix=0
        )
    if ANY_HOST not in settings.allowed_hosts:
        app.before_request(partial(_check_host, frozenset(settings.allowed_hosts)))
    if settings.cors_origins:
        app.after_request(partial(_add_cors_headers, frozenset(settings.cors_origins)))


def _check_host(allowed: AbstractSet[str]) -> None:
    """Refuse a request whose Host is not allowed (RFC 9110, section 7.4).

    It prevents DNS rebinding. An attacker points a host name to this service's address. For a
    browser, a page from that name then has this service's origin, and can send and read anything.
    Only the Host header shows the foreign name.

    Behind trusted proxies, both the forwarded host and the received one are checked: a page that
    reaches the service directly can set X-Forwarded-Host. A request without Host (HTTP/1.0) is
    allowed, because no browser sends one.
    """
    environ = request.environ
    if environ.get("PATH_INFO", "") in PROBES:
        return
    received = environ.get("werkzeug.proxy_fix.orig", {}).get("HTTP_HOST")
    for host in (environ.get("HTTP_HOST"), received):
        if host is None:
            continue
        found = _HOST.fullmatch(host.lower())
        name = found["name"].removesuffix(".") if found else ""
        if name not in allowed and not is_loopback(name):
            detail = WRONG_HOST.format(host[:_QUOTED_HOST_MAX])
            if is_host(name) and len(name) <= _QUOTED_HOST_MAX:
                detail += ALLOW_HOST.format(name)
            raise ProblemError(problem_types.MISDIRECTED_REQUEST, detail)


def _add_cors_headers(origins: AbstractSet[str], response: Response) -> Response:
    """Allow scripts of these origins, by the CORS protocol (the Fetch standard, section 3.2).

    Origins are compared as strings, because browsers write each origin in only one way.
    """
    # Even if the origin is not allowed: without Vary, a cache would give one origin's answer to
    # another origin (the Fetch standard, "CORS protocol and HTTP caches").
    response.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers.update(_PREFLIGHT)
        else:
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    return response
