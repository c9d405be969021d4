"""The problem types that every service has. A service adds the types of its calls.

The name of a problem type is part of the API, because clients compare it. It never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A problem type (RFC 9457).

    Args:
        name: in lower case, with hyphens. Empty if the status says everything.
        status: HTTP status.
        title: a few words; the same for every occurrence.
        meaning: what happened and what was changed, for the page of this type.
        remedy: what the client can do, for the page of this type.
    """

    name: str
    status: int
    title: str
    meaning: str
    remedy: str

    @property
    def type(self) -> str:
        """The URI reference that identifies the type and leads to its page (section 3.1.1).

        It is relative to the service's root, because a service has no name that is the same behind
        every proxy.
        """
        return f"/problems/{self.name}" if self.name else "about:blank"


MALFORMED_REQUEST = ProblemType(
    "malformed-request",
    HTTPStatus.BAD_REQUEST,
    "The request is not valid HTTP",
    "The request cannot be read. Its first line, a header or the chunks of its body are not valid"
    " HTTP, or the connection ended before the request was complete. Nothing was changed.",
    "Correct the client, or the proxy in front of the service. The detail says what is wrong.",
)
NOT_JSON = ProblemType(
    "not-json",
    HTTPStatus.BAD_REQUEST,
    "The body is not JSON",
    "The body is not JSON (RFC 8259) in UTF-8 without a byte order mark. NaN and Infinity are not"
    " JSON. Nothing was changed.",
    "Write the body with a JSON library. The detail says what is wrong, and where.",
)
NESTED_TOO_DEEPLY = ProblemType(
    "nested-too-deeply",
    HTTPStatus.BAD_REQUEST,
    "The body is nested too deeply",
    "The arrays and objects of the body are nested deeper than the limit in the detail. Nothing was"
    " changed.",
    "Send a body as the API description shows it. No call needs more than one level.",
)
INVALID_INPUT = ProblemType(
    "invalid-input",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "The request is invalid",
    "The request is well-formed, but a field of its body, a query parameter or a header is missing"
    " or has an invalid value. Nothing was changed.",
    "Each entry of errors says what is wrong and where: in the body (pointer, a JSON Pointer), in"
    " the query (parameter, its name) or in a header (header, its name). Correct all of them, and"
    " send the request again.",
)
UNKNOWN_ADDRESS = ProblemType(
    "unknown-address",
    HTTPStatus.NOT_FOUND,
    "There is nothing at this address",
    "No call has this address, or an id in it is not a UUID.",
    "Compare the address with the calls at /docs.",
)
IDEMPOTENCY_KEY_IN_USE = ProblemType(
    "idempotency-key-in-use",
    HTTPStatus.CONFLICT,
    "Another request with this Idempotency-Key is in progress",
    "A request with the same Idempotency-Key and address is still in progress. This request waited"
    " for it for two seconds, and did nothing.",
    "Send the request again shortly, with the same key. If the first request succeeded, you get its"
    " answer. If it failed, the repeated request is processed.",
)
IDEMPOTENCY_KEY_REUSED = ProblemType(
    "idempotency-key-reused",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "This Idempotency-Key was used with another body",
    "A request with the same Idempotency-Key and address succeeded before, and its body was"
    " different. This request did nothing.",
    "Use a new key for each operation. When you repeat a request, send the same body with the same"
    " key.",
)
METHOD_NOT_ALLOWED = ProblemType(
    "method-not-allowed",
    HTTPStatus.METHOD_NOT_ALLOWED,
    "The address does not support this method",
    "There is a call at this address, but with another method. Nothing was changed.",
    "The header Allow lists the methods. /docs describes them.",
)
REQUEST_TOO_SLOW = ProblemType(
    "request-too-slow",
    HTTPStatus.REQUEST_TIMEOUT,
    "The request did not arrive in time",
    "The request was not complete in time, or the server needed its connection for other requests."
    " Nothing was changed.",
    "Send it again. The connection was too slow, or the client paused in the middle of the"
    " request.",
)
BODY_TOO_LARGE = ProblemType(
    "body-too-large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large",
    "The body is larger than 128 KiB. Nothing was changed.",
    "Send a smaller body. No call needs more, even if each character of a description is escaped.",
)
URI_TOO_LONG = ProblemType(
    "uri-too-long",
    HTTPStatus.REQUEST_URI_TOO_LONG,
    "The first line of the request is too long",
    "The address with its query is longer than the server accepts. Nothing was changed.",
    "Shorten it to 4,000 characters.",
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported-media-type",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "The body is not declared as JSON, or it is compressed",
    "The header Content-Type is missing or names another type than JSON, or the header"
    " Content-Encoding names a compression. The body was not read, and nothing was changed.",
    "Send JSON, with Content-Type: application/json and without Content-Encoding.",
)
EXPECTATION_FAILED = ProblemType(
    "expectation-failed",
    HTTPStatus.EXPECTATION_FAILED,
    "The server cannot meet the expectation of the request",
    "The header Expect has another value than 100-continue. Nothing was changed.",
    "Remove the header Expect.",
)
HEADERS_TOO_LARGE = ProblemType(
    "headers-too-large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The headers are too large",
    "A header is longer than 8 kB, all headers together are longer than 64 KiB, or there are more"
    " than 100. Nothing was changed.",
    "Remove headers that the calls do not need, such as cookies.",
)
MISDIRECTED_REQUEST = ProblemType(
    "misdirected-request",
    HTTPStatus.MISDIRECTED_REQUEST,
    "The service does not accept this host name",
    "The header Host, or X-Forwarded-Host behind a trusted proxy, is not in the list of allowed"
    " hosts. The list protects against DNS rebinding: a web page whose host name points to the"
    " address of this service. Nothing was changed.",
    "Use a host name of the service. The operator lists them in the setting ALLOWED_HOSTS."
    " localhost and 127.0.0.1 are always allowed.",
)
INTERNAL_ERROR = ProblemType(
    "internal-error",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The service failed",
    "This is a defect of the service, not of the request. Uncommitted changes were rolled back.",
    "Give the request_id to the operator. The log of the service has the error under this id.",
)
NOT_IMPLEMENTED = ProblemType(
    "not-implemented",
    HTTPStatus.NOT_IMPLEMENTED,
    "The server does not support this transfer coding",
    "The header Transfer-Encoding has another value than chunked. Nothing was changed.",
    "Send the body with a Content-Length, or chunked.",
)
HTTP_VERSION_NOT_SUPPORTED = ProblemType(
    "http-version-not-supported",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "The server does not support this version of HTTP",
    "The first line of the request names another version than HTTP 1.0 or 1.1. Nothing was"
    " changed.",
    "Send the request with HTTP/1.1.",
)
DATABASE_UNAVAILABLE = ProblemType(
    "database-unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database is unavailable",
    "The service cannot reach its database, or lost the connection, or all of its connections are"
    " in use. Or the database refuses the request for now: it rolled it back because of a"
    " concurrent request, it is read-only or full, or a deployment is not finished. The detail says"
    " which. Nothing was changed, unless the connection was lost while the database confirmed the"
    " change. In that case the change may have been made.",
    "Send the request again after the seconds in Retry-After. The log of the service has the reason"
    " and its SQLSTATE under the request_id.",
)
DATABASE_TOO_SLOW = ProblemType(
    "database-too-slow",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database did not answer in time",
    "A statement took too long, or it waited too long for a lock. The transaction was rolled back:"
    " nothing was changed.",
    "Send the request again after the seconds in Retry-After.",
)
NOT_READY = ProblemType(
    "not-ready",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The service is not ready",
    "The service cannot query its database, the database is not at the revision that the code"
    " needs, or the process is stopping.",
    "The detail says which. Start the database, or run the migrations (docs/how-to/upgrade.md). A"
    " process that is stopping needs nothing.",
)

# All of the above.
COMMON = tuple(each for each in tuple(globals().values()) if isinstance(each, ProblemType))

# For errors that have a status only, such as those of Flask and gunicorn.
_BY_STATUS = {
    each.status: each
    for each in (
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


def problem_type_of(status: int) -> ProblemType:
    """Return the problem type of an error that has a status only."""
    return _BY_STATUS.get(status) or ProblemType("", status, HTTPStatus(status).phrase, "", "")
