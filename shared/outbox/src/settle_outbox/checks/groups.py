"""The consumer group of a service: does it have members, and how far do they lag behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka.admin import OffsetSpec

from settle_outbox.checks.check import NOT_REPORTED, duration, fail, grade, ok, warn
from settle_outbox.checks.delivery import LATE_FAIL_S, LATE_WARN_S
from settle_outbox.kafka.clients import make_reader
from settle_outbox.kafka.internals.consumer import readable_end
from settle_outbox.kafka.internals.unreadable import UnreadablePartitionError
from settle_outbox.kafka.topics import close_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

    from settle_outbox.checks.check import Finding
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

LAG_WARN_RECORDS = 10_000
READ_TIMEOUT_S = 5.0


def check_members(
    admin: KafkaAdminClient, service: Service, settings: Settings
) -> Iterator[Finding]:
    """Check that the group has a member."""
    name = f"{service.name} consumers"
    group = settings.consumer_group
    state = _state(admin, group)
    start = f"start inbox-consumer run {service.name}, and read its log"
    if state is None:
        yield fail(name, f"no consumer has ever joined the group {group}", start)
    elif state in {"Empty", "Dead"}:
        yield fail(name, f"no consumer is in the group {group}", start)
    elif state == "Stable":
        yield ok(name, f"the group {group} is stable")
    elif state == "Unknown":
        yield ok(name, NOT_REPORTED)
    else:
        yield warn(
            name,
            f"the group {group} is rebalancing ({state})",
            "check again in a moment; if it lasts, read the logs: consumers keep leaving",
        )


def _state(admin: KafkaAdminClient, group: str) -> str | None:
    states = {each["group_id"]: each["group_state"] for each in admin.list_groups()}
    return states.get(group)


@dataclass(frozen=True, slots=True)
class _Unread:
    """The part of a partition that a group has not read.

    Args:
        records: the number of records.
        lost: the number of records that were deleted before the group read them.
        age_s: the age of the first record by its timestamp; 0 without a record.
        is_ahead: whether the committed offset is beyond the partition's end.
        unreadable: why the first record cannot be read; empty if it can.
    """

    records: int
    lost: int
    age_s: float
    is_ahead: bool
    unreadable: str


def check_lag(
    admin: KafkaAdminClient, service: Service, settings: Settings, partitions: list[TopicPartition]
) -> Iterator[Finding]:
    """Check how many records the group has not read, and how long the first has waited."""
    name = f"{service.name} lag"
    unread = _unread(admin, settings, partitions)
    unreadable = [each.unreadable for each in unread if each.unreadable]
    records = sum(each.records for each in unread)
    lost = sum(each.lost for each in unread)
    oldest_s = max(each.age_s for each in unread)
    late = f"{records} records, the first for {duration(oldest_s)}"
    if unreadable:
        yield fail(
            name,
            f"{late}; {'; '.join(unreadable)}",
            "a corrupt batch: nothing, it becomes a dead letter; a missing codec: install it; an"
            " error of the broker: read its log",
        )
    elif lost:
        yield fail(
            name,
            f"{lost} records were deleted before they were read",
            "send them again with outbox-relay replay on the publishing side, and raise the"
            f" retention of {', '.join(service.consumed_topics)}",
        )
    elif any(each.is_ahead for each in unread):
        yield warn(
            name,
            "committed offsets are beyond the end: a topic was created again",
            "nothing: the consumer notices it and joins again",
        )
    elif records > LAG_WARN_RECORDS and oldest_s <= LATE_FAIL_S:
        yield warn(name, late, "start another consumer, up to one per partition")
    else:
        yield grade(
            name,
            oldest_s,
            late if records else "none",
            "check that a consumer runs, and read its log; if it does, start another one, up to"
            " one per partition",
            warn_over=LATE_WARN_S,
            fail_over=LATE_FAIL_S,
        )


def _unread(
    admin: KafkaAdminClient, settings: Settings, partitions: list[TopicPartition]
) -> list[_Unread]:
    starts = {
        partition: answer.offset
        for partition, answer in admin.list_partition_offsets(
            dict.fromkeys(partitions, OffsetSpec.EARLIEST)
        ).items()
    }
    committed: dict[TopicPartition, int] = {}
    group = settings.consumer_group
    if _state(admin, group) is not None:
        answer = admin.list_group_offsets(group).get(group, {})
        committed = {
            partition: each.offset for partition, each in answer.items() if each.offset >= 0
        }
    begins = {
        partition: max(starts[partition], committed.get(partition, 0)) for partition in partitions
    }
    fronts = _read_fronts(settings, begins)
    return [
        _Unread(
            records=fronts[partition].records,
            lost=max(0, starts[partition] - committed.get(partition, starts[partition])),
            age_s=fronts[partition].age_s,
            is_ahead=committed.get(partition, 0) > fronts[partition].end,
            unreadable=fronts[partition].unreadable,
        )
        for partition in partitions
    ]


@dataclass(slots=True)
class _Front:
    """The place in a partition where a group continues to read.

    Args:
        begin: the offset.
        end: the offset of the partition's end.
        first_ms: the timestamp of the first record there; None until one was read.
        unreadable: why the first record cannot be read.
        is_known: whether the other fields are final.
    """

    begin: int
    end: int = 0
    first_ms: int | None = None
    unreadable: str = ""
    is_known: bool = False

    @property
    def records(self) -> int:
        """The number of offsets to read; 0 if only markers of transactions are left."""
        nothing = self.first_ms is None and not self.unreadable
        return 0 if nothing else max(0, self.end - self.begin)

    @property
    def age_s(self) -> float:
        """The age of the first record in seconds; 0 without one, or if its time is unknown."""
        return 0.0 if self.first_ms is None else max(0.0, time.time() - self.first_ms / 1000)


def _read_fronts(
    settings: Settings, begins: Mapping[TopicPartition, int]
) -> dict[TopicPartition, _Front]:
    """Read the first record and the end of each partition.

    The records are fetched, because the embedded broker gives wrong answers to other requests.
    """
    fronts = {partition: _Front(begin) for partition, begin in begins.items()}
    reader = make_reader(settings)
    try:
        reader.assign(list(begins))
        for partition, offset in begins.items():
            reader.seek(partition, offset)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not all(front.is_known for front in fronts.values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the topics could not be read within {READ_TIMEOUT_S:.0f} s")
            _read_on(reader, fronts)
    finally:
        close_quietly(reader)
    return fronts


def _read_on(reader: KafkaConsumer, fronts: Mapping[TopicPartition, _Front]) -> None:
    try:
        for partition, records in reader.poll(timeout_ms=200).items():
            if fronts[partition].first_ms is None:
                fronts[partition].first_ms = records[0].timestamp
    except UnreadablePartitionError as error:
        front = fronts[error.partition]
        if front.first_ms is None:
            front.unreadable = str(error)
        front.is_known = True
        reader.pause(error.partition)
    for partition, front in fronts.items():
        end = reader.highwater(partition)
        if end is not None:
            front.end = end
            # Records behind an open transaction are not delivered; see `topics.check_transactions`.
            readable = readable_end(reader, partition)
            front.is_known |= front.first_ms is not None or reader.position(partition) >= readable
