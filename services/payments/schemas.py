"""The wire format of payments."""

from __future__ import annotations

from marshmallow import fields

from shared.fields import Amount, OpenSchema, Time, UserId
from shared.web.paging import CursorField, Limit


class NewAccountSchema(OpenSchema):
    """Whose account to open."""

    user_id = UserId(required=True)


class DepositSchema(OpenSchema):
    """What to deposit; `user_id` may be left out, and must be the account's when given."""

    user_id = UserId(
        metadata={"description": "May be left out; when given, it must be the address's."}
    )
    amount = Amount(required=True)


class BalanceQuerySchema(OpenSchema):
    """Whose balance to tell."""

    user_id = UserId(required=True)


class BalanceSchema(OpenSchema):
    """A balance, in minor units."""

    balance = fields.Integer(
        required=True,
        metadata={
            "description": "In minor units (cents, say), from 0 to 2^63-1.",
            "minimum": 0,
            "format": "int64",
        },
    )


class StatementQuerySchema(OpenSchema):
    """Which transfers to list."""

    limit = Limit()
    cursor = CursorField()


class TransferSchema(OpenSchema):
    """A transfer in the statement of an account."""

    id = fields.Integer(
        required=True,
        metadata={
            "description": "The transfer; later ones of the account have higher ids.",
            "minimum": 1,
            "format": "int64",
        },
    )
    kind = fields.String(
        required=True,
        metadata={
            "description": "`deposit`, into the account, or `charge`, out of it for an order.",
            "enum": ["deposit", "charge"],
        },
    )
    amount = Amount(required=True)
    order_id = fields.UUID(
        required=True,
        allow_none=True,
        metadata={"description": "The order that was paid; null for a deposit."},
    )
    balance = fields.Integer(
        required=True,
        metadata={
            "description": "Of the account after the transfer, in minor units.",
            "minimum": 0,
            "format": "int64",
        },
    )
    created_at = Time(
        required=True,
        metadata={
            "description": "When it was made: UTC, in RFC 3339's form, always with microseconds."
        },
    )


class MessageSchema(OpenSchema):
    """What was done."""

    message = fields.String(required=True, metadata={"description": "What was done."})
