"""Find the record that kills the consumer's process, and go on without it.

A handler, or the code that reads a record's data, may kill the process: by `os._exit`, by a
segmentation fault, or by so much memory that the kernel kills it. The next owner of the partition
gets the same records and dies, too. How this ends:

1. The database has a row for each partition that a consumer holds (``inbox_owners``). The consumer
   writes the row before it applies the first records of the partition. It deletes the row when it
   gives the partition up (at a rebalance, or when it stops), but not in careful mode.
2. So if a row is already there, an owner died. The new owner is in careful mode: it applies the
   records of this partition in small groups. Before each group, it writes into the row which
   records are in hand.
3. If this process dies, the records in hand are suspects, and the next owner applies each of them
   alone. After `DEATHS_LIMIT` deaths in a row with the same single record in hand, the next owner
   makes the record a dead letter without reading its data.
4. Careful mode ends after as many offsets as the dead process can have had in one batch.

A death outside careful mode counts against no record. Outside careful mode, the only cost is a few
short transactions at each assignment. A process that was frozen looks dead, so the next owner is
careful without need.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from kafka import TopicPartition
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.consume.applier import APPLY_MAX_S
from settle_outbox.consume.dead_letters import fingerprint
from settle_outbox.consume.failures import ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import TextClause
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.consume.applier import Applier
    from settle_outbox.consume.paused_partitions import Pause

log = structlog.get_logger(__name__)

# Deaths in a row with a single record in hand, after which it becomes a dead letter.
DEATHS_LIMIT = 3
# Maximum number of records in a group. Careful mode takes little time: a batch of 500 is 25 groups,
# and after a death in a group, at most 20 records are applied alone.
GROUP_LIMIT = 20

_PARTITIONS = """
    unnest(CAST(:topics AS text[]), CAST(:partitions AS integer[])) AS wanted (topic, partition)
"""

# If there are records `in_hand`, the last owner died with them, and they become the suspects. If
# they were not yet the suspects, the count of deaths starts at 1.
_TAKE_OVER = text(
    f"""
    UPDATE inbox_owners AS held SET
        owner = :owner,
        suspects = coalesce(in_hand, suspects),
        deaths = CASE
            WHEN in_hand IS NULL THEN deaths
            WHEN in_hand = suspects THEN deaths + 1
            ELSE 1
        END,
        in_hand = NULL
    FROM {_PARTITIONS}
    WHERE held.topic = wanted.topic AND held.partition = wanted.partition
    RETURNING held.topic, held.partition, held.suspects, held.deaths
    """  # noqa: S608 - our own text
)

_CLAIM = text(
    f"""
    INSERT INTO inbox_owners (topic, partition, owner)
    SELECT topic, partition, :owner FROM {_PARTITIONS}
    ON CONFLICT (topic, partition) DO NOTHING
    """  # noqa: S608 - our own text
)

# In these statements, the owner is a condition: a process that was frozen must not change the row
# of the next owner.
_SET_IN_HAND = text(
    """
    UPDATE inbox_owners SET in_hand = CAST(:in_hand AS bytea[])
    WHERE topic = :topic AND partition = :partition AND owner = :owner
    """
)

_RELEASE = text(
    f"""
    DELETE FROM inbox_owners AS held USING {_PARTITIONS}
    WHERE held.topic = wanted.topic AND held.partition = wanted.partition AND owner = :owner
    """  # noqa: S608 - our own text
)


@dataclass(frozen=True, slots=True)
class _Careful:
    """What the consumer knows about a partition whose last owner died.

    Args:
        until: the offset at which careful mode ends.
        suspects: the fingerprints of the records with which an owner died, or empty if unknown.
        deaths: number of deaths in a row with these records.
    """

    until: int
    suspects: list[bytes]
    deaths: int


class CarefulApplier:
    """Applies records, and keeps in the database which partitions this consumer holds.

    Args:
        applier: applies the records.
        sessions: makes sessions of the service's database.
        batch_limit: maximum number of records in the batch of a consumer of this service.
    """

    def __init__(
        self, applier: Applier, sessions: sessionmaker[Session], *, batch_limit: int
    ) -> None:
        self._applier = applier
        self._sessions = sessions
        self._batch_limit = batch_limit
        self._owner = uuid4()
        self._held: set[TopicPartition] = set()
        self._careful: dict[TopicPartition, _Careful] = {}

    def apply(
        self,
        batch: Mapping[TopicPartition, Sequence[ConsumerRecord]],
        end_of: Callable[[TopicPartition], int | None],
    ) -> dict[TopicPartition, Pause]:
        """Apply the records of a batch; see `Applier.apply`.

        Args:
            batch: the records of each partition, at least one.
            end_of: returns the end offset of a partition, if it is known.
        """
        deadline = time.monotonic() + APPLY_MAX_S
        if new := batch.keys() - self._held:
            self._claim({partition: batch[partition][0].offset for partition in new}, end_of)
        careful = batch.keys() & self._careful.keys()
        pauses: dict[TopicPartition, Pause] = {}
        for partition in careful:
            pauses |= self._apply_carefully(partition, batch[partition], deadline)
        others = [
            record
            for partition, records in batch.items()
            if partition not in careful
            for record in records
        ]
        return pauses | self._applier.apply(others, deadline)

    def release(self) -> None:
        """Give up all partitions. A partition in careful mode keeps its row for the next owner."""
        finished = self._held - self._careful.keys()
        self._held = set()
        self._careful = {}
        if not finished:
            return
        try:
            self._execute(_RELEASE, _arrays(finished))
        except SQLAlchemyError as error:
            # The next owner is careful without need.
            log.debug("consumer.release_failed", error=str(error))

    def _claim(
        self, first_offsets: Mapping[TopicPartition, int], end_of: Callable[..., int | None]
    ) -> None:
        """Record this process as the owner of partitions. If an owner died, start careful mode."""
        parameters = _arrays(first_offsets) | {"owner": self._owner}
        with self._sessions.begin() as session:
            left_behind = session.execute(_TAKE_OVER, parameters).all()
            session.execute(_CLAIM, parameters)
        self._held |= first_offsets.keys()
        for row in left_behind:
            partition = TopicPartition(row.topic, row.partition)
            until = first_offsets[partition] + self._batch_limit
            end = end_of(partition)
            suspects = [bytes(suspect) for suspect in row.suspects or ()]
            self._careful[partition] = _Careful(
                until if end is None else min(until, end), suspects, row.deaths
            )
            log.warning(
                "consumer.careful_started",
                topic=row.topic,
                partition=row.partition,
                offset=first_offsets[partition],
                deaths=row.deaths,
            )

    def _apply_carefully(
        self, partition: TopicPartition, records: Sequence[ConsumerRecord], deadline: float
    ) -> dict[TopicPartition, Pause]:
        careful = self._careful[partition]
        try:
            for group in _groups(records, careful.suspects):
                pauses = self._apply_group(careful, group, deadline)
                if pauses:
                    return pauses
        finally:
            self._set_in_hand(partition, None)
        if records[-1].offset + 1 >= careful.until:
            del self._careful[partition]
            log.info("consumer.careful_ended", topic=partition.topic, partition=partition.partition)
        return {}

    def _apply_group(
        self, careful: _Careful, group: Sequence[ConsumerRecord], deadline: float
    ) -> dict[TopicPartition, Pause]:
        in_hand = [fingerprint(record) for record in group]
        if len(group) == 1 and in_hand == careful.suspects and careful.deaths >= DEATHS_LIMIT:
            return self._applier.give_up(group[0], ProcessDiedError(careful.deaths))
        self._set_in_hand(TopicPartition(group[0].topic, group[0].partition), in_hand)
        return self._applier.apply(group, deadline)

    def _set_in_hand(self, partition: TopicPartition, in_hand: list[bytes] | None) -> None:
        self._execute(
            _SET_IN_HAND,
            {"topic": partition.topic, "partition": partition.partition, "in_hand": in_hand},
        )

    def _execute(self, statement: TextClause, parameters: Mapping[str, object]) -> None:
        with self._sessions.begin() as session:
            session.execute(statement, {**parameters, "owner": self._owner})


def _groups(
    records: Sequence[ConsumerRecord], suspects: Collection[bytes]
) -> Iterator[list[ConsumerRecord]]:
    """Split records into groups, in their order. A suspect is a group of one."""
    group: list[ConsumerRecord] = []
    for record in records:
        is_suspect = fingerprint(record) in suspects
        if group and (is_suspect or len(group) == GROUP_LIMIT):
            yield group
            group = []
        group.append(record)
        if is_suspect:
            yield group
            group = []
    if group:
        yield group


def _arrays(partitions: Collection[TopicPartition]) -> dict[str, object]:
    ordered = sorted(partitions)
    return {
        "topics": [partition.topic for partition in ordered],
        "partitions": [partition.partition for partition in ordered],
    }
