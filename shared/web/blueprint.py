"""Blueprints whose arguments are parsed strictly, and whose calls are described in full."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import flask_smorest

from shared.web.idempotency.request_keys import idempotent
from shared.web.json_body import Parser
from shared.web.openapi.api import KEY_IN_USE, describe_common, problem_response
from shared.web.problems import problem_types
from shared.web.query_parameters import declare_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask import Response
    from marshmallow import Schema

    from shared.web.problems.problem_types import Kind

    View = Callable[..., Any]
    Decorator = Callable[[View], View]


# Decorators of a view, from the view outwards. Each works on what the one before it made: only
# `response` makes a Response, which `idempotent` stores, and only `arguments` loads the body, by
# which `idempotent` knows a request. In another order, they would do the wrong thing silently.
_ORDER = ("problem", "response", "idempotent", "after_commit", "arguments", "route")
_OUTERMOST = "_outermost_decorator"


class DecoratorOrderError(TypeError):
    """The decorators of a view are in an order that does not work."""


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # it has no type information
    """A flask-smorest blueprint with this project's parser and errors."""

    ARGUMENTS_PARSER = Parser()

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name, description=description)
        self._prepare_doc_cbks.append(describe_common)

    def route(
        self, rule: str, *, methods: list[str], parameters: Sequence[Mapping[str, Any]] = ()
    ) -> Decorator:
        """Register a view at an address, whose parameters are described.

        Raises:
            DecoratorOrderError: the view's decorators are in an order that does not work.
        """
        register: Decorator = super().route(rule, methods=methods, parameters=[*parameters])
        return lambda view: register(_applied("route", view))

    def arguments(self, schema: Schema, *, location: str = "json", **options: Any) -> Decorator:
        """Parse the body or the query by a schema into the view's first argument.

        Args:
            schema: an instance: webargs would make one of a class for each request.
            location: ``json`` for the body, or ``query``. A query has these parameters, no others.
            options: of flask-smorest, such as ``example``.
        """
        parse: Decorator = super().arguments(schema, location=location, **options)
        names = [field.data_key or name for name, field in schema.load_fields.items()]

        def decorate(view: View) -> View:
            parsed = _applied("arguments", parse(view))
            return declare_parameters(parsed, names) if location == "query" else parsed

        return decorate

    def response(self, status_code: int, schema: object, **described: Any) -> Decorator:
        """Answer with what the view returns, written by a schema.

        Args:
            status_code: of the answer.
            schema: of its body.
            described: of flask-smorest: ``description``, ``example`` or ``examples``, ``headers``.
        """
        answer: Decorator = super().response(status_code, schema, **described)
        return lambda view: _applied("response", answer(view))

    def problem(self, kind: Kind, *details: str) -> Decorator:
        """Describe a kind of problem that the call can end as, by a sentence for each case.

        What every call can answer, and every one with a body, is described without this.
        """
        return lambda view: _applied("problem", self._describe(view, kind, *details))

    def _describe(self, view: View, kind: Kind, *details: str) -> View:
        described: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
        responses = described.setdefault("response", {}).setdefault("responses", {})
        cases = view.__dict__.setdefault("_problems", {}).setdefault(kind.status, [])
        cases[:0] = [(kind, detail) for detail in details]  # decorators come from below
        responses[kind.status] = [{"content_type": None, **problem_response(*cases)}]
        return view

    def idempotent(self, view: View) -> View:
        """Have a view act once for each Idempotency-Key, and describe that.

        See `shared.web.idempotency.request_keys.idempotent`.
        """
        once = _applied("idempotent", idempotent(view))
        once.__dict__["_apidoc"]["idempotent"] = True
        return self._describe(once, problem_types.IDEMPOTENCY_KEY_IN_USE, KEY_IN_USE)

    def after_commit(self, complete: Callable[[Response], Response]) -> Decorator:
        """Complete an answer after the transaction of its request, such as by a wait.

        An answer that is replayed for an Idempotency-Key is completed as well.
        """

        def decorate(view: View) -> View:
            @wraps(view)
            def answer(*arguments: Any, **path: Any) -> Response:
                return complete(view(*arguments, **path))

            return _applied("after_commit", answer)

        return decorate


def _applied(name: str, view: View) -> View:
    """Note that a decorator was applied to a view.

    Raises:
        DecoratorOrderError: one that belongs around it was applied before.
    """
    outermost: str = getattr(view, _OUTERMOST, name)
    if _ORDER.index(name) < _ORDER.index(outermost):
        raise DecoratorOrderError(
            f"The decorator {name!r} of the view {view.__name__} stands above {outermost!r}."
            f" From the function upwards, the order is: {', '.join(_ORDER)}."
        )
    setattr(view, _OUTERMOST, name)
    return view
