"""Statements: an account's transfers, newest first, with the balance after each.

No balance is stored with a transfer. A page counts back from one that is known: the first from the
account's balance, which the same snapshot holds, each other from where the page before it ended.
So it costs the same wherever it begins; and transfers never change, nor does what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from services.payments.accounts import UnknownAccountError
from services.payments.models import AMOUNT_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session


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
        return self.balance - self.amount if self.kind == "deposit" else self.balance + self.amount


@dataclass(frozen=True, slots=True)
class Page:
    """Transfers of an account, newest first.

    Args:
        entries: the transfers.
        more: whether others come after them.
    """

    entries: Sequence[Entry]
    more: bool


_ACCOUNT = text("SELECT id FROM accounts WHERE user_id = :user_id")

# With a limit in each branch, so that each is read in its index's order and no further. That order
# begins with the account. Ordered by id alone, a branch could also be read by the primary key: for
# an account that once had most transfers, through all that others had since. The balance in the
# same statement, or a transfer might come between the two.
_PAGE = text(
    """
    SELECT account.balance, transfer.id, kind, amount, order_id, created_at
    FROM accounts AS account
    LEFT JOIN (
        (
            SELECT id, kind, amount, order_id, created_at FROM transfers
            WHERE kind = 'deposit' AND to_account_id >= :account_id
                AND (to_account_id, id) < (:account_id, :before)
            ORDER BY to_account_id DESC, id DESC LIMIT :most
        ) UNION ALL (
            SELECT id, kind, amount, order_id, created_at FROM transfers
            WHERE kind = 'charge' AND from_account_id >= :account_id
                AND (from_account_id, id) < (:account_id, :before)
            ORDER BY from_account_id DESC, id DESC LIMIT :most
        )
        ORDER BY id DESC LIMIT :most
    ) AS transfer ON true
    WHERE account.id = :account_id
    ORDER BY transfer.id DESC
    """
)


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
    account_id = session.scalar(_ACCOUNT, {"user_id": user_id})
    if account_id is None:
        raise UnknownAccountError(f"User {user_id} has no account.")
    # Ids are below the largest int64 by far: each is one of the identity's, which begins at 1.
    before, balance = after or (AMOUNT_MAX, None)
    rows = session.execute(
        _PAGE, {"account_id": account_id, "before": before, "most": limit + 1}
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
