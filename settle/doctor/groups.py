"""The consumer groups: whether somebody is in them, and how far behind they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka.admin import OffsetSpec

from settle.doctor.check import UNTOLD, duration, fail, graded, ok, warn
from settle.doctor.delivery import LATE_FAIL_S, LATE_WARN_S
from settle_outbox.kafka.clients import make_reader
from settle_outbox.kafka.internals.consumer import readable_end
from settle_outbox.kafka.internals.unreadable import UnreadablePartitionError
from settle_outbox.kafka.topics import close_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

    from settle.doctor.check import Check
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

LAG_WARN_RECORDS = 10_000
READ_TIMEOUT_S = 5.0


def check_members(admin: KafkaAdminClient, service: Service, settings: Settings) -> Iterator[Check]:
    """Whether a consumer is in the group."""
    name = f"{service.name} consumers"
    group = settings.consumer_group
    state = _state(admin, group)
    start = f"inbox-consumer run {service.name}; settle logs {service.name}-consumer"
    if state is None:
        yield fail(name, f"none has ever joined the group {group}", start)
    elif state in {"Empty", "Dead"}:
        yield fail(name, f"none is in the group {group}", start)
    elif state == "Stable":
        yield ok(name, f"in the group {group}, which is stable")
    elif state == "Unknown":
        yield ok(name, UNTOLD)
    else:
        yield warn(
            name,
            f"the group {group} is rebalancing ({state})",
            "ask again in a moment; if it lasts, consumers come and go: see their logs",
        )


def _state(admin: KafkaAdminClient, group: str) -> str | None:
    states = {group["group_id"]: group["group_state"] for group in admin.list_groups()}
    return states.get(group)


@dataclass(frozen=True, slots=True)
class _Unread:
    """What a group has still to read of a partition.

    Args:
        records: how many.
        lost: how many are gone that it has not read.
        age_s: of the first, by its timestamp; 0 when there is none.
        is_ahead: whether what it has committed is beyond the end.
        unreadable: why the first cannot be read; empty when it can.
    """

    records: int
    lost: int
    age_s: float
    is_ahead: bool
    unreadable: str


def check_lag(
    admin: KafkaAdminClient, service: Service, settings: Settings, where: list[TopicPartition]
) -> Iterator[Check]:
    """How many records the group has still to read, and for how long the first has waited."""
    name = f"{service.name} lag"
    unread = _unread(admin, settings, where)
    unreadable = [each.unreadable for each in unread if each.unreadable]
    records = sum(each.records for each in unread)
    lost = sum(each.lost for each in unread)
    oldest_s = max(each.age_s for each in unread)
    late = f"{records} records, the first for {duration(oldest_s)}"
    if unreadable:
        yield fail(
            name,
            f"{late}; {'; '.join(unreadable)}",
            "the consumer keeps a corrupt batch as a dead letter and goes on; a codec that is"
            " missing, install; for what the broker refuses, see its log",
        )
    elif lost:
        yield fail(
            name,
            f"{lost} records are gone that were never read",
            f"outbox-relay replay on the publishing side; {_topics(service)} keep too little",
        )
    elif any(each.is_ahead for each in unread):
        yield warn(
            name,
            "offsets are beyond the end: a topic was made anew",
            "nothing: the consumer notices it and joins anew",
        )
    elif records > LAG_WARN_RECORDS and oldest_s <= LATE_FAIL_S:
        yield warn(name, late, "start another consumer, up to one for each partition")
    else:
        yield graded(
            name,
            oldest_s,
            late if records else "none",
            f"see that a consumer runs (settle logs {service.name}-consumer); if it does, start "
            "another one, up to one for each partition",
            warn_over=LATE_WARN_S,
            fail_over=LATE_FAIL_S,
        )


def _topics(service: Service) -> str:
    return ", ".join(service.consumed_topics)


def _unread(
    admin: KafkaAdminClient, settings: Settings, where: list[TopicPartition]
) -> list[_Unread]:
    starts = {
        place: told.offset
        for place, told in admin.list_partition_offsets(
            dict.fromkeys(where, OffsetSpec.EARLIEST)
        ).items()
    }
    committed: dict[TopicPartition, int] = {}
    group = settings.consumer_group
    if _state(admin, group) is not None:
        told = admin.list_group_offsets(group).get(group, {})
        committed = {place: each.offset for place, each in told.items() if each.offset >= 0}
    begins = {place: max(starts[place], committed.get(place, 0)) for place in where}
    fronts = _read_fronts(settings, begins)
    return [
        _Unread(
            records=fronts[place].records,
            lost=max(0, starts[place] - committed.get(place, starts[place])),
            age_s=fronts[place].age_s,
            is_ahead=committed.get(place, 0) > fronts[place].end,
            unreadable=fronts[place].unreadable,
        )
        for place in where
    ]


@dataclass(slots=True)
class _Front:
    """Where a group goes on to read a partition.

    Args:
        begin: the offset.
        end: of the partition.
        first_ms: the timestamp of the first record there; None while none was seen.
        unreadable: why the first cannot be read.
        is_known: whether all of this is.
    """

    begin: int
    end: int = 0
    first_ms: int | None = None
    unreadable: str = ""
    is_known: bool = False

    @property
    def records(self) -> int:
        """Return how many offsets are to be read; markers of transactions alone count as none."""
        nothing = self.first_ms is None and not self.unreadable
        return 0 if nothing else max(0, self.end - self.begin)

    @property
    def age_s(self) -> float:
        """Return for how long the first has waited; 0 when none is there, or its time unknown."""
        return 0.0 if self.first_ms is None else max(0.0, time.time() - self.first_ms / 1000)


def _read_fronts(
    settings: Settings, begins: Mapping[TopicPartition, int]
) -> dict[TopicPartition, _Front]:
    """Read what comes first in each partition, and where each ends.

    Read, not asked for: of the embedded broker, only what comes with records is right.
    """
    fronts = {place: _Front(begin) for place, begin in begins.items()}
    reader = make_reader(settings)
    try:
        reader.assign(list(begins))
        for place, offset in begins.items():
            reader.seek(place, offset)
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
        for place, records in reader.poll(timeout_ms=200).items():
            if fronts[place].first_ms is None:
                fronts[place].first_ms = records[0].timestamp
    except UnreadablePartitionError as error:
        front = fronts[error.partition]
        if front.first_ms is None:
            front.unreadable = str(error)
        front.is_known = True
        reader.pause(error.partition)
    for place, front in fronts.items():
        end = reader.highwater(place)
        if end is not None:
            front.end = end
            # What is behind an open transaction is not given; the check of the topic tells of it.
            readable = readable_end(reader, place)
            front.is_known |= front.first_ms is not None or reader.position(place) >= readable
