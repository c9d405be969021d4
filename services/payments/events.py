"""Contracts: the events that the payments service publishes, and the one that it consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle_outbox import Event
from shared.fields import Amount, CanonicalUUID, OpenSchema, UserId

if TYPE_CHECKING:
    from services.payments.charges import ChargeResult


class OrderCreatedSchema(OpenSchema):
    """The fields of `order.created` that the payments service needs."""

    order_id = CanonicalUUID(required=True)
    user_id = UserId(required=True)
    amount = Amount(required=True)


def payment_decided(result: ChargeResult) -> Event:
    """Return the event of a new decision: `payment.succeeded` or `payment.failed`.

    Its key is the order, because each order has one decision.
    """
    charge = result.charge
    succeeded = result.reason is None
    data = {"order_id": charge.order_id, "user_id": charge.user_id, "amount": charge.amount}
    outcome = {"balance": result.balance} if succeeded else {"reason": result.reason}
    return Event(
        aggregatetype="payments",
        aggregateid=str(charge.order_id),
        type="payment.succeeded" if succeeded else "payment.failed",
        data=data | outcome,
        trace=charge.trace,
    )
