"""Descriptions and examples of the calls of orders, for the API description."""

from __future__ import annotations

from typing import Any

from services.orders.models import FAILED, SUCCESS
from shared.web.waiting.prefer_header import describe_headers, describe_parameter

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

# Arguments of the decorators in api.py.

ORDER_ID = {
    "in": "path",
    "name": "order_id",
    "description": "The order's id, as in the Location header.",
    "example": _ORDER,
}
PREFER_WAIT = describe_parameter(example="wait=10")
PREFER = describe_parameter(
    "`return=representation`: answer with the whole order instead of the message.",
    example="return=representation, wait=10",
)

NEW_ORDER = {"user_id": _USER, "amount": 3900, "description": "Lunch"}
ACCEPTED: dict[str, Any] = {
    "description": "The order is stored. It will be paid, or it will fail.",
    "examples": {
        "message": {"value": {"message": "Order accepted"}},
        "return=representation": {"value": _WHOLE},
    },
    "headers": describe_headers("return=representation, wait=10")
    | {
        "Location": {
            "description": "The address of the order's status.",
            "schema": {"type": "string", "format": "uri-reference"},
            "example": f"/order/{_ORDER}",
        }
    },
}
STATUS: dict[str, Any] = {
    "description": "The status of the order.",
    "example": {"id": _ORDER, "status": SUCCESS},
    "headers": describe_headers("wait=10"),
}
WHOLE: dict[str, Any] = {
    "description": "The order.",
    "example": _WHOLE,
    "headers": describe_headers("wait=10"),
}
PAGE: dict[str, Any] = {
    "description": "A page of orders.",
    "example": [_LISTED],
    "headers": {
        "Link": {
            "description": "The address of the next page (RFC 8288). Absent on the last page.",
            "schema": {"type": "string"},
            "example": '<http://localhost:8081/orders?limit=100&cursor=3q2-7w...>; rel="next"',
        }
    },
}
NO_ORDER = f"There is no order {_ORDER}."
