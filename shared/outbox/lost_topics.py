"""Noticing by its id that a topic is not the one it was, and sending its events again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from shared.deadlines import without_deadline
from shared.outbox.pending import queue_again
from shared.outbox.uuid7 import least_id

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from sqlalchemy import Connection

_KNOWN = text("SELECT topic_id FROM outbox_topics WHERE topic = :topic FOR UPDATE")

_NOTE = text(
    """
    INSERT INTO outbox_topics (topic, topic_id) VALUES (:topic, :topic_id)
    ON CONFLICT (topic) DO UPDATE SET topic_id = excluded.topic_id, noted_at = now()
    """
)

# Every shard is waited for, and then a window of events is written: longer than a batch may take.
_TAKE_TIME = text("SET LOCAL lock_timeout = 20000; SET LOCAL statement_timeout = 0")


def queue_again_if_lost(
    connection: Connection, aggregatetype: str, topic: str, topic_id: UUID, window: timedelta
) -> int | None:
    """Note a topic's id; if another one was noted before, have its events sent again.

    One transaction does both and holds every shard, so no later event of a key overtakes those
    that are sent again, and a relay that comes here second finds the new id noted.

    Args:
        connection: in a transaction.
        aggregatetype: whose events the topic holds.
        topic: its name.
        topic_id: as the broker tells it now (KIP-516).
        window: how far back.

    Returns:
        How many events were put in line; None when the topic is the one it was, or is new here.
    """
    known = connection.execute(_KNOWN, {"topic": topic}).scalar_one_or_none()
    if known == topic_id:
        return None
    queued = None
    if known is not None:
        without_deadline(connection)
        connection.execute(_TAKE_TIME)
        queued = queue_again(connection, [aggregatetype], least_id(datetime.now(UTC) - window))
    connection.execute(_NOTE, {"topic": topic, "topic_id": topic_id})
    return queued
