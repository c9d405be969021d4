"""The calls of orders: parse, call a use case, map the result."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from flask import jsonify

from services.orders import api_docs, listing, orders
from services.orders.prefer_wait import as_preferred, look, status_of
from services.orders.problems import UNKNOWN_ORDER
from services.orders.schemas import (
    AcceptedSchema,
    NewOrderSchema,
    OrderSchema,
    OrdersQuerySchema,
    OrderStatusSchema,
    WholeOrderSchema,
)
from shared.web.blueprint import Blueprint
from shared.web.idempotency.request_keys import note_created
from shared.web.paging import PAGE_BYTES_MAX, read_paging
from shared.web.sessions import transaction
from shared.web.waiting import prefer_header

if TYPE_CHECKING:
    from typing import Any

    from flask import Response

blueprint = Blueprint("orders", __name__, description="Orders and their status")


@blueprint.route("/orders", methods=["POST"], parameters=[api_docs.PREFER])
@blueprint.arguments(NewOrderSchema(), example=api_docs.NEW_ORDER)
@blueprint.after_commit(as_preferred)
@blueprint.idempotent
@blueprint.response(
    HTTPStatus.ACCEPTED, {"oneOf": [AcceptedSchema, WholeOrderSchema]}, **api_docs.ACCEPTED
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
    note_created(order_id)
    location = {"Location": f"/order/{order_id}"}
    return jsonify(message="Order accepted"), HTTPStatus.ACCEPTED, location


@blueprint.route(
    "/order/<uuid:order_id>", methods=["GET"], parameters=[api_docs.ORDER_ID, api_docs.PREFER_WAIT]
)
@blueprint.response(HTTPStatus.OK, OrderStatusSchema, **api_docs.STATUS)
@blueprint.problem(UNKNOWN_ORDER, api_docs.NO_ORDER)
def get_order(order_id: UUID) -> tuple[dict[str, object], dict[str, str]]:
    """Tell an order's status.

    `success` and `failed` are final.
    """
    status, waited_s = look(order_id, orders.status, str)
    return {"id": order_id, "status": status}, prefer_header.headers(wait_s=waited_s)


@blueprint.route(
    "/orders/<uuid:order_id>", methods=["GET"], parameters=[api_docs.ORDER_ID, api_docs.PREFER_WAIT]
)
@blueprint.response(HTTPStatus.OK, WholeOrderSchema, **api_docs.WHOLE)
@blueprint.problem(UNKNOWN_ORDER, api_docs.NO_ORDER)
def get_whole_order(order_id: UUID) -> tuple[object, dict[str, str]]:
    """Tell an order, whole, and why it failed.

    `success` and `failed` are final.
    """
    order, waited_s = look(order_id, orders.find, status_of)
    return order, prefer_header.headers(wait_s=waited_s)


@blueprint.route("/orders", methods=["GET"])
@blueprint.arguments(OrdersQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, OrderSchema(many=True), **api_docs.PAGE)
def list_orders(query: dict[str, Any]) -> tuple[object, dict[str, str]]:
    """List orders, newest first.

    Follow the links to page on: orders that come meanwhile do not move the pages.
    """
    paging = read_paging(query, datetime.fromisoformat, UUID)
    with transaction() as session:
        page = listing.newest(
            session,
            limit=paging.limit,
            bytes_max=PAGE_BYTES_MAX,
            filters=paging.filters,
            after=paging.after,
        )
    if not page.more:
        return page.orders, {}
    last = page.orders[-1]
    return page.orders, paging.link(last.created_at, last.id)
