"""Use cases: open an account, deposit, and read the balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.postgresql import insert

from services.payments.models import AMOUNT_MAX, DEPOSIT, WORLD, Account, Transfer
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import Session


class AccountExistsError(SettleError):
    """The user already has an account."""


class UnknownAccountError(SettleError):
    """The user has no account."""

    def __init__(self, user_id: UUID) -> None:
        super().__init__(f"User {user_id} has no account.")


class BalanceOverflowError(SettleError):
    """A deposit would raise the balance above what can be stored."""


class UserMismatchError(SettleError):
    """A deposit names two users."""


# Built once: building a statement costs as much as executing it (benchmarks/README.md).
_OPEN_ACCOUNT = (
    insert(Account).on_conflict_do_nothing(index_elements=[Account.user_id]).returning(Account.id)
)
_WORLD_ID = select(Account.id).where(Account.name == WORLD).scalar_subquery()
# An UPDATE of the table, not of the class: that would look for loaded accounts to refresh.
_CREDIT = (
    update(Account.__table__)  # type: ignore[arg-type]  # it is a Table
    .where(Account.user_id == bindparam("owner"), Account.balance <= bindparam("highest_balance"))
    .values(balance=Account.balance + bindparam("amount"))
    .returning(Account.id, _WORLD_ID.label("world_id"))
)
_READ_BALANCE = select(Account.balance).where(Account.user_id == bindparam("owner"))


def open_account(session: Session, user_id: UUID) -> None:
    """Open an account with the balance zero.

    Raises:
        AccountExistsError: the user already has an account.
    """
    if session.scalar(_OPEN_ACCOUNT, {"user_id": user_id, "balance": 0}) is None:
        raise AccountExistsError(f"User {user_id} already has an account.")


def deposit(session: Session, user_id: UUID, amount: int) -> None:
    """Move an amount, in minor units, from the world to a user's account.

    Raises:
        UnknownAccountError: the user has no account.
        BalanceOverflowError: the balance would be above `AMOUNT_MAX`.
    """
    credited = session.execute(
        _CREDIT, {"owner": user_id, "highest_balance": AMOUNT_MAX - amount, "amount": amount}
    ).one_or_none()
    if credited is None:
        balance = read_balance(session, user_id)
        raise BalanceOverflowError(
            f"A deposit of {amount} would raise the balance of user {user_id}, {balance}, above"
            f" {AMOUNT_MAX}."
        )
    session.add(
        Transfer(
            from_account_id=credited.world_id,
            to_account_id=credited.id,
            amount=amount,
            kind=DEPOSIT,
        )
    )


def read_balance(session: Session, user_id: UUID) -> int:
    """Return a user's balance, in minor units.

    Raises:
        UnknownAccountError: the user has no account.
    """
    balance = session.scalar(_READ_BALANCE, {"owner": user_id})
    if balance is None:
        raise UnknownAccountError(user_id)
    return balance
