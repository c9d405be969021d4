"""Use cases: open an account, deposit, and read the balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, bindparam, literal, select, update
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
    """The path and the body of a deposit name different users."""


# Built once: building a statement costs as much as executing it (benchmarks/README.md).
_OPEN_ACCOUNT = (
    insert(Account).on_conflict_do_nothing(index_elements=[Account.user_id]).returning(Account.id)
)
# A deposit is one statement: the UPDATE is a CTE of the INSERT. They change the Tables, not the
# mapped classes: the session then executes them without the ORM's steps for an INSERT.
_CREDITED = (
    update(Account.__table__)  # type: ignore[arg-type]  # it is a Table
    .where(
        Account.user_id == bindparam("owner"),
        Account.balance <= bindparam("max_balance_before"),
    )
    .values(balance=Account.balance + bindparam("amount"))
    .returning(Account.id)
    .cte("credited")
)
_DEPOSIT = (
    insert(Transfer.__table__)  # type: ignore[arg-type]  # it is a Table
    .from_select(
        ["from_account_id", "to_account_id", "amount", "kind"],
        select(
            select(Account.id).where(Account.name == WORLD).scalar_subquery(),
            _CREDITED.c.id,
            bindparam("amount", type_=BigInteger),
            literal(DEPOSIT),
        ),
    )
    .returning(Transfer.id)
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
    """Move an amount, in minor units, from the account of the world to a user's account.

    The account of the world stands for everything outside: all deposits come from it.

    Raises:
        UnknownAccountError: the user has no account.
        BalanceOverflowError: the balance would be above `AMOUNT_MAX`.
    """
    parameters = {"owner": user_id, "max_balance_before": AMOUNT_MAX - amount, "amount": amount}
    if session.scalar(_DEPOSIT, parameters) is None:
        balance = read_balance(session, user_id)  # raises UnknownAccountError without an account
        raise BalanceOverflowError(
            f"A deposit of {amount} would raise the balance of user {user_id}, {balance}, above"
            f" {AMOUNT_MAX}."
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
