"""Applies the rules of HTTP/1.1 (RFC 9112) that gunicorn skips or applies differently."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from gunicorn.http.body import ChunkedReader, LengthReader

from shared.web.server.request_reader import RequestError

if TYPE_CHECKING:
    from gunicorn.http.message import Request

_HTTP_1_1 = (1, 1)
# The services ignore trailers. gunicorn allows 800 kB, and scans all of it at every read.
_TRAILERS_MAX_BYTES = 8 * 1024
# The absolute form of a target (RFC 9112, section 3.2.2), with its authority.
_ABSOLUTE = re.compile(r"https?://(?P<authority>[^/?]*).*", re.IGNORECASE)


def apply_rules(request: Request) -> None:
    """Check a request whose head was read, and convert it to the form that an app expects.

    Raises:
        RequestError: the request breaks a rule.
    """
    # A host is never empty in an http URI (RFC 9110, section 4.2.1).
    if request.version >= _HTTP_1_1 and not any(_values(request, "HOST")):
        raise RequestError("The header Host is missing or empty (RFC 9112, section 3.2).")
    _apply_target(request)
    codings = ",".join(_values(request, "TRANSFER-ENCODING"))
    if codings and codings.lower() != "chunked":
        # gunicorn accepts gzip and deflate, but passes the body on without decompressing it.
        raise RequestError(
            f"The transfer coding {codings[:40]!r} is not supported; chunked is.",
            HTTPStatus.NOT_IMPLEMENTED,
        )
    if isinstance(request.body.reader, ChunkedReader):
        request.body.reader.limit_trailer_section = _TRAILERS_MAX_BYTES
    # HTTP/1.2 and later count as HTTP/1.1 (RFC 9110, section 2.5).
    request.version = min(request.version, _HTTP_1_1)


def _apply_target(request: Request) -> None:
    if request.method == "CONNECT":
        raise RequestError("CONNECT is not supported: this server is not a proxy.")
    if "#" in request.uri:
        raise RequestError("The address must not have a fragment (#). Leave it out.")
    if request.uri.startswith("/") or request.uri == "*":  # gunicorn allows * only with OPTIONS
        return
    absolute = _ABSOLUTE.fullmatch(request.uri)
    if absolute is None:
        raise RequestError("The address must be a path, or a URI with http or https and a host.")
    authority = absolute["authority"]
    if not authority.partition(":")[0] or "@" in authority:
        raise RequestError("The address must have a host and no user name (RFC 9110, section 4.2).")
    # The target names the host, so it replaces the header.
    others = [(name, value) for name, value in request.headers if name != "HOST"]
    request.headers = [*others, ("HOST", authority)]
    request.path = request.path or "/"


def must_close(request: Request) -> bool:
    """Return whether a request asks to close its connection (RFC 9112, section 9.6).

    gunicorn recognizes `close` only if it is the only option of the header.
    """
    options = ",".join(_values(request, "CONNECTION")).lower().split(",")
    return "close" in (option.strip() for option in options)


def is_body_left(request: Request) -> bool:
    """Return whether the rest of a request's body must be waited for, if the connection goes on.

    Bytes in gunicorn's buffer do not count: gunicorn skips them without waiting for the client.
    """
    reader = request.body.reader
    if isinstance(reader, LengthReader):
        return bool(reader.length > len(reader.unreader.buf.getvalue()))
    return reader.parser is not None


def _values(request: Request, wanted: str) -> list[str]:
    return [value for name, value in request.headers if name == wanted]
