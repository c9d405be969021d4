"""Describes the payments service to the delivery engine."""

from __future__ import annotations

from services.payments.events import OrderCreatedSchema
from services.payments.handlers import charge_orders
from settle_outbox import Service, Subscription
from shared.web.idempotency.key_store import remove_expired_keys

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
    cleanup_jobs=(remove_expired_keys,),
)
