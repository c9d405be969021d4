"""Handlers of the events that the payments service consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.payments.charges import Charge, charge
from settle_outbox import Outcome, ReceivedEvent, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session


def charge_orders(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
    """Charge the users of `order.created` events.

    An order that was decided before, and comes again with another event id, is an anomaly.
    """
    results = charge(session, [Charge(**event.data, trace=event.trace) for event in events])
    return {
        event.id: Verdict(
            Outcome.ANOMALY,
            "payment_already_decided",
            f"Order {result.charge.order_id} was decided before event {event.id} was received.",
        )
        for event, result in zip(events, results, strict=True)
        if not result.decided_now
    }
