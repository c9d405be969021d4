"""The SQL of the batch handler: what the ORM cannot say, or only row by row.

Each statement takes a batch as arrays, one for each column. Its text is the same for every size of
a batch, so it is compiled once. The ORM would write a batch of 500 as 500 rows of literals (INSERT)
or as 500 statements (UPDATE).
"""

from __future__ import annotations

from sqlalchemy import text

# The decisions, in one statement for the whole batch.
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

# By position, so that the ids of the transfers ascend as the charges were made: a statement of an
# account counts its balances back by id.
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

# Each account gets another balance, so one UPDATE needs a table of them.
UPDATE_BALANCES = text(
    """
    UPDATE accounts SET balance = charged.balance
    FROM unnest(CAST(:ids AS bigint[]), CAST(:balances AS bigint[])) AS charged (id, balance)
    WHERE accounts.id = charged.id
    """
)
