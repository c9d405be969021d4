"""The pages of the problem types (RFC 9457, section 3.1.1), and a list of them."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, jsonify
from werkzeug.exceptions import NotFound

from shared.web.caching import revalidate
from shared.web.html_pages import add_security_headers, html_page, wants_page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shared.web.problems.problem_types import ProblemType

_PROBLEM_TYPE = """\
<h1>{title}</h1>
<p><code>{name}</code>, HTTP status {status} {phrase}.</p>
<h2>What it means</h2>
<p>{meaning}</p>
<h2>What to do</h2>
<p>{remedy}</p>
<p><a href="/problems">All problems</a>, <a href="/docs">all calls</a></p>
"""


def register(app: Flask, problem_types: Iterable[ProblemType]) -> None:
    """Add the pages of all problem types that an app can answer with."""
    pages = Blueprint("problems", __name__)
    ordered = sorted(problem_types, key=lambda each: (each.status, each.name))
    known = {each.name: each for each in ordered}

    @pages.get("/problems")
    def list_problem_types() -> Response:
        if wants_page():
            return html_page("Problems", _list(ordered), root="/")
        return jsonify([_members(each) for each in ordered])

    @pages.get("/problems/<name>")
    def show_problem_type(name: str) -> Response:
        if name not in known:
            raise NotFound
        members = _members(known[name])
        if not wants_page():
            return jsonify(members)
        phrase = HTTPStatus(members["status"]).phrase
        escaped = {key: escape(str(value)) for key, value in members.items()}
        body = _PROBLEM_TYPE.format_map(escaped | {"phrase": phrase})
        return html_page(members["title"], body, root="/")

    pages.after_request(add_security_headers)
    pages.after_request(revalidate)
    app.register_blueprint(pages)


def _members(problem_type: ProblemType) -> dict[str, Any]:
    return {"type": problem_type.type, **asdict(problem_type)}


def _list(problem_types: Iterable[ProblemType]) -> str:
    entries = "\n".join(
        f'<li>{int(each.status)} <a href="{each.type}">{each.name}</a>: {escape(each.title)}'
        for each in problem_types
    )
    return f"<h1>Problems</h1>\n<ul>\n{entries}\n</ul>\n"
