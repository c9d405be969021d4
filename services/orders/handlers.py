"""Handlers of the events that the orders service consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.orders.events import PAYMENT_SUCCEEDED
from services.orders.models import FAILED, SUCCESS
from services.orders.settlements import Refusal, Settlement, settle
from settle_outbox import Outcome, ReceivedEvent, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

_OUTCOMES = {
    Refusal.UNKNOWN_ORDER: Outcome.PARKED,
    Refusal.MISMATCH: Outcome.PARKED,
    Refusal.ALREADY_FINAL: Outcome.ANOMALY,
    Refusal.CONTRADICTS_FINAL_STATUS: Outcome.ANOMALY,
}


def settle_orders(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
    """Give orders their final status from `payment.succeeded` and `payment.failed` events."""
    settlements = [
        Settlement(
            order_id=event.data["order_id"],
            user_id=event.data["user_id"],
            amount=event.data["amount"],
            status=SUCCESS if event.type == PAYMENT_SUCCEEDED else FAILED,
            failure_reason=event.data.get("reason"),
        )
        for event in events
    ]
    refusals = settle(session, settlements)
    return {
        event.id: Verdict(
            _OUTCOMES[refusal],
            refusal.reason,
            f"{event.type} for order {event.data['order_id']} was not applied: {refusal.sentence}",
        )
        for event, refusal in zip(events, refusals, strict=True)
        if refusal is not None
    }
