"""Refuses query parameters that are unknown or repeated.

If a misspelt filter were ignored, a list would return the rows of all users. For a repeated
parameter it is unclear which value counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, request

from shared.web.json_body import FAULTS_MAX, NAME_MAX
from shared.web.problems.documents import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    View = Callable[..., Any]

_NAMES = "_query_parameters"
_REPEATED = "The query has this parameter more than once."


def declare_parameters(view: View, names: Iterable[str]) -> View:
    """Declare the query parameters of a view. A view that declares none accepts none."""
    view.__dict__[_NAMES] = tuple(names)
    return view


def register(app: Flask) -> None:
    """Check the query parameters of each request of an app, before its view runs."""
    app.before_request(_check_parameters)


def _check_parameters() -> None:
    # A CORS preflight (OPTIONS) is not checked, because no browser shows a script why its preflight
    # was refused. The request that follows is checked.
    if not request.query_string or request.url_rule is None or request.method == "OPTIONS":
        return
    known = getattr(current_app.view_functions[request.url_rule.endpoint], _NAMES, ())
    unknown_detail = (
        f"This call has no such parameter. Its parameters are: {', '.join(known)}."
        if known
        else "This call has no parameters."
    )
    faults = [
        {"parameter": name[:NAME_MAX], "detail": _REPEATED if name in known else unknown_detail}
        for name, values in request.args.lists()
        if name not in known or len(values) > 1
    ]
    if faults:
        raise InvalidInputError(faults[:FAULTS_MAX])
