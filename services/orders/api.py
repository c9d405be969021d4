"""The calls of orders: parse, call a use case, map the result."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from flask import jsonify

from services.orders import orders
from services.orders.models import FAILED, SUCCESS
from services.orders.preferring import as_preferred, look, status_of
from services.orders.problems import UNKNOWN_ORDER
from services.orders.schemas import (
    AcceptedSchema,
    NewOrderSchema,
    OrderSchema,
    OrdersQuerySchema,
    OrderStatusSchema,
    WholeOrderSchema,
)
from shared.web import PAGE_BYTES_MAX, Blueprint, prefer, read_paging, transaction

if TYPE_CHECKING:
    from typing import Any

    from flask import Response

blueprint = Blueprint("orders", __name__, description="Orders and their status")

# Of the examples.
_USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
_ORDER = "01978007-3b5e-7c40-8f5a-3a2b1c0d9e8f"
_LISTED = {
    "ID": _ORDER,
    "UserID": _USER,
    "Amount": 3900,
    "Description": "Lunch",
    "Status": SUCCESS,
    "CreatedAt": "2025-06-17T20:55:35.806222Z",
    "UpdatedAt": "2025-06-17T20:55:35.871904Z",
}
_WHOLE = _LISTED | {"Status": FAILED, "FailureReason": "insufficient_funds"}

_WHICH = {
    "in": "path",
    "name": "order_id",
    "description": "The order's id, as Location told it.",
    "example": _ORDER,
}


@blueprint.route(
    "/orders",
    methods=["POST"],
    parameters=[
        prefer.parameter(
            "`return=representation`: the whole order, in place of the message.",
            example="return=representation, wait=10",
        )
    ],
)
@blueprint.arguments(
    NewOrderSchema(), example={"user_id": _USER, "amount": 3900, "description": "Lunch"}
)
@as_preferred
@blueprint.idempotent
@blueprint.response(
    HTTPStatus.ACCEPTED,
    {"oneOf": [AcceptedSchema, WholeOrderSchema]},
    description="The order is stored, and will settle.",
    examples={
        "message": {"value": {"message": "Order accepted"}},
        "return=representation": {"value": _WHOLE},
    },
    headers=prefer.described("return=representation, wait=10")
    | {
        "Location": {
            "description": "Where to ask for the order's status.",
            "schema": {"type": "string", "format": "uri-reference"},
            "example": f"/order/{_ORDER}",
        }
    },
)
def place_order(body: dict[str, Any]) -> tuple[Response, int, dict[str, str]]:
    """Place an order.

    It settles shortly after: its status turns to `success` when the user's balance covered the
    amount, which is then charged, or to `failed` when not, or when the user has no account.
    Two orders are two, also when they look alike: one whose answer was lost may have been stored.
    With an Idempotency-Key, send it again until there is an answer: the order is placed once.
    """
    with transaction() as session:
        order_id = orders.place(session, **body)
    location = {"Location": f"/order/{order_id}"}
    return jsonify(message="Order accepted"), HTTPStatus.ACCEPTED, location


@blueprint.route(
    "/order/<uuid:order_id>",
    methods=["GET"],
    parameters=[_WHICH, prefer.parameter(example="wait=10")],
)
@blueprint.response(
    HTTPStatus.OK,
    OrderStatusSchema,
    description="How the order stands.",
    example={"id": _ORDER, "status": SUCCESS},
    headers=prefer.described("wait=10"),
)
@blueprint.problem(UNKNOWN_ORDER, f"There is no order {_ORDER}.")
def get_order(order_id: UUID) -> tuple[dict[str, object], dict[str, str]]:
    """Tell an order's status.

    `success` and `failed` are final.
    """
    status, waited_s = look(order_id, orders.status, str)
    return {"id": order_id, "status": status}, prefer.headers(wait_s=waited_s)


@blueprint.route(
    "/orders/<uuid:order_id>",
    methods=["GET"],
    parameters=[_WHICH, prefer.parameter(example="wait=10")],
)
@blueprint.response(
    HTTPStatus.OK,
    WholeOrderSchema,
    description="The order, whole.",
    example=_WHOLE,
    headers=prefer.described("wait=10"),
)
@blueprint.problem(UNKNOWN_ORDER, f"There is no order {_ORDER}.")
def get_whole_order(order_id: UUID) -> tuple[object, dict[str, str]]:
    """Tell an order, whole, and why it failed.

    `success` and `failed` are final.
    """
    order, waited_s = look(order_id, orders.find, status_of)
    return order, prefer.headers(wait_s=waited_s)


@blueprint.route("/orders", methods=["GET"])
@blueprint.arguments(OrdersQuerySchema(), location="query")
@blueprint.response(
    HTTPStatus.OK,
    OrderSchema(many=True),
    description="A page of orders.",
    example=[_LISTED],
    headers={
        "Link": {
            "description": "Where the next page is (RFC 8288); the last page has none.",
            "schema": {"type": "string"},
            "example": '<http://localhost:8081/orders?limit=100&cursor=3q2-7w...>; rel="next"',
        }
    },
)
def list_orders(query: dict[str, Any]) -> tuple[object, dict[str, str]]:
    """List orders, newest first.

    Follow the links to page on: orders that come meanwhile do not move the pages.
    """
    paging = read_paging(query, datetime.fromisoformat, UUID)
    with transaction() as session:
        page = orders.newest(
            session,
            limit=paging.limit,
            bytes_max=PAGE_BYTES_MAX,
            filters=paging.filters,
            after=paging.after,
        )
    if not page.more:
        return page.rows, {}
    last = page.rows[-1]
    return page.rows, paging.link(last.created_at, last.id)
