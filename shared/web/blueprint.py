"""Blueprints with strict arguments and a complete API description."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import flask_smorest

from shared.web.idempotency.key_store import KeyInUseError
from shared.web.idempotency.request_keys import idempotent
from shared.web.json_body import Parser
from shared.web.openapi.api import describe_common
from shared.web.openapi.problem_responses import KEY, problem_response
from shared.web.problems import problem_types
from shared.web.query_parameters import declare_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask import Response
    from marshmallow import Schema

    View = Callable[..., Any]
    Decorator = Callable[[View], View]

# Decorators of a view, from the view outwards. `idempotent` stores the Response that `response`
# returns, and compares the body that `arguments` loads. In another order, the decorators would
# silently do the wrong thing.
_ORDER = ("problem", "response", "idempotent", "after_commit", "arguments", "route")
_OUTERMOST = "_outermost_decorator"


class DecoratorOrderError(TypeError):
    """The decorators of a view are in the wrong order."""


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # it has no type information
    """A flask-smorest blueprint with this project's parser and errors."""

    ARGUMENTS_PARSER = Parser()

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name, description=description)
        self._prepare_doc_cbks.append(describe_common)

    def route(
        self, rule: str, *, methods: list[str], parameters: Sequence[Mapping[str, Any]] = ()
    ) -> Decorator:
        """Register a view at an address, and describe its parameters.

        Raises:
            DecoratorOrderError: the decorators are in the wrong order.
        """
        register: Decorator = super().route(rule, methods=methods, parameters=[*parameters])
        return lambda view: register(_applied("route", view))

    def arguments(self, schema: Schema, *, location: str = "json", **options: Any) -> Decorator:
        """Parse the body or the query by a schema into the view's first argument.

        Args:
            schema: an instance. From a class, webargs would create an instance for each request.
            location: ``json`` for the body, or ``query``. Query parameters that the schema does not
                have are refused.
            options: of flask-smorest, such as ``example``.
        """
        parse: Decorator = super().arguments(schema, location=location, **options)
        names = [field.data_key or name for name, field in schema.load_fields.items()]

        def decorate(view: View) -> View:
            parsed = _applied("arguments", parse(view))
            return declare_parameters(parsed, names) if location == "query" else parsed

        return decorate

    def response(self, status_code: int, schema: object, **described: Any) -> Decorator:
        """Answer with the view's result: a Response as it is, anything else by the schema.

        flask-smorest describes the answer by ``description``, ``example`` or ``examples``, and
        ``headers``.
        """
        answer: Decorator = super().response(status_code, schema, **described)
        return lambda view: _applied("response", answer(view))

    def problem(self, problem_type: problem_types.ProblemType, *details: str) -> Decorator:
        """Describe a problem document that the call can answer with, by an example of each detail.

        The problems that all calls can answer with are described without this.
        """
        return lambda view: _applied("problem", self._describe(view, problem_type, *details))

    def _describe(self, view: View, problem_type: problem_types.ProblemType, *details: str) -> View:
        described: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
        responses = described.setdefault("response", {}).setdefault("responses", {})
        status = problem_type.status
        cases = view.__dict__.setdefault("_problems", {}).setdefault(status, [])
        # Prepended, because the lowest decorator runs first.
        cases[:0] = [(problem_type, detail) for detail in details]
        responses[status] = [{"content_type": None, **problem_response(*cases)}]
        return view

    def idempotent(self, view: View) -> View:
        """Run a view once for each Idempotency-Key, and describe that.

        See `shared.web.idempotency.request_keys.idempotent`.
        """
        once = _applied("idempotent", idempotent(view))
        once.__dict__["_apidoc"]["idempotent"] = True
        in_use = str(KeyInUseError(KEY))
        return self._describe(once, problem_types.IDEMPOTENCY_KEY_IN_USE, in_use)

    def after_commit(self, complete: Callable[[Response], Response]) -> Decorator:
        """Complete the answer after the commit, for example after a wait.

        When a request with an Idempotency-Key is repeated, its stored answer is completed again.
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
        DecoratorOrderError: a decorator that belongs around this one was applied before.
    """
    outermost: str = getattr(view, _OUTERMOST, name)
    if _ORDER.index(name) < _ORDER.index(outermost):
        raise DecoratorOrderError(
            f"The decorator {name!r} of the view {view.__name__} stands above {outermost!r}."
            f" From the function upwards, the order is: {', '.join(_ORDER)}."
        )
    setattr(view, _OUTERMOST, name)
    return view
