"""The scratch database of an audit: SQLite in a temporary folder.

An audit matches millions of rows of four sources by id, in little memory. SQLite comes with
Python, keeps its B-trees on disk behind a cache of a fixed size, and sorts on disk. So the checks
are joins in SQL. The file does not outlive the audit, so it needs no journal and no flush to disk.

Ids are UUIDv7 and arrive almost in order, which suits a B-tree.
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
_BATCH = 1_000

# `source` is the service that publishes the event, in every table.
_TABLES = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{CACHE_KIB};

-- `status` as read first; `latest` as read last, of the orders that were not final.
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

-- The first appearance of each event whose headers name that source.
CREATE TABLE topic (
    source TEXT, id BLOB, partition INTEGER, offset INTEGER, timestamp_ms INTEGER,
    PRIMARY KEY (source, id)
) WITHOUT ROWID;

-- `first_offset`: the first offset. `committed`: the consumers' committed offset; 0 if unknown.
-- `open_from`: the start of an open transaction, after which nothing was read; NULL without one.
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

-- The inbox that receives the source's events has forgotten the ids below `before`.
CREATE TABLE horizon (source TEXT PRIMARY KEY, before BLOB) WITHOUT ROWID;

CREATE TABLE suspect (
    name TEXT, kind TEXT, id BLOB, detail TEXT, PRIMARY KEY (name, kind, id)
) WITHOUT ROWID;
"""

# Created when everything is read: the place of each published event that is not applied.
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
        -- The target only counts such an event.
        WHEN NOT EXISTS (
            SELECT 1 FROM subscribed s WHERE s.source = e.source AND s.type = e.type
        ) THEN 'skipped'
        WHEN e.id < (SELECT before FROM horizon h WHERE h.source = e.source) THEN 'forgotten'
        WHEN t.id IS NULL AND before_begin(e.source, e.key, e.seq) THEN 'beyond retention'
        -- It may be after the start of an open transaction, in any partition that has one.
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
    """The scratch database.

    Args:
        path: the file to create.
    """

    def __init__(self, path: Path) -> None:
        # One transaction for all rows that are read. `compute_places` commits it.
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.executescript(_TABLES)
        self.connection.execute("BEGIN")

    def add(self, sql: str, rows: Iterable[Any]) -> None:
        """Run a statement for each row."""
        self.connection.executemany(sql, rows)

    def compute_places(self) -> None:
        """Compute the place of each event, when everything is read and the functions are added."""
        self.connection.executescript(_PLACES)

    def rows(self, sql: str, **parameters: Any) -> Iterator[Any]:
        """Yield the rows of a query."""
        return iter(self.connection.execute(sql, parameters))

    def id_batches(self, sql: str, **parameters: Any) -> Iterator[list[bytes]]:
        """Yield the ids that a query finds above ``:last``, in batches. Rows may change."""
        last = b""
        limited = f"{sql} ORDER BY id LIMIT {_BATCH}"
        while ids := [id_ for (id_,) in self.rows(limited, last=last, **parameters)]:
            yield ids
            last = ids[-1]

    def add_suspects(self, name: str, kind: str, sql: str, *, source: str) -> None:
        """Store the ids and details that a query finds as suspects of a check."""
        self.connection.execute(
            f"INSERT OR IGNORE INTO suspect SELECT :name, :kind, * FROM ({sql})",  # noqa: S608 - constants
            {"name": name, "kind": kind, "source": source},
        )

    def count(self, table: str, source: str | None = None) -> int:
        """Return the number of rows of a table, of one source or of all."""
        where = "" if source is None else " WHERE source = :source"
        sql = f"SELECT count(*) FROM {table}{where}"  # noqa: S608 - constants
        (found,) = self.connection.execute(sql, {"source": source}).fetchone()
        return int(found)


@contextmanager
def open_scratch() -> Iterator[Scratch]:
    """Open a scratch database in a temporary folder (TMPDIR), and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="settle-audit-") as folder:
        scratch = Scratch(Path(folder, "audit.sqlite"))
        try:
            yield scratch
        finally:
            scratch.connection.close()
