"""Read a topic from its beginning to its end, without a consumer group."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kafka import TopicPartition
from kafka.errors import GroupIdNotFoundError, RetriableError

from settle.audit.ids import parse_uuid
from settle.audit.report import AuditError
from settle_outbox.consume.partition_reader import PartitionReader, UnreadableBatch
from settle_outbox.kafka.clients import make_admin, make_reader
from settle_outbox.kafka.internals.consumer import readable_end
from settle_outbox.kafka.topics import close_quietly

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata
    from kafka.consumer.fetcher import ConsumerRecord

    from settle.audit.flow import Flow
    from settle.audit.scratch import Scratch
    from settle.progress import Step
    from settle_outbox.settings import Settings

SILENCE_S = 30.0
# This many unreadable batches are named; the others are only counted.
PLACES_MAX = 20
_POLL_MS = 500
_RETRY_S = 0.2

# Keep the first record of each event. A later one of another partition may have been read before.
_FIRST_APPEARANCE = """
INSERT INTO topic VALUES (?, ?, ?, ?, ?)
ON CONFLICT (source, id) DO UPDATE SET
    partition = excluded.partition, offset = excluded.offset, timestamp_ms = excluded.timestamp_ms
WHERE (excluded.timestamp_ms, excluded.partition, excluded.offset)
    < (topic.timestamp_ms, topic.partition, topic.offset)
"""


@dataclass(slots=True)
class TopicContent:
    """The content of a topic.

    Args:
        records: the number of records.
        foreign: the number of records that are not events of the topic's service.
        unreadable: the number of batches that could not be read.
        places: the first of these, with the reason.
        behind_open: the number of unread offsets, after the start of open transactions.
    """

    records: int = 0
    foreign: int = 0
    unreadable: int = 0
    places: list[str] = field(default_factory=list)
    behind_open: int = 0


def read_topic(settings: Settings, scratch: Scratch, flow: Flow, step: Step) -> TopicContent:
    """Read the first appearance of each event, then the committed offsets of its consumers.

    A topic that does not exist counts as empty.

    Args:
        settings: the settings of the service that consumes the topic.
        scratch: the database to store the events in.
        flow: the events of the topic.
        step: counts the records.

    Raises:
        KafkaError: the broker cannot be reached, or refuses a request.
        AuditError: the broker has returned nothing for `SILENCE_S`, and there are more records.
    """
    reader = make_reader(settings)
    try:
        topic = f"{settings.topic_prefix}{flow.topic}"
        numbers = sorted(reader.partitions_for_topic(topic) or ())
        places = [TopicPartition(topic, number) for number in numbers]
        seen = _read(reader, places, scratch, flow, step) if places else TopicContent()
    finally:
        close_quietly(reader)
    _note_committed(settings, places, scratch, flow)
    return seen


def _read(
    reader: KafkaConsumer,
    places: list[TopicPartition],
    scratch: Scratch,
    flow: Flow,
    step: Step,
) -> TopicContent:
    seen = TopicContent()
    begins = reader.beginning_offsets(places)
    scratch.add(
        "INSERT INTO partition VALUES (?, ?, ?, NULL, 0, NULL)",
        ((flow.source, place.partition, begins[place]) for place in places),
    )
    reader.assign(places)
    for place in places:
        reader.seek(place, begins[place])
    first_ms: dict[TopicPartition, int] = {}
    ends: dict[TopicPartition, int] = {}
    heard_at = time.monotonic()
    # An audit does not wait until a codec is installed.
    partitions = PartitionReader(skips_missing_codec=True)
    while len(ends) < len(places) or any(_is_more(reader, each, ends[each]) for each in places):
        found = partitions.poll(reader, timeout_ms=_POLL_MS)
        # The embedded broker's end_offsets is wrong; the end that comes with a fetch is right.
        for place in places:
            end = reader.highwater(place)
            if end is not None:
                ends.setdefault(place, end)
        for place, records in found.items():
            if not isinstance(records[0], UnreadableBatch):
                first_ms.setdefault(place, records[0].timestamp)
            _store(records, scratch, flow, seen)
            step.add(len(records))
        if found:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_S:
            raise AuditError(
                f"{flow.topic} could not be read to its end: the broker has returned nothing for"
                f" {SILENCE_S:.0f} s. {partitions.describe_paused() or 'Check the broker'}, then"
                " try again."
            )
    _note_open(reader, ends, scratch, flow, seen)
    scratch.add(
        "UPDATE partition SET first_ms = ? WHERE source = ? AND number = ?",
        ((moment, flow.source, place.partition) for place, moment in first_ms.items()),
    )
    return seen


def _note_open(
    reader: KafkaConsumer,
    ends: dict[TopicPartition, int],
    scratch: Scratch,
    flow: Flow,
    seen: TopicContent,
) -> None:
    """Store where partitions could not be read to their end because of an open transaction."""
    for place, end in ends.items():
        position = reader.position(place)
        if position < end:
            seen.behind_open += end - position
            scratch.add(
                "UPDATE partition SET open_from = ? WHERE source = ? AND number = ?",
                [(position, flow.source, place.partition)],
            )


def _is_more(reader: KafkaConsumer, place: TopicPartition, end: int) -> bool:
    """Return whether there are committed records to read, up to the end of the partition."""
    readable = readable_end(reader, place)
    return readable is None or bool(reader.position(place) < min(end, readable))


def _store(
    records: Iterable[ConsumerRecord], scratch: Scratch, flow: Flow, seen: TopicContent
) -> None:
    rows = []
    for record in records:
        if isinstance(record, UnreadableBatch):
            seen.unreadable += 1
            if len(seen.places) < PLACES_MAX:
                seen.places.append(f"partition {record.partition}: {record.detail}")
            continue
        seen.records += 1
        event_id = _id_of(record, flow.ce_source.encode())
        if event_id is None:
            seen.foreign += 1
        else:
            place = (record.partition, record.offset, record.timestamp)
            rows.append((flow.source, event_id, *place))
    scratch.add(_FIRST_APPEARANCE, rows)


def _id_of(record: ConsumerRecord, ce_source: bytes) -> bytes | None:
    """Return the event id of a record of that source; None for any other record."""
    ids = [value for name, value in record.headers if name == "ce_id"]
    sources = [value for name, value in record.headers if name == "ce_source"]
    if len(ids) != 1 or sources != [ce_source] or ids[0] is None:
        return None
    try:
        return parse_uuid(ids[0].decode())
    except UnicodeDecodeError:
        return None


def _note_committed(
    settings: Settings, places: list[TopicPartition], scratch: Scratch, flow: Flow
) -> None:
    """Store the committed offsets of the target's consumer group, if the group exists."""
    admin = make_admin(settings, "settle-audit")
    try:
        offsets = _group_offsets(admin, settings.consumer_group)
    finally:
        close_quietly(admin)
    scratch.add(
        "UPDATE partition SET committed = ? WHERE source = ? AND number = ?",
        (
            (offsets[place].offset, flow.source, place.partition)
            for place in places
            if place in offsets
        ),
    )


def _group_offsets(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    deadline = time.monotonic() + SILENCE_S
    while True:
        try:
            return dict(admin.list_group_offsets(group).get(group, {}))
        except GroupIdNotFoundError:
            return {}
        except RetriableError:
            # A broker that has just started has no coordinators yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
