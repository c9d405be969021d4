"""Use case: give a batch of orders their final status, with two statements."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sqlalchemy import select

import settle_outbox as outbox
from services.orders.batch_sql import UPDATE_STATUSES
from services.orders.models import CREATED, Order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

# The channel of the notifications with the ids of the orders that became final.
SETTLED_CHANNEL = "order_settled"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of an order's payment: its final status, and the reason if it failed.

    The amount is in minor units.
    """

    order_id: UUID
    user_id: UUID
    amount: int
    status: str
    failure_reason: str | None


class Refusal(Enum):
    """Why a settlement was not applied."""

    UNKNOWN_ORDER = "unknown_order", "there is no such order."
    MISMATCH = "mismatch", "its user or amount is not the order's."
    ALREADY_FINAL = "already_final", "the order already has this final status."
    CONTRADICTS_FINAL_STATUS = "contradicts_final_status", "the order has another final status."

    def __init__(self, reason: str, sentence: str) -> None:
        self.reason = reason
        self.sentence = sentence


@dataclass(slots=True)
class _Order:
    user_id: UUID
    amount: int
    status: str


# Ordered by id, so that two transactions that lock several orders cannot deadlock.
_LOCK_ORDERS = (
    select(Order.id, Order.user_id, Order.amount, Order.status).order_by(Order.id).with_for_update()
)


def settle(session: Session, settlements: Sequence[Settlement]) -> list[Refusal | None]:
    """Give orders their final status. An order that is final keeps its status.

    Returns:
        For each settlement, in their order: None if it was applied, otherwise why not.
    """
    query = _LOCK_ORDERS.where(Order.id.in_({each.order_id for each in settlements}))
    known = {
        order_id: _Order(user_id, amount, status)
        for order_id, user_id, amount, status in session.execute(query)
    }
    refusals: list[Refusal | None] = []
    applied = []
    for each in settlements:
        order = known.get(each.order_id)
        refusal = _refusal(each, order)
        if order is not None and refusal is None:
            order.status = each.status
            applied.append(each)
        refusals.append(refusal)
    if applied:
        session.execute(
            UPDATE_STATUSES,
            {
                "ids": [str(each.order_id) for each in applied],
                "statuses": [each.status for each in applied],
                "failure_reasons": [each.failure_reason for each in applied],
            },
        )
        outbox.announce(session, SETTLED_CHANNEL, [each.order_id for each in applied])
    return refusals


def _refusal(settlement: Settlement, order: _Order | None) -> Refusal | None:
    if order is None:
        return Refusal.UNKNOWN_ORDER
    if (settlement.user_id, settlement.amount) != (order.user_id, order.amount):
        return Refusal.MISMATCH
    if order.status == CREATED:
        return None
    if order.status == settlement.status:
        return Refusal.ALREADY_FINAL
    return Refusal.CONTRADICTS_FINAL_STATUS
