"""The descriptions of the problem documents that calls can answer with."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from marshmallow import fields

from shared.fields import OpenSchema
from shared.web.idempotency.key_store import KeyReusedError
from shared.web.json_body import COMPRESSED, NOT_JSON, TOO_DEEP
from shared.web.problems import problem_types
from shared.web.problems.documents import INVALID, MEDIA_TYPE, RETRY_AFTER_S, document_of
from shared.web.problems.handlers import FAILED, TOO_SLOW, UNREACHABLE
from shared.web.proxy_and_cors import ALLOW_HOST, WRONG_HOST
from shared.web.server.request_reader import RequestTooSlowError
from shared.web.tracing import REQUEST_ID

if TYPE_CHECKING:
    Doc = dict[str, Any]  # a part of the description

KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"
"""The Idempotency-Key of the examples."""

_OCCURRENCE = ("/...", "3f0f6e62-93a4-4c0b-9d0c-4c3ec1b7e1a5")  # path and request id
_MEMBERS: dict[problem_types.ProblemType, Doc] = {
    problem_types.INVALID_INPUT: {
        "errors": [{"pointer": "#/user_id", "detail": "Must not be the nil UUID."}]
    }
}
_RETRY_AFTER: Doc = {
    "description": "After how many seconds to send the request again.",
    "schema": {"type": "integer", "examples": [RETRY_AFTER_S]},
}


class FaultSchema(OpenSchema):
    """One fault in a request: `pointer` into the body, `parameter` of the query, or `header`."""

    pointer = fields.String(
        metadata={
            "description": "The place in the body: a JSON Pointer (RFC 6901).",
            "examples": ["#/amount"],
        }
    )
    parameter = fields.String(
        metadata={"description": "The name of the query parameter.", "examples": ["limit"]}
    )
    header = fields.String(
        metadata={"description": "The name of the header.", "examples": ["Idempotency-Key"]}
    )
    detail = fields.String(
        required=True,
        metadata={
            "description": "What is wrong there.",
            "examples": ["Must be an integer, in minor units."],
        },
    )


class ProblemSchema(OpenSchema):
    """A problem document (RFC 9457)."""

    type = fields.String(
        required=True,
        metadata={
            "description": "The problem type. It never changes. It is also the address of a page"
            " that says what it means and what to do.",
            "format": "uri-reference",
            "examples": [problem_types.INVALID_INPUT.type],
        },
    )
    title = fields.String(
        required=True, metadata={"description": "The problem type in a few words."}
    )
    status = fields.Integer(required=True, metadata={"description": "The HTTP status."})
    detail = fields.String(
        required=True, metadata={"description": "A sentence about this occurrence."}
    )
    instance = fields.String(
        required=True,
        metadata={
            "description": "This occurrence: the request's path and id.",
            "format": "uri-reference",
        },
    )
    request_id = fields.String(
        required=True,
        metadata={"description": "The request's id. The log has the request under this id."},
    )
    errors = fields.List(
        fields.Nested(FaultSchema),
        metadata={"description": "For the type `invalid-input`: all faults that were found."},
    )


def problem_response(*cases: tuple[problem_types.ProblemType, str]) -> Doc:
    """Describe a problem document, by problem types of one status with an example each."""
    described: Doc = {
        "description": "\n\n".join(f"`{each.name}`: {detail}" for each, detail in cases),
        "headers": {REQUEST_ID: REQUEST_ID},
        "content": {
            MEDIA_TYPE: {
                "schema": ProblemSchema,
                "examples": {
                    f"case {number}": {
                        "summary": detail,
                        "value": document_of(each, detail, *_OCCURRENCE, **_MEMBERS.get(each, {})),
                    }
                    for number, (each, detail) in enumerate(cases, 1)
                },
            }
        },
    }
    if cases[0][0].status == HTTPStatus.SERVICE_UNAVAILABLE:
        described["headers"] |= {"Retry-After": _RETRY_AFTER}
    return described


INVALID_OR_KEY_REUSED = "InvalidInputOrKeyReused"

# By the names under which calls refer to them.
_CASES: dict[str, list[tuple[problem_types.ProblemType, str]]] = {
    "Malformed": [(problem_types.MALFORMED_REQUEST, "Invalid HTTP header name: 'BAD HEADER'")],
    "MalformedOrNotJson": [
        (problem_types.NOT_JSON, "The body is not JSON: Expecting value (line 1, column 1)."),
        (problem_types.NESTED_TOO_DEEPLY, TOO_DEEP),
        (problem_types.MALFORMED_REQUEST, "The body cannot be read: its chunks are malformed."),
    ],
    "TooSlow": [(problem_types.REQUEST_TOO_SLOW, str(RequestTooSlowError()))],
    "BodyTooLarge": [(problem_types.BODY_TOO_LARGE, "The body is larger than 128 KiB.")],
    "UriTooLong": [(problem_types.URI_TOO_LONG, "Request Line is too large (6001 > 4094)")],
    "UnsupportedMediaType": [
        (problem_types.UNSUPPORTED_MEDIA_TYPE, NOT_JSON.format("'text/plain'")),
        (problem_types.UNSUPPORTED_MEDIA_TYPE, COMPRESSED),
    ],
    "InvalidInput": [(problem_types.INVALID_INPUT, INVALID)],
    "HeadersTooLarge": [
        (
            problem_types.HEADERS_TOO_LARGE,
            "Error parsing headers: 'limit request headers fields size'",
        )
    ],
    "Misdirected": [
        (
            problem_types.MISDIRECTED_REQUEST,
            WRONG_HOST.format("shop.example:8080") + ALLOW_HOST.format("shop.example"),
        )
    ],
    "InternalError": [(problem_types.INTERNAL_ERROR, FAILED)],
    "DatabaseTrouble": [
        (problem_types.DATABASE_UNAVAILABLE, UNREACHABLE),
        (problem_types.DATABASE_TOO_SLOW, TOO_SLOW),
    ],
    INVALID_OR_KEY_REUSED: [
        (problem_types.INVALID_INPUT, INVALID),
        (problem_types.IDEMPOTENCY_KEY_REUSED, str(KeyReusedError(KEY))),
    ],
}
RESPONSES = {name: problem_response(*cases) for name, cases in _CASES.items()}

# Every call can answer with these. A call that has a body can answer with more.
ANY_CALL = {
    HTTPStatus.BAD_REQUEST: "Malformed",
    HTTPStatus.REQUEST_TIMEOUT: "TooSlow",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BodyTooLarge",
    HTTPStatus.REQUEST_URI_TOO_LONG: "UriTooLong",
    HTTPStatus.MISDIRECTED_REQUEST: "Misdirected",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "HeadersTooLarge",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "DatabaseTrouble",
}
CALL_WITH_BODY = ANY_CALL | {
    HTTPStatus.BAD_REQUEST: "MalformedOrNotJson",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UnsupportedMediaType",
}
