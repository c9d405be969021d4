"""The wire format of orders."""

from __future__ import annotations

from marshmallow import fields, validate

from services.orders.models import DESCRIPTION_MAX, FAILURE_REASON_MAX, STATUSES
from shared.fields import Amount, OpenSchema, Text, Time, UserId
from shared.web.paging import CursorField, Limit

_STATUS = {
    "description": "`created` until the payment is decided, then `success` or `failed`, which are"
    " final.",
    "enum": [*STATUSES],
}
_TIME = "UTC, in the format of RFC 3339, always with microseconds."


class NewOrderSchema(OpenSchema):
    """A new order."""

    user_id = UserId(
        required=True,
        metadata={"description": "The paying user: a UUID in any case, but not the nil UUID."},
    )
    amount = Amount(required=True)
    description = Text(
        max_length=DESCRIPTION_MAX,
        load_default="",
        metadata={"description": "Free text without the NUL character."},
    )


class AcceptedSchema(OpenSchema):
    """The result. The order's address is in the Location header."""

    message = fields.String(required=True, metadata={"description": "The result."})


class OrderStatusSchema(OpenSchema):
    """The status of an order."""

    id = fields.UUID(required=True, metadata={"description": "The order's id."})
    status = fields.String(required=True, metadata=_STATUS)


class OrdersQuerySchema(OpenSchema):
    """Filters of the list of orders."""

    user_id = UserId(metadata={"description": "Only orders of this user."})
    status = fields.String(
        validate=validate.OneOf(STATUSES, error="Must be one of: {choices}."),
        metadata={"description": "Only orders with this status."},
    )
    created_from = Time(
        metadata={"description": "Only orders placed at this time (RFC 3339) or later."}
    )
    created_before = Time(
        metadata={"description": "Only orders placed before this time (RFC 3339)."}
    )
    limit = Limit()
    cursor = CursorField()


class OrderSchema(OpenSchema):
    """An order in the list."""

    id = fields.UUID(required=True, data_key="ID", metadata={"description": "The order's id."})
    user_id = fields.UUID(
        required=True, data_key="UserID", metadata={"description": "The paying user."}
    )
    amount = Amount(required=True, data_key="Amount")
    description = fields.String(
        required=True, data_key="Description", metadata={"description": "As it was sent."}
    )
    status = fields.String(required=True, data_key="Status", metadata=_STATUS)
    created_at = Time(
        required=True,
        data_key="CreatedAt",
        metadata={"description": f"When the order was placed. {_TIME}"},
    )
    updated_at = Time(
        required=True,
        data_key="UpdatedAt",
        metadata={"description": f"When the status changed last; CreatedAt if never. {_TIME}"},
    )


class WholeOrderSchema(OrderSchema):
    """An order with the reason of its failure."""

    failure_reason = fields.String(
        required=True,
        allow_none=True,
        data_key="FailureReason",
        metadata={
            "description": "Why the order failed, such as `insufficient_funds` or"
            " `account_not_found`. Null unless it failed.",
            "maxLength": FAILURE_REASON_MAX,
        },
    )
