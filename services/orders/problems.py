"""The problem types of the calls of orders."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.orders import orders
from shared.web.problems.problem_types import ProblemType

if TYPE_CHECKING:
    from settle_outbox.errors import SettleError

UNKNOWN_ORDER = ProblemType(
    "unknown-order",
    HTTPStatus.NOT_FOUND,
    "There is no such order",
    "There is no order with this id.",
    "Compare the id with the one in the Location header of the answer to POST /orders.",
)

PROBLEMS: dict[type[SettleError], ProblemType] = {orders.UnknownOrderError: UNKNOWN_ORDER}
