"""Describes the orders service to the delivery engine."""

from __future__ import annotations

from services.orders.events import (
    PAYMENT_FAILED,
    PAYMENT_SUCCEEDED,
    PaymentFailedSchema,
    PaymentSucceededSchema,
)
from services.orders.handlers import settle_orders
from settle_outbox import Service, Subscription
from shared.web.idempotency.key_store import remove_expired_keys

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
    cleanup_jobs=(remove_expired_keys,),
)
