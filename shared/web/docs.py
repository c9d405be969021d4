"""The API's description at ``/openapi.json``, for a person at ``/docs``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import flask_swagger_ui
from flask import Blueprint, Response, jsonify
from flask_smorest import Api
from marshmallow import fields

from shared.fields import OpenSchema
from shared.web.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from flask import Flask

_FILES = Path(flask_swagger_ui.__file__).parent / "dist"
_FILES_PATH = "/docs/files"


class FaultSchema(OpenSchema):
    """One fault in a request: `pointer` into the body, or `parameter` of the query."""

    pointer = fields.String(metadata={"description": "A JSON Pointer into the body."})
    parameter = fields.String(metadata={"description": "A parameter of the query."})
    detail = fields.String(required=True)


class ProblemSchema(OpenSchema):
    """A problem document (RFC 9457)."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    errors = fields.List(fields.Nested(FaultSchema))


class _Api(Api):  # type: ignore[misc]  # it has no type information
    ERROR_SCHEMA = ProblemSchema

    def _register_responses(self) -> None:
        """Describe errors as problem documents."""
        self.DEFAULT_RESPONSE_CONTENT_TYPE = MEDIA_TYPE
        super()._register_responses()
        del self.DEFAULT_RESPONSE_CONTENT_TYPE  # the class's own again, for what succeeds

    def _register_pagination_header(self) -> None:
        """Leave out flask-smorest's own paging, which is by offset."""

    def _register_error_handlers(self) -> None:
        """Leave errors to `shared.web.problems`."""


def register(app: Flask, *, title: str) -> Api:
    """Describe an app's API.

    Args:
        app: the app.
        title: the service, for a person.

    Returns:
        The API, to register blueprints with.
    """
    app.config.update(
        API_TITLE=title,
        API_VERSION=version("settle"),
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        OPENAPI_SWAGGER_UI_PATH="/docs",
        # From the files of a package, not from elsewhere: the docs work offline.
        OPENAPI_SWAGGER_UI_URL=f"{_FILES_PATH}/",
    )
    app.register_blueprint(
        Blueprint("docs", __name__, static_folder=_FILES, static_url_path=_FILES_PATH)
    )

    @app.get("/")
    def index() -> Response:
        return jsonify(service=title, docs="/docs", openapi="/openapi.json")

    return _Api(app)
