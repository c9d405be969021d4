"""The order of a view's decorators is checked where the view is defined."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from shared.fields import OpenSchema
from shared.web.blueprint import Blueprint, DecoratorOrderError
from shared.web.problems import problem_types

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

blueprint = Blueprint("things", __name__, description="Things")


class ThingSchema(OpenSchema):
    """A thing."""


DECORATORS: dict[str, Decorator] = {
    "problem": blueprint.problem(problem_types.UNKNOWN_ADDRESS, "There is no such thing."),
    "response": blueprint.response(HTTPStatus.OK, ThingSchema, description="The thing."),
    "idempotent": blueprint.idempotent,
    "after_commit": blueprint.after_commit(lambda response: response),
    "arguments": blueprint.arguments(ThingSchema()),
    "route": blueprint.route("/things", methods=["POST"]),
}


def decorate(*names: str) -> None:
    """Apply decorators to a view. The first one is the innermost."""

    def make_thing(body: dict[str, Any]) -> dict[str, Any]:
        """Make a thing."""
        return body

    view: Callable[..., Any] = make_thing
    for name in names:
        view = DECORATORS[name](view)


def test_the_right_order_is_accepted() -> None:
    decorate("problem", *DECORATORS)


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("response", "problem"),
        ("idempotent", "response"),
        ("after_commit", "idempotent"),
        ("arguments", "after_commit"),
        ("arguments", "idempotent"),
        ("route", "arguments"),
    ],
)
def test_a_wrong_order_is_refused_and_the_error_names_both_decorators(
    below: str, above: str
) -> None:
    inner = [name for name in ("problem", "response") if name not in {below, above}]

    with pytest.raises(DecoratorOrderError) as refused:
        decorate(*inner, below, above)

    assert f"'{above}' of the view make_thing stands above '{below}'" in str(refused.value)
