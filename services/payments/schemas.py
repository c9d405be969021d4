"""The wire format of payments."""

from __future__ import annotations

from marshmallow import fields

from shared.fields import Amount, OpenSchema, Time, UserId
from shared.web.paging import CursorField, Limit

_INT64 = {"minimum": 0, "format": "int64"}


class NewAccountSchema(OpenSchema):
    """A new account."""

    user_id = UserId(required=True)


class DepositSchema(OpenSchema):
    """A deposit."""

    user_id = UserId(
        metadata={"description": "Optional. It must be the same id as in the address."}
    )
    amount = Amount(required=True)


class BalanceQuerySchema(OpenSchema):
    """The user whose balance to return."""

    user_id = UserId(required=True)


class BalanceSchema(OpenSchema):
    """A balance, in minor units."""

    balance = fields.Integer(
        required=True,
        metadata={"description": "In minor units, such as cents, from 0 to 2^63-1.", **_INT64},
    )


class StatementQuerySchema(OpenSchema):
    """The page of the statement."""

    limit = Limit()
    cursor = CursorField()


class TransferSchema(OpenSchema):
    """A transfer in the statement of an account."""

    id = fields.Integer(
        required=True,
        metadata={
            "description": "The transfer's id. Later transfers of the account have higher ids.",
            "minimum": 1,
            "format": "int64",
        },
    )
    kind = fields.String(
        required=True,
        metadata={
            "description": "`deposit` into the account, or `charge` for an order.",
            "enum": ["deposit", "charge"],
        },
    )
    amount = Amount(required=True)
    order_id = fields.UUID(
        required=True,
        allow_none=True,
        metadata={"description": "The paid order. Null for a deposit."},
    )
    balance = fields.Integer(
        required=True,
        metadata={"description": "The balance after the transfer, in minor units.", **_INT64},
    )
    created_at = Time(
        required=True,
        metadata={
            "description": "When the transfer was made. UTC, in the format of RFC 3339, always with"
            " microseconds."
        },
    )


class MessageSchema(OpenSchema):
    """The result."""

    message = fields.String(required=True, metadata={"description": "The result."})
