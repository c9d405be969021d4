"""Check the consumer group of a service: its members and its lag."""

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
    from collections.abc import Collection, Iterator, Mapping

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


def check_lag(
    admin: KafkaAdminClient, service: Service, settings: Settings, partitions: list[TopicPartition]
) -> Iterator[Finding]:
    """Check how many records the group has not read, and how long the first has waited."""
    name = f"{service.name} lag"
    fronts = _read_fronts(settings, _find_fronts(admin, settings, partitions))
    unreadable = [front.unreadable for front in fronts if front.unreadable]
    records = sum(front.records for front in fronts)
    lost = sum(front.lost for front in fronts)
    oldest_s = max(front.age_s for front in fronts)
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
    elif any(front.is_ahead for front in fronts):
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


def _find_fronts(
    admin: KafkaAdminClient, settings: Settings, partitions: list[TopicPartition]
) -> dict[TopicPartition, _Front]:
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
    return {
        partition: _Front(starts[partition], committed.get(partition)) for partition in partitions
    }


@dataclass(slots=True)
class _Front:
    """The place in a partition where a group continues to read.

    Args:
        start: the offset of the partition's oldest record.
        committed: the offset that the group has committed, or None.
        end: the offset of the partition's end.
        first_ms: the timestamp of the record at which the group continues; None until it is known.
        unreadable: why this record cannot be read; empty if it can.
        is_known: whether the other fields are final.
    """

    start: int
    committed: int | None
    end: int = 0
    first_ms: int | None = None
    unreadable: str = ""
    is_known: bool = False

    @property
    def begin(self) -> int:
        """The offset at which the group continues."""
        return max(self.start, self.committed or 0)

    @property
    def lost(self) -> int:
        """The number of records that were deleted before the group read them."""
        return 0 if self.committed is None else max(0, self.start - self.committed)

    @property
    def is_ahead(self) -> bool:
        """Whether the committed offset is beyond the partition's end."""
        return (self.committed or 0) > self.end

    @property
    def records(self) -> int:
        """The number of offsets to read; 0 if only markers of transactions are left."""
        nothing = self.first_ms is None and not self.unreadable
        return 0 if nothing else max(0, self.end - self.begin)

    @property
    def age_s(self) -> float:
        """The age of the first record in seconds; 0 without one, or if its time is unknown."""
        return 0.0 if self.first_ms is None else max(0.0, time.time() - self.first_ms / 1000)


def _read_fronts(settings: Settings, fronts: Mapping[TopicPartition, _Front]) -> Collection[_Front]:
    """Read the first record and the end of each partition.

    Both come from a fetch, because the embedded broker gives wrong answers to other requests.
    """
    reader = make_reader(settings)
    try:
        reader.assign(list(fronts))
        for partition, front in fronts.items():
            reader.seek(partition, front.begin)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not all(front.is_known for front in fronts.values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the topics could not be read within {READ_TIMEOUT_S:.0f} s")
            _read_on(reader, fronts)
    finally:
        close_quietly(reader)
    return fronts.values()


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
