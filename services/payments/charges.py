"""Use case: charge users for a batch of orders, with a fixed number of statements."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import select

import settle_outbox as outbox
from services.payments.batch_sql import INSERT_CHARGES, INSERT_PAYMENTS, UPDATE_BALANCES
from services.payments.events import payment_decided
from services.payments.models import CHARGE, SALES, Account, Payment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.trace import Trace


class Reason(StrEnum):
    """Why an order could not be paid."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    ACCOUNT_NOT_FOUND = "account_not_found"


@dataclass(frozen=True, slots=True)
class Charge:
    """An order to pay: its user, its amount in minor units, and the trace of its request."""

    order_id: UUID
    user_id: UUID
    amount: int
    trace: Trace


@dataclass(frozen=True, slots=True)
class ChargeResult:
    """The result of a charge.

    Args:
        charge: the order to pay.
        balance: of the account after the charge, in minor units; None if there is no account.
        reason: why the charge failed; None if it succeeded.
        decided_now: False if the order was decided before, and nothing was done.
    """

    charge: Charge
    balance: int | None
    reason: Reason | None
    decided_now: bool = True


@dataclass(slots=True)
class _Account:
    id: int
    balance: int


# `key_share=True` is FOR NO KEY UPDATE, which does not block the foreign-key checks of transfers.
# Ordered by id, so that two transactions that lock several accounts cannot deadlock.
_LOCK_ACCOUNTS = (
    select(Account.user_id, Account.id, Account.balance)
    .order_by(Account.id)
    .with_for_update(key_share=True)
)


def charge(session: Session, charges: Sequence[Charge]) -> list[ChargeResult]:
    """Charge users for orders, one after the other, and publish each result.

    An order is paid if the balance covers its amount when its turn comes. Each order is decided
    once: a later deposit does not revive a failed order, and a paid order is not paid again.

    Returns:
        A result for each charge, in their order.
    """
    user_ids = {each.user_id for each in charges}
    rows = session.execute(_LOCK_ACCOUNTS.where(Account.user_id.in_(user_ids)))
    accounts_by_user = {
        user_id: _Account(account_id, balance)
        for user_id, account_id, balance in rows
        if user_id is not None and balance is not None  # a system account has neither
    }
    # Read after locking, so that the decisions of the locks' previous holder are visible.
    order_ids = {each.order_id for each in charges}
    decided = set(session.scalars(select(Payment.order_id).where(Payment.order_id.in_(order_ids))))
    results = []
    for each in charges:
        results.append(_decide(each, accounts_by_user.get(each.user_id), decided))
        decided.add(each.order_id)
    new = [result for result in results if result.decided_now]
    _write(session, new, accounts_by_user)
    outbox.add_all(session, [payment_decided(result) for result in new])
    return results


def _decide(charge: Charge, account: _Account | None, decided: set[UUID]) -> ChargeResult:
    balance = account.balance if account else None
    if charge.order_id in decided:
        return ChargeResult(charge, balance, None, decided_now=False)
    if account is None:
        return ChargeResult(charge, None, Reason.ACCOUNT_NOT_FOUND)
    if account.balance < charge.amount:
        return ChargeResult(charge, balance, Reason.INSUFFICIENT_FUNDS)
    account.balance -= charge.amount
    return ChargeResult(charge, account.balance, None)


def _write(
    session: Session, results: Sequence[ChargeResult], accounts_by_user: dict[UUID, _Account]
) -> None:
    if not results:
        return
    session.execute(
        INSERT_PAYMENTS,
        {
            "order_ids": [str(result.charge.order_id) for result in results],
            "user_ids": [str(result.charge.user_id) for result in results],
            "amounts": [result.charge.amount for result in results],
            "statuses": ["failed" if result.reason else "succeeded" for result in results],
            "reasons": [result.reason and result.reason.value for result in results],
        },
    )
    paid = [result.charge for result in results if result.reason is None]
    if not paid:
        return
    accounts = [accounts_by_user[each.user_id] for each in paid]
    session.execute(
        INSERT_CHARGES,
        {
            "kind": CHARGE,
            "sales": SALES,
            "account_ids": [account.id for account in accounts],
            "amounts": [each.amount for each in paid],
            "order_ids": [str(each.order_id) for each in paid],
        },
    )
    balances = {account.id: account.balance for account in accounts}
    session.execute(UPDATE_BALANCES, {"ids": [*balances], "balances": [*balances.values()]})
