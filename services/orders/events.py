"""The event that orders publishes, and the handler of those that it consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.orders.models import FAILED, FAILURE_REASON_MAX, SUCCESS
from services.orders.settlements import Refusal, Settlement, settle
from settle_outbox import Event, Outcome, ReceivedEvent, Service, Subscription, Verdict
from settle_outbox.event import format_time
from shared.fields import Amount, CanonicalUUID, OpenSchema, Text, UserId
from shared.idempotency.keys import remove_expired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

PAYMENT_SUCCEEDED = "payment.succeeded"
PAYMENT_FAILED = "payment.failed"

_OUTCOMES = {
    Refusal.UNKNOWN_ORDER: Outcome.PARKED,
    Refusal.MISMATCH: Outcome.PARKED,
    Refusal.ALREADY_FINAL: Outcome.ANOMALY,
    Refusal.CONTRADICTS_FINAL_STATUS: Outcome.ANOMALY,
}


class PaymentSucceededSchema(OpenSchema):
    """The data of `payment.succeeded`, as far as orders needs it."""

    order_id = CanonicalUUID(required=True)
    user_id = UserId(required=True)
    amount = Amount(required=True)


class PaymentFailedSchema(PaymentSucceededSchema):
    """The data of `payment.failed`."""

    reason = Text(required=True, min_length=1, max_length=FAILURE_REASON_MAX)


def order_created(*, order_id: UUID, user_id: UUID, amount: int, created_at: datetime) -> Event:
    """The event that tells of a new order; its key is the user, whose orders keep their order."""
    return Event(
        aggregatetype="orders",
        aggregateid=str(user_id),
        type="order.created",
        data={
            "order_id": str(order_id),
            "user_id": str(user_id),
            "amount": amount,
            "created_at": format_time(created_at),
        },
    )


def settle_orders(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
    """Give orders their final status from `payment.succeeded` and `payment.failed` events."""
    refusals = settle(session, [_settlement(event) for event in events])
    return {
        event.id: Verdict(
            _OUTCOMES[refusal],
            refusal.value,
            f"{event.type} for order {event.data['order_id']} was not applied: {refusal.sentence}",
        )
        for event, refusal in zip(events, refusals, strict=True)
        if refusal is not None
    }


def _settlement(event: ReceivedEvent) -> Settlement:
    return Settlement(
        order_id=event.data["order_id"],
        user_id=event.data["user_id"],
        amount=event.data["amount"],
        status=SUCCESS if event.type == PAYMENT_SUCCEEDED else FAILED,
        failure_reason=event.data.get("reason"),
    )


SERVICE = Service(
    name="orders",
    aggregatetypes=("orders",),
    subscriptions=(
        Subscription(
            topic="payments.events",
            type=PAYMENT_SUCCEEDED,
            schema=PaymentSucceededSchema(),
            handle=settle_orders,
        ),
        Subscription(
            topic="payments.events",
            type=PAYMENT_FAILED,
            schema=PaymentFailedSchema(),
            handle=settle_orders,
        ),
    ),
    expiries=(remove_expired,),
)
