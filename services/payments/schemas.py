"""The wire format of payments."""

from __future__ import annotations

from marshmallow import fields

from shared.fields import Amount, OpenSchema, UserId


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


class MessageSchema(OpenSchema):
    """What was done."""

    message = fields.String(required=True, metadata={"description": "What was done."})
