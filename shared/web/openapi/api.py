"""The description of an API (OpenAPI 3.1): what all calls have in common is declared here, once."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flask_smorest import Api
from marshmallow import fields

from shared.fields import OpenSchema
from shared.web.idempotency import request_keys
from shared.web.idempotency.key_store import KeyInUseError, KeyReusedError
from shared.web.json_body import COMPRESSED, NOT_JSON, TOO_DEEP
from shared.web.problems import problem_types
from shared.web.problems.documents import (
    MEDIA_TYPE,
    RETRY_AFTER_S,
    TOO_SLOW,
    UNREACHABLE,
    document_of,
)
from shared.web.proxy_and_cors import ALLOW_HOST, WRONG_HOST
from shared.web.server.request_reader import RequestTooSlowError
from shared.web.tracing import REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from flask import Flask

    from shared.web.problems.problem_types import Kind

    Doc = dict[str, Any]  # a part of the description

_DESCRIPTION = """\


Amounts are integers of minor units (cents, say), from 1 to 2^63-1. A field that is unknown is
ignored, one that an object has twice is refused. A parameter of the query that is unknown, or given
twice, is refused. Every error is a problem document (RFC 9457), also where the address is unknown
(404) or does not take the method (405), and where the request asks of HTTP what the server does not
do (417, 501, 505); its `type` leads to a page that tells what to do, and `/problems` lists them.
"""


class FaultSchema(OpenSchema):
    """One fault in a request: `pointer` into the body, `parameter` of the query, or `header`."""

    pointer = fields.String(
        metadata={
            "description": "Where it is in the body: a JSON Pointer (RFC 6901).",
            "examples": ["#/amount"],
        }
    )
    parameter = fields.String(
        metadata={"description": "Which parameter of the query it is.", "examples": ["limit"]}
    )
    header = fields.String(
        metadata={"description": "Which header it is.", "examples": ["Idempotency-Key"]}
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
            "description": "The kind of problem; it never changes. At the service, it leads to a"
            " page that tells what it means and what to do.",
            "format": "uri-reference",
            "examples": [problem_types.INVALID_INPUT.type],
        },
    )
    title = fields.String(required=True, metadata={"description": "The kind, in a few words."})
    status = fields.Integer(required=True, metadata={"description": "The HTTP status."})
    detail = fields.String(
        required=True, metadata={"description": "A sentence on this occurrence, for a person."}
    )
    instance = fields.String(
        required=True,
        metadata={
            "description": "This occurrence: the request's path and its id.",
            "format": "uri-reference",
        },
    )
    request_id = fields.String(
        required=True,
        metadata={"description": "The request's id, under which the log tells more."},
    )
    errors = fields.List(
        fields.Nested(FaultSchema),
        metadata={"description": "Of the kind `invalid-input`: every fault that was found."},
    )


_REQUEST_ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}
_PARAMETERS: dict[str, Doc] = {
    REQUEST_ID: {
        "description": "An id by which the logs of every process can be searched for this request."
        " One is given where there is none, or one that is not of up to 128 letters, digits, dots,"
        " hyphens and underscores.",
        "schema": {"type": "string", "examples": ["checkout-2025.06_17"]},
    },
    TRACEPARENT: {
        "description": "W3C Trace Context, passed on with the event that the request causes.",
        "schema": {
            "type": "string",
            "examples": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
        },
    },
}
_KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"  # of the examples
_IDEMPOTENCY_KEY: Doc = {
    "description": "A name for the request, made by the client, a UUID say, in double quotes or"
    " bare (draft-ietf-httpapi-idempotency-key-header). However often the request is sent with it,"
    " it has its effect once, and is answered as it was the first time it succeeded.",
    "schema": {"type": "string", "pattern": request_keys.PATTERN, "examples": [f'"{_KEY}"']},
}
_HEADERS: dict[str, Doc] = {
    REQUEST_ID: {
        "description": "The request's id, as sent or given.",
        "schema": _REQUEST_ID_SCHEMA,
    },
    request_keys.REPLAYED: {
        "description": "The request was answered before, and has had its effect: this is the answer"
        " of then.",
        "schema": {"type": "boolean"},
    },
}
_RETRY_AFTER: Doc = {
    "description": "After how many seconds to try again.",
    "schema": {"type": "integer", "examples": [RETRY_AFTER_S]},
}


# Of the examples.
_OCCURRENCE = {"path": "/...", "request_id": "3f0f6e62-93a4-4c0b-9d0c-4c3ec1b7e1a5"}


def problem_response(*cases: tuple[Kind, str], **members: Any) -> Doc:
    """Describe an answer that is a problem document.

    Args:
        cases: of one status: each kind with a sentence, as it stands in the document.
        members: further members of the documents.
    """
    described: Doc = {
        "description": "\n\n".join(f"`{kind.name}`: {detail}" for kind, detail in cases),
        "headers": {REQUEST_ID: REQUEST_ID},
        "content": {
            MEDIA_TYPE: {
                "schema": ProblemSchema,
                "examples": {
                    f"case {number}": {
                        "summary": detail,
                        "value": document_of(kind, detail, **_OCCURRENCE, **members),
                    }
                    for number, (kind, detail) in enumerate(cases, 1)
                },
            }
        },
    }
    if cases[0][0].status == HTTPStatus.SERVICE_UNAVAILABLE:
        described["headers"] |= {"Retry-After": _RETRY_AFTER}
    return described


# By the names under which calls refer to them.
_PROBLEMS: dict[str, Doc] = {
    "Malformed": problem_response(
        (problem_types.MALFORMED_REQUEST, "Invalid HTTP header name: 'BAD HEADER'")
    ),
    "MalformedOrNotJson": problem_response(
        (problem_types.NOT_JSON, "The body is not JSON: Expecting value (line 1, column 1)."),
        (problem_types.NESTED_TOO_DEEPLY, TOO_DEEP),
        (problem_types.MALFORMED_REQUEST, "The body cannot be read: its chunks are malformed."),
    ),
    "TooSlow": problem_response((problem_types.REQUEST_TOO_SLOW, str(RequestTooSlowError()))),
    "BodyTooLarge": problem_response(
        (problem_types.BODY_TOO_LARGE, "The body is larger than 128 KiB.")
    ),
    "UriTooLong": problem_response(
        (problem_types.URI_TOO_LONG, "Request Line is too large (6001 > 4094)")
    ),
    "UnsupportedMediaType": problem_response(
        (
            problem_types.UNSUPPORTED_MEDIA_TYPE,
            NOT_JSON.format("'text/plain'"),
        ),
        (problem_types.UNSUPPORTED_MEDIA_TYPE, COMPRESSED),
    ),
    "InvalidInput": problem_response(
        (
            problem_types.INVALID_INPUT,
            "The request is well-formed, but some of it cannot be accepted.",
        ),
        errors=[{"pointer": "#/user_id", "detail": "Must not be the nil UUID."}],
    ),
    "HeadersTooLarge": problem_response(
        (
            problem_types.HEADERS_TOO_LARGE,
            "Error parsing headers: 'limit request headers fields size'",
        )
    ),
    "Misdirected": problem_response(
        (
            problem_types.MISDIRECTED_REQUEST,
            WRONG_HOST.format("shop.example:8080") + ALLOW_HOST.format("shop.example"),
        )
    ),
    "InternalError": problem_response(
        (
            problem_types.INTERNAL_ERROR,
            "Something went wrong here. The log tells what, under this request_id.",
        )
    ),
    "DatabaseTrouble": problem_response(
        (problem_types.DATABASE_UNAVAILABLE, UNREACHABLE),
        (problem_types.DATABASE_TOO_SLOW, TOO_SLOW),
    ),
}
# What any call can answer, and one with a body.
_ANY = {
    HTTPStatus.BAD_REQUEST: "Malformed",
    HTTPStatus.REQUEST_TIMEOUT: "TooSlow",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BodyTooLarge",
    HTTPStatus.REQUEST_URI_TOO_LONG: "UriTooLong",
    HTTPStatus.MISDIRECTED_REQUEST: "Misdirected",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "HeadersTooLarge",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.SERVICE_UNAVAILABLE: "DatabaseTrouble",
}
_WITH_BODY = {
    HTTPStatus.BAD_REQUEST: "MalformedOrNotJson",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UnsupportedMediaType",
}

KEY_IN_USE = str(KeyInUseError(_KEY))
_INVALID_OR_KEY_REUSED = "InvalidInputOrKeyReused"


def _invalid_or_key_reused() -> Doc:
    described = problem_response((problem_types.IDEMPOTENCY_KEY_REUSED, str(KeyReusedError(_KEY))))
    invalid = _PROBLEMS["InvalidInput"]
    described["description"] = f"{invalid['description']}\n\n{described['description']}"
    examples = described["content"][MEDIA_TYPE]["examples"]
    examples["case 2"] = examples["case 1"]
    examples |= invalid["content"][MEDIA_TYPE]["examples"]
    return described


def _describe_idempotency(doc: Doc) -> None:
    doc["parameters"].append(request_keys.HEADER)
    for status, response in doc["responses"].items():
        if int(status) < HTTPStatus.MULTIPLE_CHOICES:
            response["headers"][request_keys.REPLAYED] = request_keys.REPLAYED
    doc["responses"][HTTPStatus.UNPROCESSABLE_ENTITY] = _INVALID_OR_KEY_REUSED


def describe_common(doc: Doc, info: Doc, **_: Any) -> Doc:
    """Add to the description of a call what it has in common with others.

    Args:
        doc: the description so far.
        info: what the view's decorators say of it.
    """
    responses = doc.setdefault("responses", {})
    for status, name in (_ANY | (_WITH_BODY if "requestBody" in doc else {})).items():
        responses.setdefault(status, name)
    # flask-smorest's own name for it is another in each version of Python.
    responses[HTTPStatus.UNPROCESSABLE_ENTITY] = "InvalidInput"
    for response in responses.values():
        if isinstance(response, dict):
            response.setdefault("headers", {})[REQUEST_ID] = REQUEST_ID
    doc.setdefault("parameters", []).extend(_PARAMETERS)
    if "idempotent" in info:
        _describe_idempotency(doc)
    return doc


class OpenApi(Api):  # type: ignore[misc]  # it has no type information
    """An API whose errors are problem documents."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # each call names the errors that it can give

    def _register_responses(self) -> None:
        parameters = {**_PARAMETERS, request_keys.HEADER: _IDEMPOTENCY_KEY}
        for name, parameter in parameters.items():
            self.spec.components.parameter(name, "header", {"name": name, **parameter})
        for name, header in _HEADERS.items():
            self.spec.components.header(name, header)
        for name, described in _PROBLEMS.items():
            self.spec.components.response(name, described)
        self.spec.components.response(_INVALID_OR_KEY_REUSED, _invalid_or_key_reused())

    def _register_pagination_header(self) -> None:
        """Leave out flask-smorest's own paging, which is by offset."""

    def _register_error_handlers(self) -> None:
        """Leave errors to `shared.web.problems`."""


def make_api(app: Flask, *, title: str, description: str) -> OpenApi:
    """Make the description of an app's API, still without its calls.

    Args:
        app: the app.
        title: the service, for a person.
        description: what it is for, in a sentence or two.
    """
    return OpenApi(
        app,
        spec_kwargs={
            "title": title,
            "version": version("settle"),
            "openapi_version": "3.1.0",
            "info": {
                "description": description + _DESCRIPTION,
                "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/", "description": "This one"}],
        },
    )
