"""Opening accounts, depositing, query_runner for the balance."""

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
    """The user has an account already."""


class UnknownAccountError(SettleError):
    """The user has no account."""


class BalanceOverflowError(SettleError):
    """A deposit would raise the balance above what can be stored."""


class UserMismatchError(SettleError):
    """A deposit names two users."""


# These are built once: to build one takes as long as to execute it.
_CREATE = (
    insert(Account).on_conflict_do_nothing(index_elements=[Account.user_id]).returning(Account.id)
)
_WORLD_ID = select(Account.id).where(Account.name == WORLD).scalar_subquery()
# On the table: an UPDATE of the class would look for loaded accounts to refresh; none is loaded.
_CREDIT = (
    update(Account.__table__)  # type: ignore[arg-type]  # it is a Table
    .where(Account.user_id == bindparam("owner"), Account.balance <= bindparam("highest_balance"))
    .values(balance=Account.balance + bindparam("amount"))
    .returning(Account.id, _WORLD_ID.label("world_id"))
)
_BALANCE = select(Account.balance).where(Account.user_id == bindparam("owner"))


def create(session: Session, user_id: UUID) -> None:
    """Open a user's account, with nothing in it.

    Raises:
        AccountExistsError: the user has one.
    """
    if session.scalar(_CREATE, {"user_id": user_id, "balance": 0}) is None:
        raise AccountExistsError(f"User {user_id} has an account already.")


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
        found = balance(session, user_id)
        raise BalanceOverflowError(
            f"A deposit of {amount} would raise the balance of user {user_id}, {found}, above"
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


def balance(session: Session, user_id: UUID) -> int:
    """A user's balance, in minor units.

    Raises:
        UnknownAccountError: the user has no account.
    """
    found = session.scalar(_BALANCE, {"owner": user_id})
    if found is None:
        raise UnknownAccountError(f"User {user_id} has no account.")
    return found
