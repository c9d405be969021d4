"""Migration operations that create the tables of settle_outbox.

A migration of the service calls them::

    from settle_outbox.storage import migrations

    def upgrade() -> None:
        migrations.create_v1(shards=16)
        migrations.create_v2()
        migrations.create_v3()
        migrations.create_v4()
        migrations.create_v5()

A released operation never changes. Later changes of the tables come in new operations.

The service's ``env.py`` passes `include_object` to ``context.configure``, so that ``alembic
revision --autogenerate`` leaves these tables alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op

from settle_outbox.storage import tables
from settle_outbox.storage.partitions import is_partition_name

if TYPE_CHECKING:
    from sqlalchemy.sql.schema import SchemaItem

DEFAULT_SHARDS = 16

# PostgreSQL 14 and later resolve the names in a RETURN body when they create the function. So no
# search_path can change its meaning, and a restored dump computes the same shards.
_SHARDS_V1 = """
CREATE FUNCTION outbox_shard_count() RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN {shards};
COMMENT ON FUNCTION outbox_shard_count() IS 'How many shards the outbox has.';

CREATE FUNCTION outbox_shard(key text) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (('x' || left(md5(key), 8))::bit(32)::bigint % outbox_shard_count())::integer;
COMMENT ON FUNCTION outbox_shard(text) IS
    'The shard of a key: the first 32 bits of its MD5, unsigned, modulo the count of shards.';

CREATE TABLE outbox_shards (
    shard integer PRIMARY KEY
) WITH (fillfactor = 10);
INSERT INTO outbox_shards SELECT generate_series(0, outbox_shard_count() - 1);
COMMENT ON TABLE outbox_shards IS 'A relay holds a shard by locking its row.';
"""

_OUTBOX_V1 = """
CREATE TABLE outbox (
    id            uuid PRIMARY KEY,
    seq           bigint GENERATED ALWAYS AS IDENTITY,
    shard         integer NOT NULL GENERATED ALWAYS AS (outbox_shard(aggregateid)) STORED,
    aggregatetype text NOT NULL,
    aggregateid   text NOT NULL,
    type          text NOT NULL,
    payload       bytea NOT NULL,
    requestid     text,
    traceparent   text,
    created_at    timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);
CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;
COMMENT ON TABLE outbox IS
    'Events, inserted once and never updated; kept for replay, dropped by partition (a UTC day).';

CREATE TABLE outbox_pending (
    shard integer NOT NULL,
    seq   bigint NOT NULL,
    id    uuid NOT NULL,
    PRIMARY KEY (shard, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE outbox_pending IS
    'Events still to be sent: a row comes with its event and goes when it is acknowledged.';

CREATE TABLE outbox_topics (
    topic    text PRIMARY KEY,
    topic_id uuid NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE outbox_topics IS
    'The broker''s id of each topic; another id means that the topic was lost, and is replayed.';

CREATE TABLE outbox_refused (
    seq        bigint PRIMARY KEY,
    id         uuid NOT NULL,
    reason     text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE outbox_refused IS
    'Events that the broker will never take, such as one over its size limit.';
"""

_INBOX_V1 = """
CREATE TABLE inbox (
    id          uuid PRIMARY KEY,
    type        text NOT NULL,
    source      text NOT NULL,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    requestid   text,
    outcome     text NOT NULL
                CHECK (outcome IN ('applied', 'skipped', 'anomaly', 'parked')),
    detail      text,
    received_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);
CREATE INDEX inbox_not_applied ON inbox (received_at) WHERE outcome <> 'applied';
CREATE TABLE inbox_default PARTITION OF inbox DEFAULT;
COMMENT ON TABLE inbox IS
    'The events received, by id: what is here is not applied again. Dropped by partition.';

CREATE TABLE inbox_horizon (
    before uuid PRIMARY KEY
);
COMMENT ON TABLE inbox_horizon IS
    'Where the inbox begins: an older event may have been applied and forgotten, and is parked.';

CREATE TABLE dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint  bytea NOT NULL UNIQUE,
    event_id     uuid,
    type         text,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    "offset"     bigint NOT NULL,
    timestamp_ms bigint,
    key          bytea,
    value        bytea,
    headers      json NOT NULL,
    requestid    text,
    reason       text NOT NULL,
    detail       text NOT NULL,
    parked_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE dead_letters IS
    'Records that cannot be applied, whole, with the reason.';
COMMENT ON COLUMN dead_letters.fingerprint IS
    'SHA-256 of the record and its place: one delivered again is not parked again.';
COMMENT ON COLUMN dead_letters.headers IS
    'In the order received: [name, text], or [name, {"base64": ...}] when it is not UTF-8.';
"""


def include_object(
    _object: SchemaItem,
    name: str | None,
    type_: str,
    reflected: bool,  # noqa: FBT001 - alembic's signature
    compare_to: SchemaItem | None,
) -> bool:
    """Return False for the tables of settle_outbox, so that autogenerate ignores them.

    The result is True for tables in ``target_metadata``. So a service can compare the tables of
    settle_outbox by adding `settle_outbox.storage.tables.metadata`, and can define a table with
    such a name in another schema.

    Args:
        _object: the table, column, index or constraint.
        name: of the object.
        type_: ``table``, ``column``, ``index`` and so on.
        reflected: whether the object comes from the database.
        compare_to: the object that it is compared with, or None.
    """
    if type_ != "table" or not reflected or compare_to is not None or name is None:
        return True
    return name not in tables.metadata.tables and not any(
        is_partition_name(table, name) for table in (tables.outbox.name, tables.inbox.name)
    )


def create_v1(*, shards: int = DEFAULT_SHARDS) -> None:
    """Create the first tables of settle_outbox.

    Args:
        shards: number of shards, which is the maximum number of relays that send at the same time.
    """
    op.execute(_SHARDS_V1.format(shards=int(shards)))
    op.execute(_OUTBOX_V1)
    op.execute(_INBOX_V1)


def drop_v1() -> None:
    """Drop the tables that `create_v1` created, with their rows."""
    op.execute("DROP TABLE dead_letters, inbox_horizon, inbox")
    op.execute("DROP TABLE outbox_refused, outbox_topics, outbox_pending, outbox, outbox_shards")
    op.execute("DROP FUNCTION outbox_shard(text), outbox_shard_count()")


_FAILURES_V2 = """
CREATE TABLE inbox_attempts (
    event_id  uuid PRIMARY KEY,
    attempts  integer NOT NULL CONSTRAINT inbox_attempts_positive CHECK (attempts > 0),
    reason    text NOT NULL,
    detail    text NOT NULL,
    last_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE inbox_attempts IS
    'Events whose handler asked to try again or took too long, until they are applied or parked.';

CREATE TABLE inbox_brakes (
    topic      text NOT NULL,
    type       text NOT NULL,
    error      text NOT NULL,
    failures   integer NOT NULL CONSTRAINT inbox_brakes_positive CHECK (failures > 0),
    detail     text NOT NULL,
    failed_at  timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    PRIMARY KEY (topic, type)
);
COMMENT ON TABLE inbox_brakes IS
    'Subscriptions whose last events failed in the handler with one error; stopped, or not yet.';
COMMENT ON COLUMN inbox_brakes.stopped_at IS
    'Since when the subscription is stopped; NULL while there are too few failures for that.';
"""

_CLUSTERS_V2 = """
CREATE TABLE outbox_clusters (
    cluster_id text PRIMARY KEY,
    noted_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE outbox_clusters IS
    'The Kafka clusters that this outbox was sent to, by their ids; the newest is the current one.';
"""


def create_v2() -> None:
    """Create the tables for failing events, stopped subscriptions and Kafka clusters."""
    op.execute(_FAILURES_V2)
    op.execute(_CLUSTERS_V2)


def drop_v2() -> None:
    """Drop what `create_v2` created."""
    op.execute("DROP TABLE outbox_clusters, inbox_brakes, inbox_attempts")


_SKIPPED_V3 = """
CREATE TABLE inbox_skipped (
    topic    text NOT NULL,
    type     text NOT NULL,
    records  bigint NOT NULL CONSTRAINT inbox_skipped_positive CHECK (records > 0),
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, type)
);
COMMENT ON TABLE inbox_skipped IS
    'Types of events that the service does not subscribe to, and how many records of each came.';
"""


def create_v3() -> None:
    """Create the table that counts events of types without a subscription."""
    op.execute(_SKIPPED_V3)


def drop_v3() -> None:
    """Drop what `create_v3` created."""
    op.execute("DROP TABLE inbox_skipped")


_REPAIRS_V4 = """
ALTER TABLE dead_letters
    ADD COLUMN state text NOT NULL DEFAULT 'open'
        CONSTRAINT dead_letters_state CHECK (state IN ('open', 'retried', 'discarded')),
    ADD COLUMN closed_at timestamptz,
    ADD CONSTRAINT dead_letters_closed CHECK ((state = 'open') = (closed_at IS NULL));
COMMENT ON COLUMN dead_letters.state IS
    'retried: applied since. discarded: an operator decided not to apply it, and may restore it.';

ALTER TABLE outbox_refused
    ADD COLUMN discarded_at timestamptz,
    ADD COLUMN discarded_by text,
    ADD COLUMN note text;
COMMENT ON COLUMN outbox_refused.discarded_at IS
    'When an operator decided that the event is never sent; NULL while nobody has.';

CREATE TABLE dead_letter_requests (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dead_letter_id bigint NOT NULL REFERENCES dead_letters ON DELETE CASCADE,
    action         text NOT NULL CONSTRAINT dead_letter_requests_action
                   CHECK (action IN ('retry', 'discard', 'restore')),
    force          boolean NOT NULL DEFAULT false,
    note           text CONSTRAINT dead_letter_requests_note CHECK (char_length(note) <= 2000),
    requested_by   text NOT NULL DEFAULT session_user
                   CONSTRAINT dead_letter_requests_by CHECK (char_length(requested_by) <= 200),
    requested_at   timestamptz NOT NULL DEFAULT now(),
    started_at     timestamptz,
    answered_at    timestamptz,
    answer         text CONSTRAINT dead_letter_requests_answer
                   CHECK (answer IN ('done', 'failed', 'refused')),
    detail         text,
    CONSTRAINT dead_letter_requests_answered CHECK ((answer IS NULL) = (answered_at IS NULL))
);
CREATE INDEX dead_letter_requests_of ON dead_letter_requests (dead_letter_id);
CREATE INDEX dead_letter_requests_open ON dead_letter_requests (id) WHERE answered_at IS NULL;
COMMENT ON TABLE dead_letter_requests IS
    'What operators ask to do with dead letters, and the answers. A consumer carries them out.';
COMMENT ON COLUMN dead_letter_requests.force IS
    'Retry a dead letter although its reason, or an older one of its key, speaks against it.';

ALTER TABLE inbox ADD COLUMN key text;
COMMENT ON COLUMN inbox.key IS
    'The record''s key: its first 200 characters, or NULL if it is not UTF-8.';
"""


def create_v4() -> None:
    """Add what repairs need: states of dead letters and refused events, repair requests, keys."""
    op.execute(_REPAIRS_V4)


def drop_v4() -> None:
    """Drop what `create_v4` created."""
    op.execute("DROP TABLE dead_letter_requests")
    op.execute(
        "ALTER TABLE outbox_refused"
        " DROP COLUMN discarded_at, DROP COLUMN discarded_by, DROP COLUMN note"
    )
    op.execute("ALTER TABLE dead_letters DROP COLUMN state, DROP COLUMN closed_at")
    op.execute("ALTER TABLE inbox DROP COLUMN key")


_OWNERS_V5 = """
CREATE TABLE inbox_owners (
    topic     text NOT NULL,
    partition integer NOT NULL,
    owner     uuid NOT NULL,
    in_hand   bytea[],
    suspects  bytea[],
    deaths    integer NOT NULL DEFAULT 0 CONSTRAINT inbox_owners_deaths CHECK (deaths >= 0),
    PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE inbox_owners IS
    'The Kafka partitions that a consumer holds. A row that a dead consumer left is taken over.';
COMMENT ON COLUMN inbox_owners.in_hand IS
    'The SHA-256 of each record that is being handled, if an earlier owner died.';
COMMENT ON COLUMN inbox_owners.suspects IS
    'The SHA-256 of each record that a consumer had in hand when it died.';
COMMENT ON COLUMN inbox_owners.deaths IS
    'How many consumers in a row died with the suspects in hand.';
"""


def create_v5() -> None:
    """Create the table of the Kafka partitions that consumers hold."""
    op.execute(_OWNERS_V5)


def drop_v5() -> None:
    """Drop what `create_v5` created."""
    op.execute("DROP TABLE inbox_owners")
