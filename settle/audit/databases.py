"""Reading the services' databases into the scratch database, each reading in one snapshot."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from settle.audit.ids import as_uuids, parse_uuid
from settle_outbox.storage.database import make_engine
from settle_outbox.storage.partitions import existing_days

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from settle.audit.flow import Flow
    from settle.audit.scratch import Scratch
    from settle_outbox.settings import Settings

    Tell = Callable[[int], None]

CHUNK = 2_000
# The headers of one may have a megabyte.
DEAD_LETTERS_AT_ONCE = 10

# One snapshot for all that is read. Nobody waits for what only reads, but for partitions that are
# to be dropped: relays and consumers try again later.
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
    """One moment of a service's database.

    Args:
        connection: in a transaction that sees that moment.
        topic_prefix: what stands before the names of the topics.
    """

    def __init__(self, connection: Connection, topic_prefix: str) -> None:
        self.connection = connection
        self.topic_prefix = topic_prefix

    def count(self, *tables: str) -> int:
        """How many rows the tables have."""
        counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)  # noqa: S608 - names of ours
        return int(self.connection.execute(text(f"SELECT {counts}")).scalar_one())

    def stream(
        self, sql: str, *, rows_at_once: int = CHUNK, **parameters: Any
    ) -> Iterator[list[Any]]:
        """The rows of a query, some at a time, through a cursor on the server."""
        streaming = self.connection.execution_options(
            stream_results=True, max_row_buffer=rows_at_once
        )
        with streaming.execute(text(sql), parameters) as result:
            for rows in result.partitions(rows_at_once):
                yield list(map(tuple, rows))

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        """The few rows of a query."""
        return list(self.connection.execute(text(sql), parameters).all())


@contextmanager
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    """Read a service's database as it is now, whatever is written meanwhile.

    Raises:
        SQLAlchemyError: it cannot be reached, or refuses.
    """
    engine = make_engine(settings.database_url, application_name="settle-audit", pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(_BEGIN)
            yield Snapshot(connection, settings.topic_prefix)
    finally:
        engine.dispose()


def read_orders(found: Snapshot, scratch: Scratch, tell: Tell) -> None:
    """Read all orders."""
    for rows in found.stream(_ORDERS):
        scratch.add("INSERT INTO orders VALUES (?, ?, ?, ?, NULL)", rows)
        tell(len(rows))


def read_outbox(found: Snapshot, scratch: Scratch, flow: Flow, tell: Tell) -> set[datetime]:
    """Read all events that a service has published or is about to.

    Returns:
        The days of which the outbox has a partition.
    """
    ((tracked,),) = found.rows("SELECT current_setting('track_commit_timestamp')")
    sql = _OUTBOX.format(
        # The key of a result is its order; that of an order is its user.
        payload="o.payload" if flow.source == "orders" else "NULL",
        committed_us=_COMMITTED_US if tracked == "on" else "NULL",
    )
    for rows in found.stream(sql):
        scratch.add(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (flow.source, id_, seq, key, type_, _order_id(key, payload), state, *times)
                for id_, seq, key, type_, payload, state, *times in rows
            ),
        )
        tell(len(rows))
    return existing_days(found.connection, "outbox")


def _order_id(key: str, payload: Any) -> bytes | None:
    if payload is None:
        return parse_uuid(key)
    try:
        return parse_uuid(json.loads(bytes(payload))["order_id"])
    except (ValueError, LookupError, TypeError):
        return None  # an event without an order


def read_payments(found: Snapshot, scratch: Scratch, tell: Tell) -> None:
    """Read what became of each order, and the charges."""
    for rows in found.stream(_PAYMENTS):
        scratch.add("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        tell(len(rows))


def read_inbox(found: Snapshot, scratch: Scratch, flow: Flow, tell: Tell) -> int:
    """Read which events a service has received, and which it could not apply.

    Returns:
        How many of them are from elsewhere.
    """
    foreign = 0
    for rows in found.stream(_INBOX):
        ours = [row for row in rows if row[1] == flow.ce_source]
        foreign += len(rows) - len(ours)
        scratch.add(
            "INSERT INTO inbox VALUES (?, ?, ?, ?)",
            ((flow.source, id_, type_, outcome) for id_, _, type_, outcome in ours),
        )
        tell(len(rows))
    topic = f"{found.topic_prefix}{flow.topic}"
    for rows in found.stream(_DEAD, rows_at_once=DEAD_LETTERS_AT_ONCE, topic=topic):
        ids = (_dead_id(*row) for row in rows)
        scratch.add(
            "INSERT OR IGNORE INTO dead VALUES (?, ?)",
            ((flow.source, id_) for id_ in ids if id_ is not None),
        )
    for row in found.rows(_HORIZON):
        scratch.add("INSERT INTO horizon VALUES (?, ?)", [(flow.source, *row)])
    return foreign


def _dead_id(event_id: str | None, headers: list[list[Any]]) -> bytes | None:
    """The id of what was parked, which may be no event and yet have one."""
    told = [value for name, value in headers if name == "ce_id"]
    return parse_uuid(event_id or (told[0] if told else None))


def read_latest_statuses(found: Snapshot, scratch: Scratch) -> None:
    """Read again how the orders are that were not final before."""
    last = b""
    while True:
        query = (
            "SELECT id FROM orders WHERE status = 'created' AND id > :last ORDER BY id LIMIT 1000"
        )
        ids = [id_ for (id_,) in scratch.rows(query, last=last)]
        if not ids:
            return
        rows = found.rows(_STATUSES, ids=as_uuids(ids))
        scratch.add("UPDATE orders SET latest = ? WHERE id = ?", map(tuple, rows))
        last = ids[-1]
