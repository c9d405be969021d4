"""Descriptions and examples of the calls of payments, for the API description."""

from __future__ import annotations

from typing import Any

from services.payments.models import AMOUNT_MAX, CHARGE, DEPOSIT

_USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
_OTHER_USER = "4b1ddf0c-58f0-4a0e-9b65-2f1f6f3c9a11"

# Arguments of the decorators in api.py.

USER_ID = {
    "in": "path",
    "name": "user_id",
    "description": "The id of the account's user.",
    "example": _USER,
}

NEW_ACCOUNT = {"user_id": _USER}
CREATED: dict[str, Any] = {
    "description": "The account is open. Its balance is zero.",
    "example": {"message": "Account created"},
}
NEW_DEPOSIT = {"user_id": _USER, "amount": 103_900}
DEPOSITED: dict[str, Any] = {
    "description": "The amount was deposited.",
    "example": {"message": "Balance refilled"},
}
BALANCE: dict[str, Any] = {"description": "The balance.", "example": {"balance": 103_900}}
PAGE: dict[str, Any] = {
    "description": "A page of the statement.",
    "example": [
        {
            "id": 2,
            "kind": CHARGE,
            "amount": 3900,
            "order_id": "01978007-3b5e-7c40-8f5a-3a2b1c0d9e8f",
            "balance": 100_000,
            "created_at": "2025-06-17T20:55:35.851377Z",
        },
        {
            "id": 1,
            "kind": DEPOSIT,
            "amount": 103_900,
            "order_id": None,
            "balance": 103_900,
            "created_at": "2025-06-17T20:55:34.117540Z",
        },
    ],
    "headers": {
        "Link": {
            "description": "The address of the next page (RFC 8288). Absent on the last page.",
            "schema": {"type": "string"},
            "example": f"<http://localhost:8080/accounts/{_USER}/transfers?limit=100"
            '&cursor=3q2-7w...>; rel="next"',
        }
    },
}

HAS_ACCOUNT = f"User {_USER} already has an account."
NO_ACCOUNT = f"User {_USER} has no account."
OTHER_USER = f"The user_id in the body, {_OTHER_USER}, is not the one in the address, {_USER}."
TOO_MUCH = (
    f"A deposit of 103900 would raise the balance of user {_USER}, {AMOUNT_MAX}, above"
    f" {AMOUNT_MAX}."
)
