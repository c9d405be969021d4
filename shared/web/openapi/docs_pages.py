"""The pages that document a service: ``/``, ``/docs`` and ``/openapi.json``."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import flask_swagger_ui
from flask import Blueprint, Flask, Response, jsonify

from shared.web.caching import revalidate
from shared.web.html_pages import add_security_headers, html_page, wants_page

if TYPE_CHECKING:
    from shared.web.openapi.api import OpenApi

# Files of an installed package, so the pages work offline.
_FILES = Path(flask_swagger_ui.__file__).parent / "dist"

_INDEX = """\
<h1>{title}</h1>
<p>{description}</p>
<ul>
<li><a href="docs">API reference; you can try each call</a>
<li><a href="openapi.json">API description for programs (OpenAPI)</a>
<li><a href="problems">Problem types</a>
<li><a href="readyz">Readiness</a>
</ul>
"""

_DOCS = """\
<link rel="stylesheet" href="docs/files/swagger-ui.css">
<div id="docs"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
"""

# validatorUrl: null keeps Swagger UI from sending the description to an online validator.
_START = """\
SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null});
"""


def register(app: Flask, api: OpenApi, *, title: str, description: str) -> None:
    """Add the pages to an app. The arguments are those of `shared.web.app.make_app`."""
    pages = Blueprint("docs", __name__, static_folder=_FILES, static_url_path="/docs/files")
    body = _INDEX.format(title=escape(title), description=escape(description))

    @pages.get("/")
    def index() -> Response:
        if wants_page():
            return html_page(title, body)
        return jsonify(service=title, docs="/docs", openapi="/openapi.json")

    @pages.get("/docs")
    def docs() -> Response:
        return html_page(title, _DOCS)

    @pages.get("/docs/start.js")
    def start() -> Response:
        return Response(_START, mimetype="text/javascript")

    @pages.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(api.spec.to_dict())

    pages.after_request(add_security_headers)
    pages.after_request(revalidate)
    app.register_blueprint(pages)
