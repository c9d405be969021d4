"""Blueprints whose arguments are parsed strictly, and whose calls are described in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flask_smorest

from shared.web import kinds
from shared.web.bodies import Parser
from shared.web.idempotency import idempotent
from shared.web.openapi import KEY_IN_USE, describe_common, problem_response
from shared.web.query import declare_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from marshmallow import Schema

    from shared.web.kinds import Kind

    View = Callable[..., Any]
    Decorator = Callable[[View], View]


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # it has no type information
    """A flask-smorest blueprint with this project's parser and errors."""

    ARGUMENTS_PARSER = Parser()

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name, description=description)
        self._prepare_doc_cbks.append(describe_common)

    def arguments(self, schema: Schema, *, location: str = "json", **options: Any) -> Decorator:
        """Parse the body or the query by a schema into the view's first argument.

        Args:
            schema: an instance: webargs would make one of a class for each request.
            location: ``json`` for the body, or ``query``. A query has these parameters, no others.
            options: of flask-smorest, such as ``example``.
        """
        parse: Decorator = super().arguments(schema, location=location, **options)
        if location != "query":
            return parse
        names = [field.data_key or name for name, field in schema.load_fields.items()]
        return lambda view: declare_parameters(parse(view), names)

    def problem(self, kind: Kind, *details: str) -> Decorator:
        """Describe a kind of problem that the call can end as, by a sentence for each case.

        What every call can answer, and every one with a body, is described without this.
        It stands below `response`, next to the view.
        """

        def decorate(view: View) -> View:
            described: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
            responses = described.setdefault("response", {}).setdefault("responses", {})
            cases = view.__dict__.setdefault("_problems", {}).setdefault(kind.status, [])
            cases[:0] = [(kind, detail) for detail in details]  # decorators come from below
            responses[kind.status] = [{"content_type": None, **problem_response(*cases)}]
            return view

        return decorate

    def idempotent(self, view: View) -> View:
        """Have a view act once for each Idempotency-Key, and describe that.

        It stands between `arguments` and `response`; see `shared.web.idempotency.idempotent`.
        """
        once: View = idempotent(view)
        once.__dict__["_apidoc"]["idempotent"] = True
        return self.problem(kinds.IDEMPOTENCY_KEY_IN_USE, KEY_IN_USE)(once)

    if TYPE_CHECKING:

        def route(
            self,
            rule: str,
            *,
            methods: list[str],
            parameters: Sequence[Mapping[str, Any]] | None = None,
        ) -> Decorator:
            """Register a view at an address, whose parameters are described."""

        def response(
            self,
            status_code: int,
            schema: object,
            *,
            description: str,
            example: object = None,
            examples: Mapping[str, Any] | None = None,
            headers: Mapping[str, Any] | None = None,
        ) -> Decorator:
            """Answer with what the view returns, written by a schema."""
