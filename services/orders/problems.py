"""The kinds of problems that the calls of orders have of their own."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.orders import orders
from shared.web.problems.problem_types import Kind

if TYPE_CHECKING:
    from settle_outbox.errors import SettleError

UNKNOWN_ORDER = Kind(
    "unknown-order",
    HTTPStatus.NOT_FOUND,
    "There is no such order",
    "No order with this id was placed.",
    "Compare the id with the one in the Location header of the answer to POST /orders.",
)

PROBLEMS: dict[type[SettleError], Kind] = {orders.UnknownOrderError: UNKNOWN_ORDER}
