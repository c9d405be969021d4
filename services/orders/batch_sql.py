"""The SQL of the batch handler.

The statement takes a batch as arrays, one per column. Its text is the same for every batch size, so
it is compiled once. The ORM would send an UPDATE for each of up to 500 orders.
"""

from __future__ import annotations

from sqlalchemy import text

# Each order gets its own status and reason. `unnest` makes a row for each order from the arrays, so
# that one UPDATE sets them all. `created_at` is from the API's clock. `greatest` keeps `updated_at`
# from being before it if the database's clock is behind.
UPDATE_STATUSES = text(
    """
    UPDATE orders
    SET status = settled.status,
        failure_reason = settled.failure_reason,
        updated_at = greatest(clock_timestamp(), orders.created_at)
    FROM unnest(
        CAST(:ids AS uuid[]), CAST(:statuses AS text[]), CAST(:failure_reasons AS text[])
    ) AS settled (id, status, failure_reason)
    WHERE orders.id = settled.id
    """
)
