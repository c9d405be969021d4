"""The tables of settle_outbox in memory, to test the logic of relay, consumer and applier.

The database recognizes each SQL statement of settle_outbox by a part of its text, and imitates it,
for one process at a time. The tests in `tests/integration` show what the statements do on
PostgreSQL.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg2
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7

from settle_outbox.publish.pending import PendingEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SHARDS = 4
_BEGAN = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Held:
    """A row of inbox_owners: a Kafka partition that a consumer holds."""

    owner: UUID
    in_hand: list[bytes] | None = None
    suspects: list[bytes] | None = None
    deaths: int = 0


@dataclass
class Tables:
    """The rows of all tables."""

    outbox: dict[int, PendingEvent] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    topics: dict[str, tuple[UUID, datetime]] = field(default_factory=dict)
    clusters: list[str] = field(default_factory=list)
    inbox: dict[UUID, str] = field(default_factory=dict)
    attempts: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    brakes: dict[tuple[str, str], tuple[str, int, bool]] = field(default_factory=dict)
    dead_letters: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    owners: dict[tuple[str, int], Held] = field(default_factory=dict)
    effects: list[Any] = field(default_factory=list)
    noted: int = 0


class MemoryDatabase:
    """A stand-in for an engine and for a sessionmaker of SQLAlchemy.

    Attributes:
        tables: The committed rows.
        before_commit: Called before each commit. If it raises, the transaction fails.
    """

    def __init__(self) -> None:
        self.tables = Tables()
        self.before_commit: Callable[[], None] = lambda: None

    def add(self, key: str, *payloads: bytes, aggregatetype: str = "orders") -> None:
        """Add events to the outbox."""
        for payload in payloads:
            seq = len(self.tables.outbox) + 1
            self.tables.outbox[seq] = PendingEvent(
                id=uuid7(),
                seq=seq,
                shard=sum(key.encode()) % SHARDS,
                aggregatetype=aggregatetype,
                aggregateid=key,
                type="order.created",
                payload=payload,
                requestid=None,
                traceparent=None,
                created_at=_BEGAN,
            )
            self.tables.pending.add(seq)

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """Open a transaction that commits at its end."""
        with self() as transaction:
            yield transaction
            transaction.commit()

    @contextmanager
    def __call__(self) -> Iterator[Transaction]:
        """Open a transaction that is rolled back unless it was committed."""
        yield Transaction(self)

    connect = begin

    def configure(self, **options: Any) -> None:
        """Accept the options of a sessionmaker, and ignore them."""

    def dispose(self) -> None:
        """Do nothing, because there is no connection."""


def unreachable() -> OperationalError:
    """Return the error that is raised when the database ends a connection."""
    return OperationalError(
        "COMMIT", None, psycopg2.OperationalError("server closed the connection unexpectedly")
    )


class Transaction:
    """A stand-in for a connection and for a session in a transaction."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self.tables = deepcopy(database.tables)
        self.info: dict[str, Any] = {}

    def commit(self) -> None:
        self._database.before_commit()
        self._database.tables = self.tables

    def rollback(self) -> None:
        self.tables = deepcopy(self._database.tables)

    def flush(self) -> None:
        """Do nothing, because every change is written at once."""

    def connection(self) -> Transaction:
        return self

    def execute(self, statement: Any, parameters: dict[str, Any] | None = None) -> _Result:
        """Imitate a statement of settle_outbox."""
        sql = str(statement)
        for part, act in _STATEMENTS.items():
            if part in sql:
                return _Result(act(self.tables, **parameters or {}))
        raise NotImplementedError(f"the database in memory does not know this statement: {sql}")


class _Result:
    def __init__(self, rows: Iterable[Any] | None) -> None:
        self._rows = list(rows or ())
        self.rowcount = len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> list[Any]:
        return self._rows

    def one(self) -> Any:
        (row,) = self._rows
        return row

    def scalar_one(self) -> Any:
        return self.one()[0]

    def scalars(self) -> list[Any]:
        return [row[0] for row in self._rows]

    def mappings(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self._rows]


def _row(**values: Any) -> Any:
    return SimpleNamespace(**values)


def _nothing(_tables: Tables) -> None:
    """Accept a setting or a lock. It has no effect, because there is only one process."""


# The relay


def _lock_shards(tables: Tables, *, limit: int) -> list[Any]:
    return [
        (shard,) for shard in sorted({tables.outbox[seq].shard for seq in tables.pending})[:limit]
    ]


def _read(
    tables: Tables, *, shards: list[int], limit: int, noted_at: list[datetime], **_: int
) -> list[PendingEvent]:
    if noted_at != [noted for _, (_, noted) in sorted(tables.topics.items())]:
        return []
    events = [tables.outbox[seq] for seq in sorted(tables.pending)]
    return [event for event in events if event.shard in shards][:limit]


def _mark_sent(tables: Tables, *, shards: list[int], seqs: list[int]) -> None:
    tables.pending -= set(seqs)


def _refuse(tables: Tables, *, seq: int, id: UUID, reason: str) -> None:  # noqa: A002 - of the table
    tables.refused[seq] = reason


def _refuse_orphans(_tables: Tables, *, shards: list[int]) -> None:
    """Do nothing: no row of the outbox is ever deleted here, so there are no orphans."""


def _queue_again(
    tables: Tables, *, after: UUID, limit: int, aggregatetypes: list[str], **_: Any
) -> list[Any]:
    events = sorted(tables.outbox.values(), key=lambda event: event.id)
    piece = [event for event in events if event.id > after][:limit]
    again = {event.seq for event in piece if event.aggregatetype in aggregatetypes}
    queued = again - tables.pending - tables.refused.keys()
    tables.pending |= queued
    return [_row(found=len(piece), chosen=len(queued), last=piece[-1].id if piece else None)]


def _read_topics(tables: Tables) -> list[Any]:
    return [
        _row(topic=topic, topic_id=topic_id, noted_at=noted_at)
        for topic, (topic_id, noted_at) in sorted(tables.topics.items())
    ]


def _note_topic(tables: Tables, *, topic: str, topic_id: UUID) -> None:
    tables.noted += 1
    tables.topics[topic] = (topic_id, _BEGAN + timedelta(seconds=tables.noted))


def _read_clusters(tables: Tables) -> list[Any]:
    return [_row(cluster_id=cluster_id, noted_at=_BEGAN) for cluster_id in tables.clusters]


def _record_cluster(tables: Tables, *, cluster_id: str) -> None:
    tables.clusters.insert(0, cluster_id)


# The consumer


def _record(
    tables: Tables, *, ids: list[str], outcomes: list[str], **_: list[Any]
) -> list[tuple[UUID]]:
    fresh = {
        UUID(event_id): outcome
        for event_id, outcome in zip(ids, outcomes, strict=True)
        if UUID(event_id) not in tables.inbox
    }
    tables.inbox |= fresh
    return [(event_id,) for event_id in fresh]


def _forget_attempts(tables: Tables, *, ids: list[str]) -> None:
    tables.attempts = {
        event_id: attempt
        for event_id, attempt in tables.attempts.items()
        if str(event_id) not in ids
    }


def _count_attempt(tables: Tables, *, event_id: UUID, reason: str, detail: str) -> list[Any]:
    known_reason, attempts = tables.attempts.get(event_id, (reason, 0))
    attempts = attempts + 1 if known_reason == reason else 1
    tables.attempts[event_id] = (reason, attempts)
    return [(attempts,)]


def _note_verdict(tables: Tables, *, id: UUID, outcome: str, detail: str) -> None:  # noqa: A002
    tables.inbox[id] = outcome


def _write_dead_letter(tables: Tables, *, fingerprint: bytes, **columns: Any) -> None:
    tables.dead_letters.setdefault(fingerprint, columns)


def _read_state(tables: Tables) -> list[Any]:
    return [_row(horizon=None, has_brakes=bool(tables.brakes), has_attempts=bool(tables.attempts))]


def _read_brakes(tables: Tables) -> list[Any]:
    return [
        (topic, type_, error, _BEGAN if is_stopped else None)
        for (topic, type_), (error, _, is_stopped) in tables.brakes.items()
    ]


def _count_failure(
    tables: Tables,
    *,
    topic: str,
    type: str,  # noqa: A002 - of the table
    error: str,
    detail: str,
    limit: int,
) -> list[Any]:
    known_error, failures, is_stopped = tables.brakes.get((topic, type), (error, 0, False))
    failures = failures + 1 if known_error == error else 1
    is_stopped = is_stopped or failures >= limit
    tables.brakes[topic, type] = (error, failures, is_stopped)
    return [(is_stopped,)]


def _release(tables: Tables, *, topic: str, type: str) -> None:  # noqa: A002 - of the table
    tables.brakes.pop((topic, type), None)


def _read_stopped(tables: Tables) -> list[Any]:
    return [
        _row(topic=topic, type=type_)
        for (topic, type_), (_, _, is_stopped) in tables.brakes.items()
        if is_stopped
    ]


def _take_over(
    tables: Tables, *, topics: list[str], partitions: list[int], owner: UUID
) -> list[Any]:
    rows = []
    for topic, partition in zip(topics, partitions, strict=True):
        held = tables.owners.get((topic, partition))
        if held is None:
            continue
        if held.in_hand is not None:
            held.deaths = held.deaths + 1 if held.in_hand == held.suspects else 1
            held.suspects, held.in_hand = held.in_hand, None
        held.owner = owner
        rows.append(
            _row(topic=topic, partition=partition, suspects=held.suspects, deaths=held.deaths)
        )
    return rows


def _claim(tables: Tables, *, topics: list[str], partitions: list[int], owner: UUID) -> None:
    for place in zip(topics, partitions, strict=True):
        tables.owners.setdefault(place, Held(owner))


def _set_in_hand(
    tables: Tables, *, topic: str, partition: int, in_hand: list[bytes] | None, owner: UUID
) -> None:
    held = tables.owners.get((topic, partition))
    if held is not None and held.owner == owner:
        held.in_hand = in_hand


def _give_up(tables: Tables, *, topics: list[str], partitions: list[int], owner: UUID) -> None:
    for place in zip(topics, partitions, strict=True):
        held = tables.owners.get(place)
        if held is not None and held.owner == owner:
            del tables.owners[place]


# The function that imitates a statement, by a part of the statement. The first match counts.
_STATEMENTS: dict[str, Callable[..., Iterable[Any] | None]] = {
    "SET TRANSACTION": _nothing,
    "SET LOCAL": _nothing,
    "FOR UPDATE SKIP LOCKED": _lock_shards,
    "AS locked (shard)": _read,
    "AS sent (shard, seq)": _mark_sent,
    "INSERT INTO outbox_refused (seq, id, reason) VALUES": _refuse,
    "WITH orphans AS": _refuse_orphans,
    "SELECT shard FROM outbox_shards ORDER BY shard FOR UPDATE": _nothing,
    "WITH piece AS": _queue_again,
    "FROM outbox_topics ORDER BY topic FOR UPDATE": _read_topics,
    "INSERT INTO outbox_topics": _note_topic,
    "INSERT INTO outbox_clusters": _record_cluster,
    "FROM outbox_clusters": _read_clusters,
    "SELECT clock_timestamp()": lambda _: [(datetime.now(UTC),)],
    "SELECT outbox_shard_count()": lambda _: [(SHARDS, SHARDS)],
    "INSERT INTO inbox (": _record,
    "DELETE FROM inbox_attempts": _forget_attempts,
    "INSERT INTO inbox_attempts": _count_attempt,
    "UPDATE inbox SET outcome": _note_verdict,
    "INSERT INTO dead_letters": _write_dead_letter,
    "AS has_brakes": _read_state,
    "SELECT topic, type, error, stopped_at FROM inbox_brakes": _read_brakes,
    "INSERT INTO inbox_brakes": _count_failure,
    "DELETE FROM inbox_brakes WHERE topic": _release,
    "SELECT topic, type FROM inbox_brakes WHERE stopped_at": _read_stopped,
    "UPDATE inbox_owners AS held": _take_over,
    "INSERT INTO inbox_owners": _claim,
    "UPDATE inbox_owners SET in_hand": _set_in_hand,
    "DELETE FROM inbox_owners": _give_up,
}
