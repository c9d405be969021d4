"""The API of payments. Each view parses a request, runs a use case, and maps its result."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response, jsonify

from services.payments import accounts, api_docs, problems, schemas, statements
from shared.web.blueprint import Blueprint
from shared.web.paging import read_paging
from shared.web.sessions import transaction

if TYPE_CHECKING:
    from uuid import UUID

blueprint = Blueprint("accounts", __name__, description="Accounts, deposits and balances")


@blueprint.route("/accounts", methods=["POST"])
@blueprint.arguments(schemas.NewAccountSchema(), example=api_docs.NEW_ACCOUNT)
@blueprint.idempotent
@blueprint.response(HTTPStatus.CREATED, schemas.MessageSchema, **api_docs.CREATED)
@blueprint.problem(problems.ACCOUNT_EXISTS, api_docs.HAS_ACCOUNT)
def create_account(body: dict[str, Any]) -> tuple[Response, int]:
    """Open a user's account.

    A user has at most one account.
    """
    with transaction() as session:
        accounts.open_account(session, body["user_id"])
    return jsonify(message="Account created"), HTTPStatus.CREATED


@blueprint.route(
    "/accounts/<uuid:user_id>/deposit", methods=["POST"], parameters=[api_docs.USER_ID]
)
@blueprint.arguments(schemas.DepositSchema(), example=api_docs.NEW_DEPOSIT)
@blueprint.idempotent
@blueprint.response(HTTPStatus.OK, schemas.MessageSchema, **api_docs.DEPOSITED)
@blueprint.problem(problems.UNKNOWN_ACCOUNT, api_docs.NO_ACCOUNT)
@blueprint.problem(problems.USER_MISMATCH, api_docs.OTHER_USER)
@blueprint.problem(problems.BALANCE_OVERFLOW, api_docs.TOO_MUCH)
def deposit(body: dict[str, Any], user_id: UUID) -> Response:
    """Deposit into a user's account.

    Two identical requests make two deposits. To repeat a request safely, send an Idempotency-Key:
    the deposit is made once.
    """
    if body.get("user_id", user_id) != user_id:
        raise accounts.UserMismatchError(
            f"The user_id in the body, {body['user_id']}, is not the one in the address, {user_id}."
        )
    with transaction() as session:
        accounts.deposit(session, user_id, body["amount"])
    return jsonify(message="Balance refilled")


@blueprint.route("/accounts/balance", methods=["GET"])
@blueprint.arguments(schemas.BalanceQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, schemas.BalanceSchema, **api_docs.BALANCE)
@blueprint.problem(problems.UNKNOWN_ACCOUNT, api_docs.NO_ACCOUNT)
def get_balance(query: dict[str, Any]) -> dict[str, int]:
    """Return a user's balance.

    It is the sum of the deposits minus the charges for orders. It is never below zero.
    """
    with transaction() as session:
        return {"balance": accounts.read_balance(session, query["user_id"])}


@blueprint.route(
    "/accounts/<uuid:user_id>/transfers", methods=["GET"], parameters=[api_docs.USER_ID]
)
@blueprint.arguments(schemas.StatementQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, schemas.TransferSchema(many=True), **api_docs.PAGE)
@blueprint.problem(problems.UNKNOWN_ACCOUNT, api_docs.NO_ACCOUNT)
def list_transfers(query: dict[str, Any], user_id: UUID) -> tuple[object, dict[str, str]]:
    """Return an account's statement: its transfers, newest first, with the balance after each.

    Follow the links to read the next pages. Transfers that are made after the first page was read
    do not change the next pages.
    """
    # A cursor has two integers: the id of the oldest transfer of the previous page, and the balance
    # before that transfer was made.
    paging = read_paging(query, int, int)
    with transaction() as session:
        page = statements.read_page(session, user_id, limit=paging.limit, after=paging.after)
    if not page.more:
        return page.entries, {}
    last = page.entries[-1]
    return page.entries, paging.link(last.id, last.balance_before)
