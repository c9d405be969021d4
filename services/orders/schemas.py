"""The wire format of orders."""

from __future__ import annotations

from marshmallow import fields

from services.orders.models import DESCRIPTION_MAX
from shared.fields import Amount, OpenSchema, Text, Time, UserId
from shared.web import CursorField, Limit


class NewOrderSchema(OpenSchema):
    """An order to be placed."""

    user_id = UserId(required=True)
    amount = Amount(required=True)
    description = Text(max_length=DESCRIPTION_MAX, load_default="")


class AcceptedSchema(OpenSchema):
    """What was done; the order is in the Location header."""

    message = fields.String(required=True)


class OrderStatusSchema(OpenSchema):
    """How an order stands: created, success or failed."""

    id = fields.UUID(required=True)
    status = fields.String(required=True)


class OrdersQuerySchema(OpenSchema):
    """Which orders to list."""

    user_id = UserId()
    limit = Limit()
    cursor = CursorField()


class OrderSchema(OpenSchema):
    """An order in the list."""

    id = fields.UUID(data_key="ID")
    user_id = fields.UUID(data_key="UserID")
    amount = fields.Integer(data_key="Amount", metadata={"format": "int64"})
    description = fields.String(data_key="Description")
    status = fields.String(data_key="Status")
    created_at = Time(data_key="CreatedAt")
    updated_at = Time(data_key="UpdatedAt")
