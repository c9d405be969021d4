"""Where an audit keeps what it has read: a SQLite database in a temporary folder.

Four sources of a million rows each have to be matched by id, in little memory. SQLite comes with
Python, keeps its B-trees on disk behind a cache of a set size, and sorts in runs that it merges on
disk: the checks are joins in SQL, in place of merges of sorted files written here. Nothing in it
outlives the audit, so it runs without a journal and never waits for the disk.

Ids are UUIDv7 and come nearly in their order, which is what a B-tree likes best.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CACHE_KIB = 16 * 1024

# `source` is the service that publishes the event, wherever its row was found.
_TABLES = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{CACHE_KIB};

-- `status` as it was first read; `latest` as it was read last, of those not final then.
CREATE TABLE orders (
    id BLOB PRIMARY KEY, user BLOB, amount INTEGER, status TEXT, latest TEXT
) WITHOUT ROWID;

-- A decision, or a charge without one (status is NULL then), or a decision without a charge.
CREATE TABLE payments (
    order_id BLOB PRIMARY KEY, user BLOB, amount INTEGER, status TEXT, began_us INTEGER,
    charged_user BLOB, charged INTEGER, charges INTEGER
) WITHOUT ROWID;

-- `state`: sent, pending or refused. Times in microseconds since 1970 by the database's clock.
CREATE TABLE outbox (
    source TEXT, id BLOB, seq INTEGER, key TEXT, type TEXT, order_id BLOB, state TEXT,
    began_us INTEGER, committed_us INTEGER, PRIMARY KEY (source, id)
) WITHOUT ROWID;

-- The first appearance of each event that says it is of that source.
CREATE TABLE topic (
    source TEXT, id BLOB, partition INTEGER, offset INTEGER, timestamp_ms INTEGER,
    PRIMARY KEY (source, id)
) WITHOUT ROWID;

-- `first_offset`: where the topic begins. `committed`: where its consumers go on; 0 when unknown.
-- `open_from`: where an open transaction begins, behind which nothing was read; NULL without one.
CREATE TABLE partition (
    source TEXT, number INTEGER, first_offset INTEGER, first_ms INTEGER, committed INTEGER,
    open_from INTEGER, PRIMARY KEY (source, number)
) WITHOUT ROWID;

CREATE TABLE inbox (
    source TEXT, id BLOB, type TEXT, outcome TEXT, PRIMARY KEY (source, id)
) WITHOUT ROWID;

-- The types of a source's events for which its target has a handler.
CREATE TABLE subscribed (source TEXT, type TEXT, PRIMARY KEY (source, type)) WITHOUT ROWID;

CREATE TABLE dead (source TEXT, id BLOB, PRIMARY KEY (source, id)) WITHOUT ROWID;

-- Below it, the inbox that takes the source's events has forgotten which it had.
CREATE TABLE horizon (source TEXT PRIMARY KEY, before BLOB) WITHOUT ROWID;

CREATE TABLE suspect (
    name TEXT, kind TEXT, id BLOB, detail TEXT, PRIMARY KEY (name, kind, id)
) WITHOUT ROWID;
"""

# Made when all is read: where each published event is by now, of those that are not applied.
_PLACES = """
CREATE INDEX outbox_of_order ON outbox (source, order_id);

CREATE TABLE stray (
    source TEXT, id BLOB, order_id BLOB, place TEXT, PRIMARY KEY (source, id)
) WITHOUT ROWID;
INSERT INTO stray
SELECT source, id, order_id, place FROM (
    SELECT e.source, e.id, e.order_id, CASE
        WHEN i.id IS NOT NULL THEN i.outcome
        WHEN d.id IS NOT NULL THEN 'dead letter'
        WHEN e.state <> 'sent' THEN e.state
        -- Its target counts it, and keeps nothing else of it.
        WHEN NOT EXISTS (
            SELECT 1 FROM subscribed s WHERE s.source = e.source AND s.type = e.type
        ) THEN 'skipped'
        WHEN e.id < (SELECT before FROM horizon h WHERE h.source = e.source) THEN 'forgotten'
        WHEN t.id IS NULL AND before_begin(e.source, e.key, e.seq) THEN 'beyond retention'
        -- It may lie behind the open transaction, in any partition that has one.
        WHEN t.id IS NULL AND EXISTS (
            SELECT 1 FROM partition o WHERE o.source = e.source AND o.open_from IS NOT NULL
        ) THEN 'unread'
        WHEN t.id IS NULL THEN 'lost'
        WHEN t.offset < p.committed THEN 'not received'
        ELSE 'unread'
    END AS place
    FROM outbox e
    LEFT JOIN inbox i ON i.source = e.source AND i.id = e.id
    LEFT JOIN dead d ON d.source = e.source AND d.id = e.id
    LEFT JOIN topic t ON t.source = e.source AND t.id = e.id
    LEFT JOIN partition p ON p.source = t.source AND p.number = t.partition
) WHERE place <> 'applied';

CREATE VIEW place AS
SELECT e.source, e.id, e.order_id, coalesce(s.place, 'applied') AS place
FROM outbox e LEFT JOIN stray s ON s.source = e.source AND s.id = e.id;
"""


class Scratch:
    """The audit's own database.

    Args:
        path: of the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        # All of it is one transaction that is never committed: nobody else reads it.
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.executescript(_TABLES)
        self.connection.execute("BEGIN")

    def add(self, sql: str, rows: Iterable[Any]) -> None:
        """Run an INSERT for each row."""
        self.connection.executemany(sql, rows)

    def place_events(self) -> None:
        """Say of each event where it is, once all is read; see retention.py for the functions."""
        self.connection.executescript(_PLACES)

    def rows(self, sql: str, **parameters: Any) -> Iterator[Any]:
        """The rows of a query, as they come."""
        return iter(self.connection.execute(sql, parameters))

    def suspect(self, name: str, kind: str, sql: str, *, source: str) -> None:
        """Keep what a query finds, id and detail, as suspects of a check."""
        self.connection.execute(
            f"INSERT OR IGNORE INTO suspect SELECT :name, :kind, * FROM ({sql})",  # noqa: S608 - ours
            {"name": name, "kind": kind, "source": source},
        )

    def count(self, table: str, source: str | None = None) -> int:
        """How many rows a table has, of one source or of all."""
        where = "" if source is None else " WHERE source = :source"
        sql = f"SELECT count(*) FROM {table}{where}"  # noqa: S608 - ours
        (found,) = self.connection.execute(sql, {"source": source}).fetchone()
        return int(found)


@contextmanager
def open_scratch() -> Iterator[Scratch]:
    """A scratch database, which goes away with all it holds.

    It lies where TMPDIR says; a million orders take about 0.7 GB.
    """
    with tempfile.TemporaryDirectory(prefix="settle-audit-") as folder:
        scratch = Scratch(Path(folder, "audit.sqlite"))
        try:
            yield scratch
        finally:
            scratch.connection.close()
