"""What the service publishes and consumes."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from notifications.sending import send
from settle_outbox import ReceivedEvent, Service, Subscription, one_by_one


@dataclass(frozen=True)
class Payment:
    """The data of payment.succeeded and payment.failed that this service needs."""

    order_id: UUID
    user_id: UUID
    reason: str | None


def read_payment(data: dict[str, Any]) -> Payment:
    """Check an event's data. If this raises an error, the event becomes a dead letter."""
    return Payment(UUID(data["order_id"]), UUID(data["user_id"]), data.get("reason"))


def notify_user(session: Session, event: ReceivedEvent) -> None:
    """Tell the user what became of the order."""
    payment: Payment = event.data
    paid = event.type == "payment.succeeded"
    outcome = "is paid" if paid else f"was not paid: {payment.reason}"
    send(session, payment.user_id, f"Your order {payment.order_id} {outcome}.")


SERVICE = Service(
    name="notifications",
    aggregatetypes=("notifications",),
    subscriptions=tuple(
        Subscription("payments.events", type_, schema=read_payment, handle=one_by_one(notify_user))
        for type_ in ("payment.succeeded", "payment.failed")
    ),
)
