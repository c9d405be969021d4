"""The pages that document a service: ``/``, ``/docs`` and ``/openapi.json``."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import flask_swagger_ui
from flask import Blueprint, Flask, Response, current_app, jsonify

from shared.web.caching import revalidate
from shared.web.html_pages import add_security_headers, wants_page

if TYPE_CHECKING:
    from shared.web.openapi.api import OpenApi

# Files of an installed package, so the pages work offline.
_FILES = Path(flask_swagger_ui.__file__).parent / "dist"

_INDEX = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<link rel="icon" href="docs/files/favicon-32x32.png">
<h1>{title}</h1>
<p>{description}</p>
<ul>
<li><a href="docs">API reference; you can try each call</a>
<li><a href="openapi.json">API description for programs (OpenAPI)</a>
<li><a href="problems">Problem types</a>
<li><a href="readyz">Readiness</a>
</ul>
</html>
"""

_DOCS = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="stylesheet" href="docs/files/swagger-ui.css">
<link rel="icon" href="docs/files/favicon-32x32.png">
<div id="docs"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""

# validatorUrl: null keeps Swagger UI from sending the description to an online validator.
_START = """\
SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null});
"""


def register(app: Flask, api: OpenApi, *, title: str, description: str) -> None:
    """Add the pages to an app. The arguments are those of `shared.web.app.make_app`."""
    pages = Blueprint("docs", __name__, static_folder=_FILES, static_url_path="/docs/files")
    texts = {"title": escape(title), "description": escape(description)}

    @pages.get("/")
    def index() -> Response:
        if wants_page():
            return Response(_INDEX.format_map(texts), mimetype="text/html")
        return jsonify(service=title, docs="/docs", openapi="/openapi.json")

    @pages.get("/docs")
    def docs() -> Response:
        return Response(_DOCS.format_map(texts), mimetype="text/html")

    @pages.get("/docs/start.js")
    def start() -> Response:
        return Response(_START, mimetype="text/javascript")

    @pages.get("/openapi.json")
    def openapi() -> Response:
        described = current_app.json.dumps(api.spec.to_dict())
        return Response(described, mimetype="application/json")

    pages.after_request(add_security_headers)
    pages.after_request(revalidate)
    app.register_blueprint(pages)
