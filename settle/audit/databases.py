"""Read the services' databases into the scratch database, each in one snapshot."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from settle.audit.ids import as_uuids, parse_uuid
from settle_outbox.storage.database import make_engine
from settle_outbox.storage.partitions import existing_days

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from settle.audit.flow import Flow
    from settle.audit.scratch import Scratch
    from settle.progress import Step
    from settle_outbox.settings import Settings

CHUNK = 2_000
# Few, because the headers of a dead letter may take a megabyte.
DEAD_LETTERS_PER_CHUNK = 10

# One snapshot for everything that is read. It blocks no writer. It blocks a migration, and the drop
# of a partition, which relays and consumers try again later.
_BEGIN = text(
    """
    SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL lock_timeout = '10s'
    """
)

_ORDERS = "SELECT uuid_send(id), uuid_send(user_id), amount, status FROM orders"

_OUTBOX = """
SELECT uuid_send(o.id), o.seq, o.aggregateid, o.type, {payload},
    CASE WHEN p.id IS NOT NULL THEN 'pending' WHEN r.id IS NOT NULL THEN 'refused' ELSE 'sent' END,
    (extract(epoch FROM o.created_at) * 1000000)::bigint, {committed_us}
FROM outbox o
LEFT JOIN outbox_pending p ON p.shard = o.shard AND p.seq = o.seq
LEFT JOIN outbox_refused r ON r.seq = o.seq
"""
_COMMITTED_US = "(extract(epoch FROM pg_xact_commit_timestamp(o.xmin)) * 1000000)::bigint"

_PAYMENTS = """
SELECT uuid_send(coalesce(p.order_id, c.order_id)), uuid_send(p.user_id), p.amount, p.status,
    (extract(epoch FROM p.created_at) * 1000000)::bigint,
    uuid_send(c.user_id), c.amount, c.charges
FROM payments p
FULL JOIN (
    SELECT t.order_id, min(a.user_id::text)::uuid AS user_id, sum(t.amount)::bigint AS amount,
        count(*) AS charges
    FROM transfers t JOIN accounts a ON a.id = t.from_account_id
    WHERE t.kind = 'charge' GROUP BY t.order_id
) c ON c.order_id = p.order_id
"""

_INBOX = "SELECT uuid_send(id), source, type, outcome FROM inbox"
_DEAD = "SELECT event_id::text, headers FROM dead_letters WHERE topic = :topic"
_HORIZON = "SELECT uuid_send(before) FROM inbox_horizon ORDER BY before DESC LIMIT 1"
_STATUSES = "SELECT status, uuid_send(id) FROM orders WHERE id = ANY(CAST(:ids AS uuid[]))"


class Snapshot:
    """A snapshot of a service's database.

    Args:
        connection: a connection in a transaction with that snapshot.
        topic_prefix: the setting TOPIC_PREFIX.
    """

    def __init__(self, connection: Connection, topic_prefix: str) -> None:
        self.connection = connection
        self.topic_prefix = topic_prefix

    def count(self, *tables: str) -> int:
        """Return the number of rows of some tables."""
        counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)  # noqa: S608 - constant names
        return int(self.connection.execute(text(f"SELECT {counts}")).scalar_one())

    def stream(self, sql: str, *, chunk: int = CHUNK, **parameters: Any) -> Iterator[list[Any]]:
        """Yield the rows of a query in chunks, through a cursor on the server."""
        streaming = self.connection.execution_options(stream_results=True, max_row_buffer=chunk)
        with streaming.execute(text(sql), parameters) as result:
            for rows in result.partitions(chunk):
                yield list(map(tuple, rows))

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        """Return all rows of a small query."""
        return list(self.connection.execute(text(sql), parameters).all())


@contextmanager
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    """Open a snapshot of a service's database.

    Raises:
        SQLAlchemyError: the database cannot be reached, or refuses.
    """
    engine = make_engine(settings.database_url, application_name="settle-audit", pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(_BEGIN)
            yield Snapshot(connection, settings.topic_prefix)
    finally:
        engine.dispose()


def read_orders(database: Snapshot, scratch: Scratch, step: Step) -> None:
    """Read all orders."""
    for rows in database.stream(_ORDERS):
        scratch.add("INSERT INTO orders VALUES (?, ?, ?, ?, NULL)", rows)
        step.add(len(rows))


def read_outbox(database: Snapshot, scratch: Scratch, flow: Flow, step: Step) -> set[datetime]:
    """Read all events of a service's outbox, sent or not.

    Returns:
        The days that have a partition in the outbox.
    """
    ((tracked,),) = database.rows("SELECT current_setting('track_commit_timestamp')")
    sql = _OUTBOX.format(
        # The key of a payment result is the order's id. The key of order.created is the user's id,
        # so the order's id is read from the payload.
        payload="o.payload" if flow.source == "orders" else "NULL",
        committed_us=_COMMITTED_US if tracked == "on" else "NULL",
    )
    for rows in database.stream(sql):
        scratch.add(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (flow.source, id_, seq, key, type_, _order_id(key, payload), state, *times)
                for id_, seq, key, type_, payload, state, *times in rows
            ),
        )
        step.add(len(rows))
    return existing_days(database.connection, "outbox")


def _order_id(key: str, payload: Any) -> bytes | None:
    if payload is None:
        return parse_uuid(key)
    try:
        return parse_uuid(json.loads(bytes(payload))["order_id"])
    except (ValueError, LookupError, TypeError):
        return None  # an event that names no order


def read_payments(database: Snapshot, scratch: Scratch, step: Step) -> None:
    """Read the decision on each order, and the charges."""
    for rows in database.stream(_PAYMENTS):
        scratch.add("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        step.add(len(rows))


def read_inbox(database: Snapshot, scratch: Scratch, flow: Flow, step: Step) -> int:
    """Read the events that a service has received, and its dead letters.

    Returns:
        The number of events from other sources.
    """
    foreign = 0
    for rows in database.stream(_INBOX):
        known = [row for row in rows if row[1] == flow.ce_source]
        foreign += len(rows) - len(known)
        scratch.add(
            "INSERT INTO inbox VALUES (?, ?, ?, ?)",
            ((flow.source, id_, type_, outcome) for id_, _, type_, outcome in known),
        )
        step.add(len(rows))
    topic = f"{database.topic_prefix}{flow.topic}"
    for rows in database.stream(_DEAD, chunk=DEAD_LETTERS_PER_CHUNK, topic=topic):
        ids = (_dead_id(*row) for row in rows)
        scratch.add(
            "INSERT OR IGNORE INTO dead VALUES (?, ?)",
            ((flow.source, id_) for id_ in ids if id_ is not None),
        )
    for row in database.rows(_HORIZON):
        scratch.add("INSERT INTO horizon VALUES (?, ?)", [(flow.source, *row)])
    return foreign


def _dead_id(event_id: str | None, headers: list[list[Any]]) -> bytes | None:
    """Return the event id of a dead letter. For an invalid event, it may be in the headers."""
    ids = [value for name, value in headers if name == "ce_id"]
    return parse_uuid(event_id or (ids[0] if ids else None))


def read_latest_statuses(database: Snapshot, scratch: Scratch) -> None:
    """Read again the status of the orders that were not final before."""
    for ids in scratch.id_batches("SELECT id FROM orders WHERE status = 'created' AND id > :last"):
        rows = database.rows(_STATUSES, ids=as_uuids(ids))
        scratch.add("UPDATE orders SET latest = ? WHERE id = ?", map(tuple, rows))
