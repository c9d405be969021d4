"""The API of orders. Each view parses a request, runs a use case, and maps its result."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from flask import Response, jsonify

from services.orders import api_docs, listing, orders, prefer_wait, problems, schemas
from shared.web.blueprint import Blueprint
from shared.web.idempotency.request_keys import note_created
from shared.web.paging import read_paging
from shared.web.sessions import transaction
from shared.web.waiting.prefer_header import response_headers

blueprint = Blueprint("orders", __name__, description="Orders and their status")


@blueprint.route("/orders", methods=["POST"], parameters=[api_docs.PREFER])
@blueprint.arguments(schemas.NewOrderSchema(), example=api_docs.NEW_ORDER)
@blueprint.after_commit(prefer_wait.apply_preferences)
@blueprint.idempotent
@blueprint.response(
    HTTPStatus.ACCEPTED,
    {"oneOf": [schemas.AcceptedSchema, schemas.WholeOrderSchema]},
    **api_docs.ACCEPTED,
)
def place_order(body: dict[str, Any]) -> tuple[Response, int, dict[str, str]]:
    """Place an order.

    The order is paid shortly after. Its status becomes `success` if the user's balance covers the
    amount, which is then charged. It becomes `failed` if the balance is too low, or if the user has
    no account. Two identical requests place two orders. To repeat a request safely, send an
    Idempotency-Key: the order is placed once.
    """
    with transaction() as session:
        order_id = orders.place_order(session, **body)
    note_created(order_id)
    location = {"Location": f"/order/{order_id}"}
    return jsonify(message="Order accepted"), HTTPStatus.ACCEPTED, location


@blueprint.route(
    "/order/<uuid:order_id>", methods=["GET"], parameters=[api_docs.ORDER_ID, api_docs.PREFER_WAIT]
)
@blueprint.response(HTTPStatus.OK, schemas.OrderStatusSchema, **api_docs.STATUS)
@blueprint.problem(problems.UNKNOWN_ORDER, api_docs.NO_ORDER)
def get_order(order_id: UUID) -> tuple[dict[str, object], dict[str, str]]:
    """Return the status of an order.

    `success` and `failed` are final.
    """
    status, waited_s = prefer_wait.wait_for_status(order_id)
    return {"id": order_id, "status": status}, response_headers(wait_s=waited_s)


@blueprint.route(
    "/orders/<uuid:order_id>", methods=["GET"], parameters=[api_docs.ORDER_ID, api_docs.PREFER_WAIT]
)
@blueprint.response(HTTPStatus.OK, schemas.WholeOrderSchema, **api_docs.WHOLE)
@blueprint.problem(problems.UNKNOWN_ORDER, api_docs.NO_ORDER)
def get_whole_order(order_id: UUID) -> tuple[object, dict[str, str]]:
    """Return an order, with the reason if it failed.

    `success` and `failed` are final.
    """
    order, waited_s = prefer_wait.wait_for_order(order_id)
    return order, response_headers(wait_s=waited_s)


@blueprint.route("/orders", methods=["GET"])
@blueprint.arguments(schemas.OrdersQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, schemas.OrderSchema(many=True), **api_docs.PAGE)
def list_orders(query: dict[str, Any]) -> tuple[object, dict[str, str]]:
    """List orders, newest first.

    Follow the links to read the next pages. Orders that are placed after the first page was read do
    not change the next pages.
    """
    # A cursor has the time and the id of the oldest order of the previous page.
    paging = read_paging(query, datetime.fromisoformat, UUID)
    with transaction() as session:
        page = listing.read_page(
            session, limit=paging.limit, filters=paging.filters, after=paging.after
        )
    if not page.more:
        return page.orders, {}
    last = page.orders[-1]
    return page.orders, paging.link(last.created_at, last.id)
