"""The calls of orders: parse, call a use case, map the result."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.orders import orders
from services.orders.schemas import (
    AcceptedSchema,
    NewOrderSchema,
    OrderSchema,
    OrdersQuerySchema,
    OrderStatusSchema,
)
from shared.web import Blueprint, Cursor, next_link, transaction

if TYPE_CHECKING:
    from typing import Any
    from uuid import UUID

    from shared.errors import SettleError

STATUSES: dict[type[SettleError], int] = {orders.UnknownOrderError: HTTPStatus.NOT_FOUND}

blueprint = Blueprint("orders", __name__, description="Orders and their status")


@blueprint.route("/orders", methods=["POST"])
@blueprint.arguments(NewOrderSchema())
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedSchema)
def place_order(body: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Place an order; it settles shortly after."""
    with transaction() as session:
        order_id = orders.place(session, **body)
    return {"message": "Order accepted"}, {"Location": f"/order/{order_id}"}


@blueprint.route("/order/<uuid:order_id>", methods=["GET"])
@blueprint.response(HTTPStatus.OK, OrderStatusSchema)
@blueprint.alt_response(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.name)
def get_order(order_id: UUID) -> dict[str, object]:
    """Tell an order's status: created, success or failed."""
    with transaction() as session:
        return {"id": order_id, "status": orders.status(session, order_id)}


@blueprint.route("/orders", methods=["GET"])
@blueprint.arguments(OrdersQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, OrderSchema(many=True))
def list_orders(query: dict[str, Any]) -> tuple[object, dict[str, str]]:
    """List orders, newest first; a Link header leads to the next page."""
    cursor: Cursor | None = query.pop("cursor", None)
    after = (cursor.created_at, cursor.id) if cursor else None
    with transaction() as session:
        page = orders.newest(session, **query, after=after)
    if not page.more:
        return page.rows, {}
    last = page.rows[-1]
    following = Cursor(last.created_at, last.id).encode()
    return page.rows, next_link("/orders", {**query, "cursor": following})
