"""Statements: an account's transfers, newest first, with the balance after each.

No balance is stored with a transfer. A page counts back from one that is known: the first from the
account's balance, which the same snapshot holds, each other from where the page before it ended.
So it costs the same wherever it begins; and transfers never change, nor does what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, desc, select, true, tuple_, union_all

from services.payments.accounts import UnknownAccountError
from services.payments.models import AMOUNT_MAX, CHARGE, DEPOSIT, Account, Transfer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import BindParameter, Select
    from sqlalchemy.orm import InstrumentedAttribute, Session


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer into or out of a user's account; its id is of the transfers of all accounts.

    Args:
        id: later transfers of the account have higher ones.
        kind: `deposit`, into the account, or `charge`, out of it.
        amount: in minor units, positive either way.
        order_id: that was paid; None for a deposit.
        balance: of the account after it, in minor units.
        created_at: when it was made.
    """

    id: int
    kind: str
    amount: int
    order_id: UUID | None
    balance: int
    created_at: datetime

    @property
    def balance_before(self) -> int:
        """The balance that the transfer found."""
        return self.balance - self.amount if self.kind == DEPOSIT else self.balance + self.amount


@dataclass(frozen=True, slots=True)
class Page:
    """Transfers of an account, newest first.

    Args:
        entries: the transfers.
        more: whether others come after them.
    """

    entries: Sequence[Entry]
    more: bool


def _range_of(kind: str, account: InstrumentedAttribute[int]) -> Select[*tuple[Any, ...]]:
    """Select an account's newest transfers of one kind, from one contiguous range of an index.

    Its order begins with the account. Ordered by id alone, it could also be read by the primary
    key: for an account that once had most transfers, through all that others had since.
    """
    account_id: BindParameter[int] = bindparam("account_id")
    before: BindParameter[int] = bindparam("before")
    return (
        select(Transfer.id, Transfer.kind, Transfer.amount, Transfer.order_id, Transfer.created_at)
        .where(
            Transfer.kind == kind,
            account >= account_id,
            tuple_(account, Transfer.id) < tuple_(account_id, before),
        )
        .order_by(account.desc(), Transfer.id.desc())
        .limit(bindparam("read_limit"))
    )


def _page_query() -> Select[Any]:
    """Make the query of a page.

    The balance is read by the same statement: between two, a transfer could be made.
    """
    merged = union_all(
        _range_of(DEPOSIT, Transfer.to_account_id), _range_of(CHARGE, Transfer.from_account_id)
    )
    newest = merged.order_by(desc("id")).limit(bindparam("read_limit")).subquery()
    return (
        select(Account.balance, newest)
        .join_from(Account, newest, true(), isouter=True)
        .where(Account.id == bindparam("account_id"))
        .order_by(newest.c.id.desc())
    )


# Built once: to build one takes as long as to execute it.
_ACCOUNT_ID = select(Account.id).where(Account.user_id == bindparam("owner"))
_PAGE = _page_query()


def page(
    session: Session, user_id: UUID, *, limit: int, after: tuple[int, int] | None = None
) -> Page:
    """A page of the statement of a user's account.

    Args:
        session: reads it.
        user_id: whose.
        limit: how many transfers at most.
        after: id and `balance_before` of the transfer before the first.

    Raises:
        UnknownAccountError: the user has no account.
    """
    account_id = session.scalar(_ACCOUNT_ID, {"owner": user_id})
    if account_id is None:
        raise UnknownAccountError(f"User {user_id} has no account.")
    # Ids are below the largest int64 by far: each is one of the identity's, which begins at 1.
    before, balance = after or (AMOUNT_MAX, None)
    rows = session.execute(
        _PAGE, {"account_id": account_id, "before": before, "read_limit": limit + 1}
    ).all()
    entries: list[Entry] = []
    for row in rows[:limit]:
        if row.id is None:
            break
        if balance is None:
            balance = row.balance
        entry = Entry(row.id, row.kind, row.amount, row.order_id, balance, row.created_at)
        entries.append(entry)
        balance = entry.balance_before
    return Page(entries, more=len(rows) > limit)
