"""Describes the orders service to the delivery engine."""

from __future__ import annotations

from services.orders import events
from services.orders.handlers import settle_orders
from settle_outbox import Service, Subscription
from shared.web.idempotency.key_store import remove_expired_keys

SERVICE = Service(
    name="orders",
    aggregatetypes=("orders",),
    subscriptions=(
        Subscription(
            topic="payments.events",
            type=events.PAYMENT_SUCCEEDED,
            schema=events.PaymentSucceededSchema(),
            handle=settle_orders,
        ),
        Subscription(
            topic="payments.events",
            type=events.PAYMENT_FAILED,
            schema=events.PaymentFailedSchema(),
            handle=settle_orders,
        ),
    ),
    cleanup_jobs=(remove_expired_keys,),
)
