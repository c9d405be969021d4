"""The description of an API: what its calls have in common is added here."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flask_smorest import Api

from shared.web.idempotency import request_keys
from shared.web.openapi.problem_responses import (
    ANY_CALL,
    CALL_WITH_BODY,
    INVALID_OR_KEY_REUSED,
    KEY,
    RESPONSES,
)
from shared.web.tracing import REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from flask import Flask

    Doc = dict[str, Any]  # a part of the description

_DESCRIPTION = """\


Amounts are integers of minor units, such as cents, from 1 to 2^63-1. An unknown field of a body is
ignored; a field that is repeated in an object is refused. A query parameter that is unknown or
repeated is refused. Every error is a problem document (RFC 9457). This includes unknown addresses
(404), unsupported methods (405), and requests that use HTTP in a way that the server does not
support (417, 501, 505). The `type` of a problem document is the address of a page that says what to
do. `/problems` lists all types.
"""

_PARAMETERS: dict[str, Doc] = {
    REQUEST_ID: {
        "description": "An id under which the logs of all processes have this request. If it is"
        " missing or invalid, the service generates one. Valid are up to 128 letters, digits, dots,"
        " hyphens and underscores.",
        "schema": {"type": "string", "examples": ["checkout-2025.06_17"]},
    },
    TRACEPARENT: {
        "description": "W3C Trace Context, passed on with the events that the request causes.",
        "schema": {
            "type": "string",
            "examples": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
        },
    },
}
_IDEMPOTENCY_KEY: Doc = {
    "description": "A key that the client makes for the request, such as a UUID, in double quotes"
    " or bare (draft-ietf-httpapi-idempotency-key-header). If the request is repeated with the same"
    " key, it has its effect once, and the answer is that of the first success.",
    "schema": {"type": "string", "pattern": request_keys.PATTERN, "examples": [f'"{KEY}"']},
}
_HEADERS: dict[str, Doc] = {
    REQUEST_ID: {
        "description": "The request's id, as sent or generated.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    request_keys.REPLAYED: {
        "description": "Present if the request succeeded before. This is the answer of that time.",
        "schema": {"type": "boolean"},
    },
}


def describe_common(doc: Doc, info: Doc, **_: Any) -> Doc:
    """Add to the description of a call what all calls have in common.

    The decorators of the view have noted in `info` what the call does.
    """
    responses = doc.setdefault("responses", {})
    for status, name in (CALL_WITH_BODY if "requestBody" in doc else ANY_CALL).items():
        responses.setdefault(status, name)
    # flask-smorest's own name for the answer 422 depends on the version of Python.
    responses[HTTPStatus.UNPROCESSABLE_ENTITY] = "InvalidInput"
    for response in responses.values():
        if isinstance(response, dict):
            response.setdefault("headers", {})[REQUEST_ID] = REQUEST_ID
    doc.setdefault("parameters", []).extend(_PARAMETERS)
    if "idempotent" in info:
        doc["parameters"].append(request_keys.HEADER)
        for status, response in responses.items():
            if int(status) < HTTPStatus.MULTIPLE_CHOICES:
                response["headers"][request_keys.REPLAYED] = request_keys.REPLAYED
        responses[HTTPStatus.UNPROCESSABLE_ENTITY] = INVALID_OR_KEY_REUSED
    return doc


class OpenApi(Api):  # type: ignore[misc]  # it has no type information
    """An API whose errors are problem documents."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # each call names the errors that it can answer with

    def _register_responses(self) -> None:
        parameters = {**_PARAMETERS, request_keys.HEADER: _IDEMPOTENCY_KEY}
        for name, parameter in parameters.items():
            self.spec.components.parameter(name, "header", {"name": name, **parameter})
        for name, header in _HEADERS.items():
            self.spec.components.header(name, header)
        for name, described in RESPONSES.items():
            self.spec.components.response(name, described)

    def _register_pagination_header(self) -> None:
        """Omit flask-smorest's own paging, which is by offset."""

    def _register_error_handlers(self) -> None:
        """Leave errors to `shared.web.problems.handlers`."""


def make_api(app: Flask, *, title: str, description: str) -> OpenApi:
    """Make the description of an app's API, without its calls. See `shared.web.app.make_app`."""
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
            "servers": [{"url": "/", "description": "This server"}],
        },
    )
