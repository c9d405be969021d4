"""Which events were dropped by retention, so that they are missing but not lost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from kafka.partitioner import murmur2

from settle_outbox.storage.partitions import DAY
from settle_outbox.uuid7 import time_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from settle.audit.scratch import Scratch

    Days = Mapping[str, set[datetime]]

# An outbox partition is kept for at least a day after its own day (settle_outbox.settings).
_KEPT = 2 * DAY


def add_retention_functions(scratch: Scratch, days: Days) -> None:
    """Add SQL functions to the scratch database that know what was dropped.

    ``id_dropped(source, id)`` and ``time_dropped(source, microseconds)``: whether the outbox has
    dropped the day of an event. ``before_begin(source, key, seq)``: whether an event was in the
    deleted part of its topic partition.

    Args:
        scratch: the scratch database; everything has been read.
        days: the days that have a partition in the outbox, by service.
    """
    oldest = datetime.now(UTC) - _KEPT

    def dropped(source: str, moment: datetime) -> bool:
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return day < oldest and day not in days[source]

    def id_dropped(source: str, id_: bytes) -> bool:
        moment = time_of(UUID(bytes=id_))
        # An id that is not a UUIDv7 is in the default partition, which is never dropped.
        return moment is not None and dropped(source, moment)

    def time_dropped(source: str, began_us: int) -> bool:
        return dropped(source, datetime.fromtimestamp(began_us / 1_000_000, UTC))

    begins = _begins(scratch)

    def before_begin(source: str, key: str, seq: int) -> bool:
        partitions = begins.get(source)
        if not partitions:
            return False
        # The partition is computed from the key as the producer does.
        number = (murmur2(key.encode()) & 0x7FFFFFFF) % len(partitions)
        truncated, first_seq = partitions[number]
        return truncated and (first_seq is None or seq < first_seq)

    create = scratch.connection.create_function
    create("id_dropped", 2, id_dropped)
    create("time_dropped", 2, time_dropped)
    create("before_begin", 3, before_begin)


def _begins(scratch: Scratch) -> dict[str, dict[int, tuple[bool, int | None]]]:
    """Return whether each topic partition was truncated, and the `seq` of its first event."""
    begins: dict[str, dict[int, tuple[bool, int | None]]] = {}
    for source, number, first_offset in scratch.rows(
        "SELECT source, number, first_offset FROM partition ORDER BY source, number"
    ):
        begins.setdefault(source, {})[number] = (first_offset > 0, None)
    # SQLite takes `seq` from the row with the lowest offset.
    firsts = """
        SELECT t.source, t.partition, min(t.offset), e.seq
        FROM topic t JOIN outbox e ON e.source = t.source AND e.id = t.id
        JOIN partition p ON p.source = t.source AND p.number = t.partition
        WHERE p.first_offset > 0 GROUP BY t.source, t.partition
    """
    for source, number, _, seq in scratch.rows(firsts):
        begins[source][number] = (True, seq)
    return begins
