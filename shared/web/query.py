"""Queries: a parameter that is unknown, or given twice, is refused.

A filter with a misspelt name would otherwise show everybody's rows, and of a parameter given twice
nobody can know which value counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import current_app, request

from shared.web.bodies import FAULTS_MAX, NAME_MAX
from shared.web.problems import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from flask import Flask

    View = Callable[..., Any]

_MARK = "_query_parameters"
_TWICE = "The query has this parameter twice."


def take_parameters(view: View, names: Iterable[str]) -> View:
    """Let a view take parameters in its query. One that is not marked so takes none."""
    view.__dict__[_MARK] = tuple(names)
    return view


def register(app: Flask) -> None:
    """Refuse what the query of a request has and its call does not take."""
    app.before_request(_refuse_parameters)


def _refuse_parameters() -> None:
    # OPTIONS does not reach the call. A browser asks so whether it may send the request, and only
    # the answer to that request should say what is wrong with it.
    if not request.query_string or request.url_rule is None or request.method == "OPTIONS":
        return
    known = getattr(current_app.view_functions[request.url_rule.endpoint], _MARK, ())
    unknown = (
        f"This address takes no such parameter. It takes: {', '.join(known)}."
        if known
        else "This address takes no parameters."
    )
    faults = [
        {"parameter": name[:NAME_MAX], "detail": _TWICE if name in known else unknown}
        for name, values in request.args.lists()
        if name not in known or len(values) > 1
    ]
    if faults:
        raise InvalidInputError(faults[:FAULTS_MAX])
