"""Use case: read the statement of an account: its transfers, newest first, and the balances.

No balance is stored with a transfer. The first page starts with the account's balance, read in the
same snapshot, and counts backwards. Each further page continues with the balance at which the page
before it ended. So every page costs the same. Transfers never change, so the balances do not
either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import BindParameter, Select, bindparam, desc, select, true, tuple_, union_all

from services.payments.accounts import UnknownAccountError
from services.payments.models import AMOUNT_MAX, CHARGE, DEPOSIT, Account, Transfer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import InstrumentedAttribute, Session


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer into or out of a user's account, and the account's balance after it.

    Amounts are in minor units, and positive for both kinds. A deposit has no order.
    """

    id: int
    kind: str
    amount: int
    order_id: UUID | None
    balance: int
    created_at: datetime

    @property
    def balance_before(self) -> int:
        """The balance before the transfer, in minor units."""
        return self.balance - self.amount if self.kind == DEPOSIT else self.balance + self.amount


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a statement, newest first, and whether there are more transfers."""

    entries: Sequence[Entry]
    more: bool


def _range_of(kind: str, account: InstrumentedAttribute[int]) -> Select[*tuple[Any, ...]]:
    """Select an account's newest transfers of one kind, from one contiguous range of an index.

    ORDER BY begins with the account. If it had the id alone, the planner could read the primary key
    instead of this index. For an account whose transfers are old, it would read all later transfers
    of other accounts.
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


# Built once: building a statement costs as much as executing it (benchmarks/README.md).
_ACCOUNT_ID = select(Account.id).where(Account.user_id == bindparam("owner"))
_NEWEST = (
    union_all(
        _range_of(DEPOSIT, Transfer.to_account_id), _range_of(CHARGE, Transfer.from_account_id)
    )
    .order_by(desc("id"))
    .limit(bindparam("read_limit"))
    .subquery()
)
# The same statement reads the balance. Between two statements, a transfer could be made.
_PAGE = (
    select(Account.balance, _NEWEST)
    .join_from(Account, _NEWEST, true(), isouter=True)
    .where(Account.id == bindparam("account_id"))
    .order_by(_NEWEST.c.id.desc())
)


def read_page(
    session: Session, user_id: UUID, *, limit: int, after: tuple[int, int] | None = None
) -> Page:
    """Return a page of the statement of a user's account.

    Args:
        session: reads it.
        user_id: the user.
        limit: maximum number of transfers.
        after: id and `balance_before` of the last transfer of the previous page; None for the first
            page.

    Raises:
        UnknownAccountError: the user has no account.
    """
    account_id = session.scalar(_ACCOUNT_ID, {"owner": user_id})
    if account_id is None:
        raise UnknownAccountError(user_id)
    # All ids are below AMOUNT_MAX: they come from an identity column that starts at 1.
    before, balance = after or (AMOUNT_MAX, None)
    parameters = {"account_id": account_id, "before": before, "read_limit": limit + 1}
    rows = session.execute(_PAGE, parameters).all()
    entries: list[Entry] = []
    for row in rows[:limit]:
        if row.id is None:  # no transfer: the outer join gives one row
            break
        if balance is None:
            balance = row.balance
        entry = Entry(row.id, row.kind, row.amount, row.order_id, balance, row.created_at)
        entries.append(entry)
        balance = entry.balance_before
    return Page(entries, more=len(rows) > limit)
