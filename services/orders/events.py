"""Contracts: the event that the orders service publishes, and those that it consumes."""

from __future__ import annotations

from services.orders.models import FAILURE_REASON_MAX, Order
from settle_outbox import Event
from settle_outbox.event import format_time
from shared.fields import Amount, CanonicalUUID, OpenSchema, Text, UserId

PAYMENT_SUCCEEDED = "payment.succeeded"
PAYMENT_FAILED = "payment.failed"


class PaymentSucceededSchema(OpenSchema):
    """The fields of `payment.succeeded` that the orders service needs."""

    order_id = CanonicalUUID(required=True)
    user_id = UserId(required=True)
    amount = Amount(required=True)


class PaymentFailedSchema(PaymentSucceededSchema):
    """The fields of `payment.failed` that the orders service needs."""

    reason = Text(required=True, min_length=1, max_length=FAILURE_REASON_MAX)


def order_created(order: Order) -> Event:
    """Return the event of a new order. Its key is the user: one user's orders are paid in order."""
    return Event(
        aggregatetype="orders",
        aggregateid=str(order.user_id),
        type="order.created",
        data={
            "order_id": str(order.id),
            "user_id": str(order.user_id),
            "amount": order.amount,
            "created_at": format_time(order.created_at),
        },
    )
