"""SQLAlchemy definitions of settle_outbox's tables, which `migrations` creates.

Each service has all of these tables in its own database. `migrations` has a comment for each table.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON

metadata = MetaData()


def _timestamp(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# Debezium's outbox columns (id, aggregatetype, aggregateid, type, payload), columns for the relay
# (seq, shard), and columns for headers (requestid, traceparent, created_at). Rows never change.
outbox = Table(
    "outbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("shard", Integer, Computed("outbox_shard(aggregateid)", persisted=True), nullable=False),
    Column("aggregatetype", Text, nullable=False),
    Column("aggregateid", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("requestid", Text),
    Column("traceparent", Text),
    _timestamp("created_at"),
    postgresql_partition_by="RANGE (id)",
)

outbox_pending = Table(
    "outbox_pending",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Uuid, nullable=False),
)

outbox_shards = Table(
    "outbox_shards",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
)

outbox_topics = Table(
    "outbox_topics",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("topic_id", Uuid, nullable=False),
    _timestamp("noted_at"),
)

outbox_clusters = Table(
    "outbox_clusters",
    metadata,
    Column("cluster_id", Text, primary_key=True),
    Column(
        "noted_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    ),
)

outbox_refused = Table(
    "outbox_refused",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Uuid, nullable=False),
    Column("reason", Text, nullable=False),
    _timestamp("refused_at"),
    Column("discarded_at", DateTime(timezone=True)),
    Column("discarded_by", Text),
    Column("note", Text),
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("requestid", Text),
    Column("outcome", Text, nullable=False),
    Column("detail", Text),
    _timestamp("received_at"),
    Column("key", Text),
    Index(
        "inbox_not_applied",
        "received_at",
        postgresql_where=text("outcome <> 'applied'"),
    ),
    postgresql_partition_by="RANGE (id)",
)

inbox_skipped = Table(
    "inbox_skipped",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("records", BigInteger, nullable=False),
    _timestamp("first_at"),
    _timestamp("last_at"),
    CheckConstraint("records > 0", name="inbox_skipped_positive"),
)

inbox_horizon = Table(
    "inbox_horizon",
    metadata,
    Column("before", Uuid, primary_key=True),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False, unique=True),
    Column("event_id", Uuid),
    Column("type", Text),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("timestamp_ms", BigInteger),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("headers", JSON, nullable=False),
    Column("requestid", Text),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    _timestamp("parked_at"),
    Column("state", Text, nullable=False, server_default="open"),
    Column("closed_at", DateTime(timezone=True)),
    CheckConstraint("state IN ('open', 'retried', 'discarded')", name="dead_letters_state"),
    CheckConstraint("(state = 'open') = (closed_at IS NULL)", name="dead_letters_closed"),
)

dead_letter_requests = Table(
    "dead_letter_requests",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "dead_letter_id",
        BigInteger,
        ForeignKey("dead_letters.id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("action", Text, nullable=False),
    Column("force", Boolean, nullable=False, server_default=text("false")),
    Column("note", Text),
    Column("requested_by", Text, nullable=False, server_default=text("SESSION_USER")),
    _timestamp("requested_at"),
    Column("started_at", DateTime(timezone=True)),
    Column("answered_at", DateTime(timezone=True)),
    Column("answer", Text),
    Column("detail", Text),
    CheckConstraint(
        "action IN ('retry', 'discard', 'restore')", name="dead_letter_requests_action"
    ),
    CheckConstraint("answer IN ('done', 'failed', 'refused')", name="dead_letter_requests_answer"),
    CheckConstraint("char_length(note) <= 2000", name="dead_letter_requests_note"),
    CheckConstraint("char_length(requested_by) <= 200", name="dead_letter_requests_by"),
    CheckConstraint(
        "(answer IS NULL) = (answered_at IS NULL)", name="dead_letter_requests_answered"
    ),
    Index("dead_letter_requests_of", "dead_letter_id"),
    Index("dead_letter_requests_open", "id", postgresql_where=text("answered_at IS NULL")),
)

inbox_attempts = Table(
    "inbox_attempts",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    _timestamp("last_at"),
    CheckConstraint("attempts > 0", name="inbox_attempts_positive"),
)

inbox_brakes = Table(
    "inbox_brakes",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("error", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    _timestamp("failed_at"),
    Column("stopped_at", DateTime(timezone=True)),
    CheckConstraint("failures > 0", name="inbox_brakes_positive"),
)

inbox_owners = Table(
    "inbox_owners",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("owner", Uuid, nullable=False),
    Column("in_hand", ARRAY(LargeBinary)),
    Column("suspects", ARRAY(LargeBinary)),
    Column("deaths", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("deaths >= 0", name="inbox_owners_deaths"),
)
