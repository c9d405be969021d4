"""Blueprints whose arguments are parsed strictly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask_smorest

from shared.web.bodies import Parser

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from marshmallow import Schema

    View = Callable[..., Any]


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # it has no type information
    """A flask-smorest blueprint with this project's parser."""

    ARGUMENTS_PARSER = Parser()

    if TYPE_CHECKING:

        def route(self, rule: str, *, methods: list[str]) -> Callable[[View], View]:
            """Register a view at an address."""

        def arguments(self, schema: Schema, *, location: str = "json") -> Callable[[View], View]:
            """Parse the body or the query by a schema into the view's first argument.

            It takes an instance: webargs would make one of a class for each request.
            """

        def response(self, status_code: int, schema: object) -> Callable[[View], View]:
            """Answer with what the view returns, written by a schema."""

        def alt_response(self, status_code: int, response: str) -> Callable[[View], View]:
            """Describe another answer."""
