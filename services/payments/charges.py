"""Charging users for their orders, a whole batch by a fixed count of statements."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import select, text

from services.payments.models import accounts, payments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session


class Reason(StrEnum):
    """Why an order could not be paid."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    ACCOUNT_NOT_FOUND = "account_not_found"


@dataclass(frozen=True, slots=True)
class Charge:
    """An order to be paid by its user. The amount is in minor units."""

    order_id: UUID
    user_id: UUID
    amount: int


@dataclass(frozen=True, slots=True)
class Payment:
    """What became of a charge.

    Args:
        charge: what was to be paid.
        balance: of the account after it, in minor units; None when there is no account.
        reason: why it failed; None when it succeeded.
        decided_now: False when the order had its payment before: nothing was done.
    """

    charge: Charge
    balance: int | None
    reason: Reason | None
    decided_now: bool = True


@dataclass(slots=True)
class _Account:
    id: int
    balance: int
    charged: bool = False


# NO KEY UPDATE: a transfer that refers to the account need not wait. By id: two that lock
# several accounts take them in one order, and cannot deadlock.
_LOCK_ACCOUNTS = (
    select(accounts.c.user_id, accounts.c.id, accounts.c.balance)
    .order_by(accounts.c.id)
    .with_for_update(key_share=True)
)

_INSERT_PAYMENTS = text(
    """
    INSERT INTO payments (order_id, user_id, amount, status, reason)
    SELECT order_id, user_id, amount, status, reason
    FROM unnest(
        CAST(:order_ids AS uuid[]), CAST(:user_ids AS uuid[]), CAST(:amounts AS bigint[]),
        CAST(:statuses AS text[]), CAST(:reasons AS text[])
    ) AS payment (order_id, user_id, amount, status, reason)
    """
)

_INSERT_TRANSFERS = text(
    """
    INSERT INTO transfers (from_account_id, to_account_id, amount, kind, order_id)
    SELECT charge.account_id, sales.id, charge.amount, 'charge', charge.order_id
    FROM accounts AS sales, unnest(
        CAST(:account_ids AS bigint[]), CAST(:amounts AS bigint[]), CAST(:order_ids AS uuid[])
    ) WITH ORDINALITY AS charge (account_id, amount, order_id, position)
    WHERE sales.name = 'sales'
    ORDER BY charge.position
    """
)

_UPDATE_BALANCES = text(
    """
    UPDATE accounts SET balance = charged.balance
    FROM unnest(CAST(:ids AS bigint[]), CAST(:balances AS bigint[])) AS charged (id, balance)
    WHERE accounts.id = charged.id
    """
)


def charge(session: Session, charges: Sequence[Charge]) -> list[Payment]:
    """Charge users for orders, one after the other, where their balance covers the amount.

    An order is decided once: one that failed is not revived by a later deposit, one that was
    paid is not paid again.

    Returns:
        A payment for each charge, in their order.
    """
    accounts_by_user = _lock_accounts(session, charges)
    # Read after the locks are held: a transaction that had them before is visible now.
    decided = _decided_orders(session, charges)
    made = []
    for each in charges:
        made.append(_decide(each, accounts_by_user.get(each.user_id), decided))
        decided.add(each.order_id)
    _write(session, [payment for payment in made if payment.decided_now], accounts_by_user)
    return made


def _lock_accounts(session: Session, charges: Sequence[Charge]) -> dict[UUID, _Account]:
    user_ids = {each.user_id for each in charges}
    rows = session.execute(_LOCK_ACCOUNTS.where(accounts.c.user_id.in_(user_ids)))
    return {user_id: _Account(account_id, balance) for user_id, account_id, balance in rows}


def _decided_orders(session: Session, charges: Sequence[Charge]) -> set[UUID]:
    order_ids = {each.order_id for each in charges}
    return set(
        session.execute(
            select(payments.c.order_id).where(payments.c.order_id.in_(order_ids))
        ).scalars()
    )


def _decide(charge: Charge, account: _Account | None, decided: set[UUID]) -> Payment:
    balance = account.balance if account else None
    if charge.order_id in decided:
        return Payment(charge, balance, None, decided_now=False)
    if account is None:
        return Payment(charge, None, Reason.ACCOUNT_NOT_FOUND)
    if account.balance < charge.amount:
        return Payment(charge, balance, Reason.INSUFFICIENT_FUNDS)
    account.balance -= charge.amount
    account.charged = True
    return Payment(charge, account.balance, None)


def _write(
    session: Session, made: Sequence[Payment], accounts_by_user: dict[UUID, _Account]
) -> None:
    if not made:
        return
    session.execute(
        _INSERT_PAYMENTS,
        {
            "order_ids": [str(payment.charge.order_id) for payment in made],
            "user_ids": [str(payment.charge.user_id) for payment in made],
            "amounts": [payment.charge.amount for payment in made],
            "statuses": ["failed" if payment.reason else "succeeded" for payment in made],
            "reasons": [payment.reason and payment.reason.value for payment in made],
        },
    )
    paid = [payment.charge for payment in made if payment.reason is None]
    if not paid:
        return
    session.execute(
        _INSERT_TRANSFERS,
        {
            "account_ids": [accounts_by_user[each.user_id].id for each in paid],
            "amounts": [each.amount for each in paid],
            "order_ids": [str(each.order_id) for each in paid],
        },
    )
    charged = [account for account in accounts_by_user.values() if account.charged]
    session.execute(
        _UPDATE_BALANCES,
        {
            "ids": [account.id for account in charged],
            "balances": [account.balance for account in charged],
        },
    )
