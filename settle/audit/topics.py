"""Reading a topic from its beginning to its end, outside any group."""

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

    from settle.audit.databases import Tell
    from settle.audit.flow import Flow
    from settle.audit.scratch import Scratch
    from settle_outbox.settings import Settings

SILENCE_S = 30.0
# Unreadable batches that are named; the others are counted.
PLACES_MAX = 20
_POLL_MS = 500
_RETRY_S = 0.2

# Of an event's records, the one that came first: another partition's may have been read before.
_FIRST_APPEARANCE = """
INSERT INTO topic VALUES (?, ?, ?, ?, ?)
ON CONFLICT (source, id) DO UPDATE SET
    partition = excluded.partition, offset = excluded.offset, timestamp_ms = excluded.timestamp_ms
WHERE (excluded.timestamp_ms, excluded.partition, excluded.offset)
    < (topic.timestamp_ms, topic.partition, topic.offset)
"""


@dataclass(slots=True)
class TopicSeen:
    """What a topic has.

    Args:
        records: how many records.
        foreign: how many of them are no events of its service.
        unreadable: how many batches could not be read.
        places: where the first of these are, and why they could not be read.
        behind_open: how many offsets lie behind transactions that are open.
    """

    records: int = 0
    foreign: int = 0
    unreadable: int = 0
    places: list[str] = field(default_factory=list)
    behind_open: int = 0


def read_topic(settings: Settings, scratch: Scratch, flow: Flow, tell: Tell) -> TopicSeen:
    """Read the first appearance of each event, and afterwards how far its consumers are.

    A topic that does not exist is as good as an empty one.

    Args:
        settings: of the service that consumes it.
        scratch: what is read goes there.
        flow: whose topic.
        tell: is given the count of the records that were read since.

    Raises:
        KafkaError: the broker cannot be reached, or refuses.
        AuditError: it gave nothing for `SILENCE_S`, and there is more.
    """
    reader = make_reader(settings)
    try:
        topic = f"{settings.topic_prefix}{flow.topic}"
        numbers = sorted(reader.partitions_for_topic(topic) or ())
        places = [TopicPartition(topic, number) for number in numbers]
        seen = _read(reader, places, scratch, flow, tell) if places else TopicSeen()
    finally:
        close_quietly(reader)
    _note_committed(settings, places, scratch, flow)
    return seen


def _read(
    reader: KafkaConsumer,
    places: list[TopicPartition],
    scratch: Scratch,
    flow: Flow,
    tell: Tell,
) -> TopicSeen:
    seen = TopicSeen()
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
    # Nobody waits here for a codec to be installed.
    partitions = PartitionReader(skips_missing_codec=True)
    while len(ends) < len(places) or any(_is_more(reader, each, ends[each]) for each in places):
        found = partitions.poll(reader, timeout_ms=_POLL_MS)
        # An embedded broker's end_offsets is wrong; what comes with a fetch is right everywhere.
        for place in places:
            end = reader.highwater(place)
            if end is not None:
                ends.setdefault(place, end)
        for place, records in found.items():
            if not isinstance(records[0], UnreadableBatch):
                first_ms.setdefault(place, records[0].timestamp)
            _keep(records, scratch, flow, seen)
            tell(len(records))
        if found:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_S:
            raise AuditError(
                f"{flow.topic} could not be read to its end: the broker has given nothing for"
                f" {SILENCE_S:.0f} s. {partitions.describe_paused() or 'Look at the broker'}, then"
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
    seen: TopicSeen,
) -> None:
    """Note the partitions that end behind an open transaction, which were not read to there."""
    for place, end in ends.items():
        position = reader.position(place)
        if position < end:
            seen.behind_open += end - position
            scratch.add(
                "UPDATE partition SET open_from = ? WHERE source = ? AND number = ?",
                [(position, flow.source, place.partition)],
            )


def _is_more(reader: KafkaConsumer, place: TopicPartition, end: int) -> bool:
    """Return whether there are committed records to read, up to where the partition ended."""
    readable = readable_end(reader, place)
    return readable is None or bool(reader.position(place) < min(end, readable))


def _keep(records: Iterable[ConsumerRecord], scratch: Scratch, flow: Flow, seen: TopicSeen) -> None:
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
    """The id of a record that says it is from there; None of any other."""
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
    """Note up to where the target's consumers are done; of a group that is not known, nothing."""
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
            # A broker that has just started looks for its coordinators.
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
