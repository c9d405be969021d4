"""The wire format of orders."""

from __future__ import annotations

from marshmallow import fields, validate

from services.orders.models import DESCRIPTION_MAX, FAILURE_REASON_MAX, STATUSES
from shared.fields import Amount, OpenSchema, Text, Time, UserId
from shared.web.paging import CursorField, Limit

_STATUS = {
    "description": "`created` until the payment is decided; then `success` or `failed`, for good.",
    "enum": [*STATUSES],
}
_TIME = "UTC, in RFC 3339's form, always with microseconds."


class NewOrderSchema(OpenSchema):
    """An order to be placed."""

    user_id = UserId(
        required=True, metadata={"description": "Who pays: a UUID in any case, not the nil UUID."}
    )
    amount = Amount(required=True)
    description = Text(
        max_length=DESCRIPTION_MAX,
        load_default="",
        metadata={"description": "Free text, without the NUL character."},
    )


class AcceptedSchema(OpenSchema):
    """What was done; the order is in the Location header."""

    message = fields.String(required=True, metadata={"description": "What was done."})


class OrderStatusSchema(OpenSchema):
    """How an order stands: created, success or failed."""

    id = fields.UUID(required=True, metadata={"description": "The order."})
    status = fields.String(required=True, metadata=_STATUS)


class OrdersQuerySchema(OpenSchema):
    """Which orders to list."""

    user_id = UserId(metadata={"description": "Whose; everybody's when left out."})
    status = fields.String(
        validate=validate.OneOf(STATUSES, error="Must be one of: {choices}."),
        metadata={"description": "In which status; in any when left out."},
    )
    created_from = Time(metadata={"description": "Placed then or later: RFC 3339, inclusive."})
    created_before = Time(metadata={"description": "Placed before then: RFC 3339, exclusive."})
    limit = Limit()
    cursor = CursorField()


class OrderSchema(OpenSchema):
    """An order in the list."""

    id = fields.UUID(required=True, data_key="ID", metadata={"description": "The order."})
    user_id = fields.UUID(required=True, data_key="UserID", metadata={"description": "Who pays."})
    amount = Amount(required=True, data_key="Amount")
    description = fields.String(
        required=True, data_key="Description", metadata={"description": "As it was sent."}
    )
    status = fields.String(required=True, data_key="Status", metadata=_STATUS)
    created_at = Time(
        required=True,
        data_key="CreatedAt",
        metadata={"description": f"When it was placed. {_TIME}"},
    )
    updated_at = Time(
        required=True,
        data_key="UpdatedAt",
        metadata={"description": f"When its status changed, or as CreatedAt. {_TIME}"},
    )


class WholeOrderSchema(OrderSchema):
    """An order by itself."""

    failure_reason = fields.String(
        required=True,
        allow_none=True,
        data_key="FailureReason",
        metadata={
            "description": "Why it failed, such as `insufficient_funds` or `account_not_found`;"
            " null unless it did.",
            "maxLength": FAILURE_REASON_MAX,
        },
    )
