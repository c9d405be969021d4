"""The calls of payments: parse, call a use case, map the result."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from werkzeug.exceptions import Conflict

from services.payments import accounts
from services.payments.schemas import (
    BalanceQuerySchema,
    BalanceSchema,
    DepositSchema,
    MessageSchema,
    NewAccountSchema,
)
from shared.web import Blueprint, transaction

if TYPE_CHECKING:
    from typing import Any
    from uuid import UUID

    from shared.errors import SettleError

STATUSES: dict[type[SettleError], int] = {
    accounts.AccountExistsError: HTTPStatus.CONFLICT,
    accounts.BalanceOverflowError: HTTPStatus.CONFLICT,
    accounts.UnknownAccountError: HTTPStatus.NOT_FOUND,
}

blueprint = Blueprint("accounts", __name__, description="Accounts, deposits and balances")


@blueprint.route("/accounts", methods=["POST"])
@blueprint.arguments(NewAccountSchema())
@blueprint.response(HTTPStatus.CREATED, MessageSchema)
@blueprint.alt_response(HTTPStatus.CONFLICT, HTTPStatus.CONFLICT.name)
def create_account(body: dict[str, Any]) -> dict[str, str]:
    """Open a user's account."""
    with transaction() as session:
        accounts.create(session, body["user_id"])
    return {"message": "Account created"}


@blueprint.route("/accounts/<uuid:user_id>/deposit", methods=["POST"])
@blueprint.arguments(DepositSchema())
@blueprint.response(HTTPStatus.OK, MessageSchema)
@blueprint.alt_response(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.name)
@blueprint.alt_response(HTTPStatus.CONFLICT, HTTPStatus.CONFLICT.name)
def deposit(body: dict[str, Any], user_id: UUID) -> dict[str, str]:
    """Deposit into a user's account."""
    if body.get("user_id", user_id) != user_id:
        raise Conflict(f"The body's user_id, {body['user_id']}, is not the address's, {user_id}.")
    with transaction() as session:
        accounts.deposit(session, user_id, body["amount"])
    return {"message": "Balance refilled"}


@blueprint.route("/accounts/balance", methods=["GET"])
@blueprint.arguments(BalanceQuerySchema(), location="query")
@blueprint.response(HTTPStatus.OK, BalanceSchema)
@blueprint.alt_response(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.name)
def get_balance(query: dict[str, Any]) -> dict[str, int]:
    """Tell a user's balance."""
    with transaction() as session:
        return {"balance": accounts.balance(session, query["user_id"])}
