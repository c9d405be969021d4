"""The kinds of problems that every service has; a service adds those of its own calls.

The name of a kind is part of the API: clients tell kinds apart by it. It never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem (RFC 9457: a problem type).

    Args:
        name: in small letters, with hyphens; empty for a kind that says no more than its status.
        status: the HTTP status of its answers.
        title: what it is, in a few words; the same for every occurrence.
        meaning: what has happened, and what has not, for its page.
        remedy: what to do about it, for its page.
    """

    name: str
    status: int
    title: str
    meaning: str
    remedy: str

    @property
    def type(self) -> str:
        """The reference that identifies it, and leads to its page at the service (section 3.1.1).

        It is relative to the service's root: a service has no name of its own that would stay the
        same behind every proxy.
        """
        return f"/problems/{self.name}" if self.name else "about:blank"


MALFORMED_REQUEST = Kind(
    "malformed-request",
    HTTPStatus.BAD_REQUEST,
    "The request is not HTTP as it should be",
    "The request could not be read: its first line, a header, or the chunks of its body have a form"
    " that HTTP does not know, or the connection ended before the request did. Nothing was"
    " changed.",
    "This is a defect of the client, or of a proxy on the way. The detail says what was met.",
)
NOT_JSON = Kind(
    "not-json",
    HTTPStatus.BAD_REQUEST,
    "The body is not JSON",
    "The body is not JSON as RFC 8259 has it, in UTF-8 without a byte order mark. NaN and Infinity"
    " are no JSON. Nothing was changed.",
    "Write the body with a JSON library. The detail says what was met, and where.",
)
NESTED_TOO_DEEPLY = Kind(
    "nested-too-deeply",
    HTTPStatus.BAD_REQUEST,
    "The body is nested too deeply",
    "The body has arrays or objects within each other beyond the limit that the detail tells."
    " Nothing was changed.",
    "Send what the call describes: none needs more than one level.",
)
INVALID_INPUT = Kind(
    "invalid-input",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "The request says something wrong",
    "The request is well-formed, but a field of its body, a parameter of its query or a header is"
    " missing or has a value that cannot be accepted. Nothing was changed.",
    "Each entry of errors names a place, by a JSON Pointer into the body (pointer), by the name of"
    " a parameter of the query (parameter) or of a header (header), and says what is wrong"
    " there. Mend them all, and send the request again.",
)
UNKNOWN_ADDRESS = Kind(
    "unknown-address",
    HTTPStatus.NOT_FOUND,
    "There is nothing at this address",
    "No call has this address, or an id in it is not a UUID.",
    "Compare the address with the calls at /docs.",
)
IDEMPOTENCY_KEY_IN_USE = Kind(
    "idempotency-key-in-use",
    HTTPStatus.CONFLICT,
    "Another request with this Idempotency-Key is under way",
    "A request with the same Idempotency-Key, to the same address, has not ended yet. This one"
    " waited for it for two seconds, and did nothing.",
    "Send the request again shortly, with the same key: the answer is then that of the first, or,"
    " where that one came to nothing, of this one.",
)
IDEMPOTENCY_KEY_REUSED = Kind(
    "idempotency-key-reused",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "This Idempotency-Key came with another body before",
    "A request with the same Idempotency-Key, to the same address, succeeded before, but its body"
    " said something else. This one did nothing.",
    "Make a new key for each thing that shall happen once, and send it with the same body however"
    " often the request is repeated.",
)
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed",
    HTTPStatus.METHOD_NOT_ALLOWED,
    "The address does not take this method",
    "There is a call at this address, but with another method. Nothing was changed.",
    "The header Allow names the methods; /docs describes them.",
)
REQUEST_TOO_SLOW = Kind(
    "request-too-slow",
    HTTPStatus.REQUEST_TIMEOUT,
    "The request did not arrive in time",
    "The rest of the request, or of its body, did not come within the seconds that the detail"
    " tells. Nothing was changed.",
    "Send it again; a slow connection, or a client that waits in the middle of a request, was too"
    " slow for it.",
)
BODY_TOO_LARGE = Kind(
    "body-too-large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large",
    "The body is larger than 128 KiB. It was not looked at, and nothing was changed.",
    "Send less: no call needs more, also with each character of a description escaped.",
)
URI_TOO_LONG = Kind(
    "uri-too-long",
    HTTPStatus.REQUEST_URI_TOO_LONG,
    "The first line of the request is too long",
    "The address with its query is longer than the server reads. Nothing was changed.",
    "Shorten it to 4,000 characters.",
)
UNSUPPORTED_MEDIA_TYPE = Kind(
    "unsupported-media-type",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "The body is not said to be JSON, or is compressed",
    "The header Content-Type is missing, or names something else than JSON. Or the header"
    " Content-Encoding names a compression. The body was not looked at, and nothing was changed.",
    "Send JSON, with Content-Type: application/json and without Content-Encoding.",
)
EXPECTATION_FAILED = Kind(
    "expectation-failed",
    HTTPStatus.EXPECTATION_FAILED,
    "The request expects what the server does not do",
    "The header Expect says something else than 100-continue. Nothing was changed.",
    "Leave the header out.",
)
HEADERS_TOO_LARGE = Kind(
    "headers-too-large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The headers are too large",
    "A header is longer than 8 kB, all of them together are longer than 64 KiB, or there are more"
    " than 100. Nothing was changed.",
    "Leave out what the calls do not need, cookies for example.",
)
MISDIRECTED_REQUEST = Kind(
    "misdirected-request",
    HTTPStatus.MISDIRECTED_REQUEST,
    "The service does not answer to this host",
    "The header Host, or X-Forwarded-Host behind a trusted proxy, names a host that the service was"
    " not told of. Otherwise a page could reach the service from a browser, under a name that leads"
    " to the service's address (DNS rebinding). Nothing was changed.",
    "Use a name that is the service's. The operator lists them in the setting ALLOWED_HOSTS;"
    " localhost and 127.0.0.1 are allowed without it.",
)
INTERNAL_ERROR = Kind(
    "internal-error",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "Something went wrong in the service",
    "A defect of the service, not of the request. Its transaction was rolled back.",
    "Tell the operator the request_id: the service's log has the whole story under it.",
)
NOT_IMPLEMENTED = Kind(
    "not-implemented",
    HTTPStatus.NOT_IMPLEMENTED,
    "The body is encoded in a way that the server does not know",
    "The header Transfer-Encoding names something else than chunked. Nothing was changed.",
    "Send the body with a Content-Length, or chunked.",
)
HTTP_VERSION_NOT_SUPPORTED = Kind(
    "http-version-not-supported",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "The server does not know this version of HTTP",
    "The first line of the request names another version of HTTP than 1.0 or 1.1. Nothing was"
    " changed.",
    "Send the request by HTTP/1.1.",
)
DATABASE_UNAVAILABLE = Kind(
    "database-unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database is unavailable",
    "The service cannot reach its database, or lost the connection, or all of its connections are"
    " in use. Or the database refuses for now: it rolled the request back because of another one,"
    " it is read-only or full, or a deployment is not finished. The detail says which. Nothing was"
    " changed, unless the connection was lost just when the database confirmed the change: then it"
    " may have been made.",
    "Send the request again after the seconds that Retry-After names. The service's log has the"
    " reason and its SQLSTATE, under the request_id.",
)
DATABASE_TOO_SLOW = Kind(
    "database-too-slow",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database did not answer in time",
    "A statement took longer than the service waits, or stood behind a lock that was not given back"
    " in time. The transaction was rolled back: nothing was changed.",
    "Send the request again after the seconds that Retry-After tells.",
)
NOT_READY = Kind(
    "not-ready",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The service is not ready",
    "The service's database cannot be asked, or is not at the revision that the code needs.",
    "The detail says which: start the database, or run the migrations (docs/operations.md).",
)

COMMON = (
    MALFORMED_REQUEST,
    NOT_JSON,
    NESTED_TOO_DEEPLY,
    INVALID_INPUT,
    UNKNOWN_ADDRESS,
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    METHOD_NOT_ALLOWED,
    REQUEST_TOO_SLOW,
    BODY_TOO_LARGE,
    URI_TOO_LONG,
    UNSUPPORTED_MEDIA_TYPE,
    EXPECTATION_FAILED,
    HEADERS_TOO_LARGE,
    MISDIRECTED_REQUEST,
    INTERNAL_ERROR,
    NOT_IMPLEMENTED,
    HTTP_VERSION_NOT_SUPPORTED,
    DATABASE_UNAVAILABLE,
    DATABASE_TOO_SLOW,
    NOT_READY,
)

# Of what the framework or the server says by a status alone.
_BY_STATUS = {
    kind.status: kind
    for kind in (
        MALFORMED_REQUEST,
        UNKNOWN_ADDRESS,
        METHOD_NOT_ALLOWED,
        REQUEST_TOO_SLOW,
        BODY_TOO_LARGE,
        URI_TOO_LONG,
        UNSUPPORTED_MEDIA_TYPE,
        EXPECTATION_FAILED,
        HEADERS_TOO_LARGE,
        INTERNAL_ERROR,
        NOT_IMPLEMENTED,
        HTTP_VERSION_NOT_SUPPORTED,
    )
}


def kind_of(status: int) -> Kind:
    """The kind of a problem that is known by its status alone."""
    return _BY_STATUS.get(status) or Kind("", status, HTTPStatus(status).phrase, "", "")
