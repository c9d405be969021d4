"""The pages to which the types of problems lead (RFC 9457, section 3.1.1), and a list of them."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import NotFound

from shared.web.caching import revalidate
from shared.web.html_pages import secure, wants_page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask

    from shared.web.problems.problem_types import Kind

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="/docs/files/favicon-32x32.png">
{body}</html>
"""

_KIND = """\
<h1>{title}</h1>
<p><code>{name}</code>, with HTTP status {status} {phrase}.</p>
<h2>What it means</h2>
<p>{meaning}</p>
<h2>What to do</h2>
<p>{remedy}</p>
<p><a href="/problems">All problems</a>, <a href="/docs">all calls</a></p>
"""


def register(app: Flask, kinds: Iterable[Kind]) -> None:
    """Add the pages to an app.

    Args:
        app: the app.
        kinds: every kind of problem that it can answer with.
    """
    pages = Blueprint("problems", __name__)
    known = {kind.name: kind for kind in sorted(kinds, key=lambda kind: (kind.status, kind.name))}

    @pages.get("/problems")
    def list_kinds() -> Response:
        if wants_page():
            return _page("Problems", _list(known.values()))
        return jsonify([_members(kind) for kind in known.values()])

    @pages.get("/problems/<name>")
    def show_kind(name: str) -> Response:
        if name not in known:
            raise NotFound
        members = _members(known[name])
        if not wants_page():
            return jsonify(members)
        phrase = HTTPStatus(members["status"]).phrase
        escaped = {key: escape(str(value)) for key, value in members.items()}
        return _page(members["title"], _KIND.format_map(escaped | {"phrase": phrase}))

    pages.after_request(secure)
    pages.after_request(revalidate)
    app.register_blueprint(pages)


def _members(kind: Kind) -> dict[str, Any]:
    return {
        "type": kind.type,
        "name": kind.name,
        "status": int(kind.status),
        "title": kind.title,
        "meaning": kind.meaning,
        "remedy": kind.remedy,
    }


def _list(kinds: Iterable[Kind]) -> str:
    entries = "\n".join(
        f'<li>{int(kind.status)} <a href="{kind.type}">{kind.name}</a>: {escape(kind.title)}'
        for kind in kinds
    )
    return f"<h1>Problems</h1>\n<ul>\n{entries}\n</ul>\n"


def _page(title: str, body: str) -> Response:
    return Response(_PAGE.format(title=escape(title), body=body), mimetype="text/html")
