"""The SQL of the batch handler.

Each statement takes a batch as arrays, one per column. Its text is the same for every batch size,
so it is compiled once. The ORM would write a batch of 500 as 500 rows of literals (INSERT) or as
500 statements (UPDATE).
"""

from __future__ import annotations

from sqlalchemy import text

INSERT_PAYMENTS = text(
    """
    INSERT INTO payments (order_id, user_id, amount, status, reason)
    SELECT order_id, user_id, amount, status, reason
    FROM unnest(
        CAST(:order_ids AS uuid[]), CAST(:user_ids AS uuid[]), CAST(:amounts AS bigint[]),
        CAST(:statuses AS text[]), CAST(:reasons AS text[])
    ) AS payment (order_id, user_id, amount, status, reason)
    """
)

# Ordered by position, so that the ids of the transfers ascend in the order of the charges. The
# statement of an account computes its balances in the order of the ids.
INSERT_CHARGES = text(
    """
    INSERT INTO transfers (from_account_id, to_account_id, amount, kind, order_id)
    SELECT charge.account_id, sales.id, charge.amount, :kind, charge.order_id
    FROM accounts AS sales, unnest(
        CAST(:account_ids AS bigint[]), CAST(:amounts AS bigint[]), CAST(:order_ids AS uuid[])
    ) WITH ORDINALITY AS charge (account_id, amount, order_id, position)
    WHERE sales.name = :sales
    ORDER BY charge.position
    """
)

# Each account gets its own balance. `unnest` makes a row for each account from the arrays, so that
# one UPDATE sets them all.
UPDATE_BALANCES = text(
    """
    UPDATE accounts SET balance = charged.balance
    FROM unnest(CAST(:ids AS bigint[]), CAST(:balances AS bigint[])) AS charged (id, balance)
    WHERE accounts.id = charged.id
    """
)
