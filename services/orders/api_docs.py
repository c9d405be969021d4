"""What the API description says of the calls of orders, and its examples."""

from __future__ import annotations

from typing import Any

from services.orders.models import FAILED, SUCCESS
from shared.web.waiting import prefer_header

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

# The arguments of decorators, by what they describe.

ORDER_ID = {
    "in": "path",
    "name": "order_id",
    "description": "The order's id, as Location told it.",
    "example": _ORDER,
}
PREFER_WAIT = prefer_header.parameter(example="wait=10")
PREFER = prefer_header.parameter(
    "`return=representation`: the whole order, in place of the message.",
    example="return=representation, wait=10",
)

NEW_ORDER = {"user_id": _USER, "amount": 3900, "description": "Lunch"}
ACCEPTED: dict[str, Any] = {
    "description": "The order is stored, and will settle.",
    "examples": {
        "message": {"value": {"message": "Order accepted"}},
        "return=representation": {"value": _WHOLE},
    },
    "headers": prefer_header.described("return=representation, wait=10")
    | {
        "Location": {
            "description": "Where to ask for the order's status.",
            "schema": {"type": "string", "format": "uri-reference"},
            "example": f"/order/{_ORDER}",
        }
    },
}
STATUS: dict[str, Any] = {
    "description": "How the order stands.",
    "example": {"id": _ORDER, "status": SUCCESS},
    "headers": prefer_header.described("wait=10"),
}
WHOLE: dict[str, Any] = {
    "description": "The order, whole.",
    "example": _WHOLE,
    "headers": prefer_header.described("wait=10"),
}
PAGE: dict[str, Any] = {
    "description": "A page of orders.",
    "example": [_LISTED],
    "headers": {
        "Link": {
            "description": "Where the next page is (RFC 8288); the last page has none.",
            "schema": {"type": "string"},
            "example": '<http://localhost:8081/orders?limit=100&cursor=3q2-7w...>; rel="next"',
        }
    },
}
NO_ORDER = f"There is no order {_ORDER}."
