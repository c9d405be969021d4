"""The calls of payments: parse, call a use case, map the result."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from services.payments import accounts, statements
from services.payments.models import AMOUNT_MAX
from services.payments.problems import (
    ACCOUNT_EXISTS,
    BALANCE_OVERFLOW,
    UNKNOWN_ACCOUNT,
    USER_MISMATCH,
)
from services.payments.schemas import (
    BalanceQuerySchema,
    BalanceSchema,
    DepositSchema,
    MessageSchema,
    NewAccountSchema,
    StatementQuerySchema,
    TransferSchema,
)
from shared.web import Blueprint, read_paging, transaction

if TYPE_CHECKING:
    from typing import Any
    from uuid import UUID

blueprint = Blueprint("accounts", __name__, description="Accounts, deposits and balances")

_USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"  # of the examples
_NO_ACCOUNT = f"User {_USER} has no account."

_WHOSE = {
    "in": "path",
    "name": "user_id",
    "description": "Whose account: the user's id.",
    "example": _USER,
}


@blueprint.route("/accounts", methods=["POST"])
@blueprint.arguments(NewAccountSchema(), example={"user_id": _USER})
@blueprint.idempotent
@blueprint.response(
    HTTPStatus.CREATED,
    MessageSchema,
    description="The account is open, with nothing in it.",
    example={"message": "Account created"},
)
@blueprint.problem(ACCOUNT_EXISTS, f"User {_USER} has an account already.")
def create_account(body: dict[str, Any]) -> dict[str, str]:
    """Open a user's account.

    A user has one account at most.
    """
    with transaction() as session:
        accounts.create(session, body["user_id"])
    return {"message": "Account created"}


@blueprint.route("/accounts/<uuid:user_id>/deposit", methods=["POST"], parameters=[_WHOSE])
@blueprint.arguments(DepositSchema(), example={"user_id": _USER, "amount": 103_900})
@blueprint.idempotent
@blueprint.response(
    HTTPStatus.OK,
    MessageSchema,
    description="The amount is in the account.",
    example={"message": "Balance refilled"},
)
@blueprint.problem(UNKNOWN_ACCOUNT, _NO_ACCOUNT)
@blueprint.problem(
    USER_MISMATCH,
    f"The body's user_id, 4b1ddf0c-58f0-4a0e-9b65-2f1f6f3c9a11, is not the address's, {_USER}.",
)
@blueprint.problem(
    BALANCE_OVERFLOW,
    f"A deposit of 103900 would raise the balance of user {_USER}, {AMOUNT_MAX}, above"
    f" {AMOUNT_MAX}.",
)
def deposit(body: dict[str, Any], user_id: UUID) -> dict[str, str]:
    """Deposit into a user's account.

    Two deposits are two, also when they look alike: one whose answer was lost may have been made.
    With an Idempotency-Key, send it again until there is an answer: the deposit is made once.
    """
    if body.get("user_id", user_id) != user_id:
        raise accounts.UserMismatchError(
            f"The body's user_id, {body['user_id']}, is not the address's, {user_id}."
        )
    with transaction() as session:
        accounts.deposit(session, user_id, body["amount"])
    return {"message": "Balance refilled"}


@blueprint.route("/accounts/balance", methods=["GET"])
@blueprint.arguments(BalanceQuerySchema(), location="query")
@blueprint.response(
    HTTPStatus.OK, BalanceSchema, description="The balance now.", example={"balance": 103_900}
)
@blueprint.problem(UNKNOWN_ACCOUNT, _NO_ACCOUNT)
def get_balance(query: dict[str, Any]) -> dict[str, int]:
    """Tell a user's balance.

    It is what was deposited, less what was charged for orders; never below zero.
    """
    with transaction() as session:
        return {"balance": accounts.balance(session, query["user_id"])}


@blueprint.route("/accounts/<uuid:user_id>/transfers", methods=["GET"], parameters=[_WHOSE])
@blueprint.arguments(StatementQuerySchema(), location="query")
@blueprint.response(
    HTTPStatus.OK,
    TransferSchema(many=True),
    description="A page of the statement.",
    example=[
        {
            "id": 2,
            "kind": "charge",
            "amount": 3900,
            "order_id": "01978007-3b5e-7c40-8f5a-3a2b1c0d9e8f",
            "balance": 100_000,
            "created_at": "2025-06-17T20:55:35.851377Z",
        },
        {
            "id": 1,
            "kind": "deposit",
            "amount": 103_900,
            "order_id": None,
            "balance": 103_900,
            "created_at": "2025-06-17T20:55:34.117540Z",
        },
    ],
    headers={
        "Link": {
            "description": "Where the next page is (RFC 8288); the last page has none.",
            "schema": {"type": "string"},
            "example": f"<http://localhost:8080/accounts/{_USER}/transfers?limit=100"
            '&cursor=3q2-7w...>; rel="next"',
        }
    },
)
@blueprint.problem(UNKNOWN_ACCOUNT, _NO_ACCOUNT)
def list_transfers(query: dict[str, Any], user_id: UUID) -> tuple[object, dict[str, str]]:
    """Tell an account's statement: its transfers, newest first, with the balance after each.

    Follow the links to page on: transfers that come meanwhile do not move the pages.
    """
    paging = read_paging(query, int, int)
    with transaction() as session:
        page = statements.page(session, user_id, limit=paging.limit, after=paging.after)
    if not page.more:
        return page.entries, {}
    last = page.entries[-1]
    return page.entries, paging.link(last.id, last.balance_before)
