"""The events that payments publishes, and the handler of those that it consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import settle_outbox as outbox
from services.payments.charges import Charge, Payment, charge
from settle_outbox import Event, Outcome, ReceivedEvent, Service, Subscription, Verdict
from shared.fields import Amount, CanonicalUUID, OpenSchema, UserId
from shared.idempotency.keys import remove_expired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.trace import Trace


class OrderCreatedSchema(OpenSchema):
    """The data of `order.created`, as far as payments needs it."""

    order_id = CanonicalUUID(required=True)
    user_id = UserId(required=True)
    amount = Amount(required=True)


def payment_decided(payment: Payment, trace: Trace) -> Event:
    """The event that tells what became of an order's payment.

    Args:
        payment: as it was decided.
        trace: of the request that placed the order.
    """
    charged = payment.charge
    data: dict[str, str | int | None] = {
        "order_id": str(charged.order_id),
        "user_id": str(charged.user_id),
        "amount": charged.amount,
    }
    if payment.reason is None:
        return _event("payment.succeeded", data | {"balance": payment.balance}, trace)
    return _event("payment.failed", data | {"reason": payment.reason.value}, trace)


def _event(event_type: str, data: dict[str, str | int | None], trace: Trace) -> Event:
    return Event(
        aggregatetype="payments",
        aggregateid=str(data["order_id"]),
        type=event_type,
        data=data,
        trace=trace,
    )


def charge_orders(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
    """Charge the users of `order.created` events and tell the results.

    An order that has its payment already, and comes again under another event id, is an anomaly.
    """
    made = charge(session, [Charge(**event.data) for event in events])
    results = []
    verdicts = {}
    for event, payment in zip(events, made, strict=True):
        if payment.decided_now:
            results.append(payment_decided(payment, event.trace))
        else:
            verdicts[event.id] = Verdict(
                Outcome.ANOMALY,
                "payment_already_decided",
                f"Order {payment.charge.order_id} had its payment before event {event.id} came.",
            )
    outbox.add_all(session, results)
    return verdicts


SERVICE = Service(
    name="payments",
    aggregatetypes=("payments",),
    subscriptions=(
        Subscription(
            topic="orders.events",
            type="order.created",
            schema=OrderCreatedSchema(),
            handle=charge_orders,
        ),
    ),
    expiries=(remove_expired,),
)
