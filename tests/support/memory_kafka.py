"""A Kafka cluster in memory, to test the engine's logic without a broker.

The clients here behave like those of kafka-python, as far as the engine uses them. The producer has
even the private parts that `settle_outbox.kafka.internals.producer` uses. The tests in
`tests/integration` and `tests/faults` show how a real broker behaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count, cycle, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError
from kafka.future import Future
from kafka.structs import MemberState
from uuid_utils.compat import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from kafka import OffsetAndMetadata
    from kafka.errors import KafkaError

    from support.clock import Clock

_UNKNOWN_TOPIC = 3
# The number of records of one partition that a producer sends at once.
BATCH_RECORDS = 2

Headers = list[tuple[str, bytes]]


class Failure(NamedTuple):
    """The reason why a batch is not acknowledged.

    Args:
        error: The error that the producer reports.
        is_stored: Whether the broker stored the batch, and only its answer was lost.
    """

    error: KafkaError
    is_stored: bool = False


@dataclass
class Topic:
    """A topic.

    Args:
        partitions: The records of each partition.
        id: The id of this topic. A topic that is created again has another id.
    """

    partitions: list[list[ConsumerRecord]]
    id: UUID = field(default_factory=uuid4)


@dataclass
class Group:
    """A consumer group with at most one real member. Other members hold partitions, and do nothing.

    Args:
        committed: The committed offsets.
        generation: A number that increases with each rebalance.
        taken: The partitions of the other members.
    """

    committed: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)
    generation: int = 0
    taken: set[TopicPartition] = field(default_factory=set)

    def rebalance(self, *, taken: Collection[TopicPartition] = ()) -> None:
        """Give these partitions to other members, and all others to the real member."""
        self.generation += 1
        self.taken = set(taken)


class Cluster:
    """The cluster, with one broker.

    Args:
        clock: Advances while a consumer waits for records.
        partitions: The number of partitions of each topic.

    Attributes:
        connections: The connections of the producers.
        consumers: All consumers that were created.
        is_down: Whether the broker is unreachable.
        answer: Called for each produced batch, with its number from 1 and its values. It returns
            a failure, or None.
        unsendable: The values that cannot be made into a record.
        when_idle: Called when a consumer polls and finds nothing.
    """

    def __init__(self, clock: Clock, partitions: int = 2) -> None:
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.connections: list[Connection] = []
        self.consumers: list[Consumer] = []
        self.is_down = False
        self.answer: Callable[[int, list[bytes]], Failure | None] = lambda _number, _values: None
        self.unsendable: set[bytes] = set()
        self.when_idle: Callable[[], None] = lambda: None
        self.clock = clock
        self._partitions = partitions
        self._batches = count(1)

    def create_topic(self, name: str) -> None:
        """Create a topic, or replace it by a new one."""
        self.topics[name] = Topic([[] for _ in range(self._partitions)])

    def group(self, name: str) -> Group:
        """Return a group, and create it if needed."""
        return self.groups.setdefault(name, Group())

    def append(
        self, topic: str, value: bytes, *, key: bytes = b"key", headers: Headers, partition: int
    ) -> None:
        """Store a record."""
        log = self.topics[topic].partitions[partition]
        record = ConsumerRecord(
            topic=topic,
            partition=partition,
            leader_epoch=0,
            offset=len(log),
            timestamp=0,
            timestamp_type=0,
            key=key,
            value=value,
            headers=headers,
            checksum=None,
            serialized_key_size=len(key),
            serialized_value_size=len(value),
            serialized_header_size=-1,
        )
        log.append(record)

    def records(self, topic: str) -> list[ConsumerRecord]:
        """Return the records of a topic, one partition after the other."""
        return [record for log in self.topics[topic].partitions for record in log]

    def cut_connections(self) -> None:
        """End the connections of all producers."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.close_future.success(None)

    def check_up(self) -> None:
        """Raise the error of a client that reaches no broker, if the broker is down."""
        if self.is_down:
            raise KafkaConnectionError("no broker can be reached")

    def produce(self, place: TopicPartition, batch: list[_Unsent]) -> KafkaError | None:
        """Store a batch, and return the error if it is not acknowledged, or None."""
        if self.is_down:
            return KafkaConnectionError("no broker can be reached")
        failure = self.answer(next(self._batches), [unsent.value for unsent in batch])
        if failure is None or failure.is_stored:
            for unsent in batch:
                self.append(
                    place.topic,
                    unsent.value,
                    key=unsent.key,
                    headers=unsent.headers,
                    partition=place.partition,
                )
        return failure and failure.error

    def partition_of(self, topic: str, key: bytes) -> int:
        """Return the partition of a key."""
        return crc32(key) % len(self.topics[topic].partitions)


# The producer


class _Unsent(NamedTuple):
    value: bytes
    key: bytes
    headers: Headers
    future: Future


class Connection:
    """A producer's connection to the broker."""

    def __init__(self) -> None:
        self.close_future = Future()


class _SendingThread:
    """Sends batches when `flush` is called. It is not a thread.

    Like kafka-python's thread, it continues with the next batch after a failure, until it is
    stopped.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._is_stopped = False
        connection = Connection()
        cluster.connections.append(connection)
        manager = SimpleNamespace(
            _conns={0: connection},
            cluster=SimpleNamespace(is_bootstrap=lambda _node: False),
            get_connection=lambda _node: connection,
        )
        self._client = SimpleNamespace(_manager=manager)

    def force_close(self) -> None:
        self._is_stopped = True

    def join(self, timeout_s: float) -> None:
        """Do nothing, because no request is in flight."""

    def is_alive(self) -> bool:
        return False

    def send(self, waiting: dict[TopicPartition, list[_Unsent]]) -> None:
        """Send all waiting records: a batch of each partition in turn."""
        partitions = cycle(list(waiting))
        while any(waiting.values()):
            place = next(partitions)
            batch, waiting[place] = waiting[place][:BATCH_RECORDS], waiting[place][BATCH_RECORDS:]
            if not batch:
                continue
            error = self._send_batch(place, batch)
            for unsent in batch:
                if error is None:
                    unsent.future.success(None)
                else:
                    unsent.future.failure(error)

    def _send_batch(self, place: TopicPartition, batch: list[_Unsent]) -> KafkaError | None:
        if self._is_stopped:
            return IllegalStateError("the producer is closed forcefully")
        return self._cluster.produce(place, batch)


class Producer:
    """A stand-in for KafkaProducer."""

    def __init__(self, cluster: Cluster) -> None:
        cluster.check_up()
        self._cluster = cluster
        self._sender = _SendingThread(cluster)
        self._waiting: dict[TopicPartition, list[_Unsent]] = {}

    def send(self, topic: str, *, value: bytes, key: bytes, headers: Headers) -> Future:
        if value in self._cluster.unsendable:
            raise ValueError("the value cannot be made into a record")
        place = TopicPartition(topic, self._cluster.partition_of(topic, key))
        future = Future()
        self._waiting.setdefault(place, []).append(_Unsent(value, key, headers, future))
        return future

    def flush(self, **_options: Any) -> None:
        self._sender.send(self._waiting)

    def close(self, timeout: float) -> None:
        """Do nothing, because no request is in flight."""


# The consumer


class Consumer:
    """A stand-in for a KafkaConsumer in a group."""

    def __init__(self, cluster: Cluster, group_id: str) -> None:
        cluster.check_up()
        cluster.consumers.append(self)
        self._cluster = cluster
        self._group = cluster.group(group_id)
        self._generation = -1
        self._topics: list[str] = []
        self._listener: Any = None
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def subscribe(self, topics: list[str], *, listener: Any) -> None:
        self._topics, self._listener = topics, listener

    def poll(
        self, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        self._cluster.check_up()
        if self._generation != self._group.generation:
            self._join()
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        for place in sorted(self.assignment() - self._paused):
            begin = self._positions[place]
            left = max_records - sum(map(len, found.values()))
            if records := list(islice(self._log(place), begin, begin + left)):
                found[place] = records
                self._positions[place] = records[-1].offset + 1
        if not found:
            self._cluster.when_idle()
            self._cluster.clock.advance(timeout_ms / 1000)
        return found

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def paused(self) -> set[TopicPartition]:
        return set(self._paused)

    def pause(self, place: TopicPartition) -> None:
        self._check_assigned(place)
        self._paused.add(place)

    def resume(self, place: TopicPartition) -> None:
        self._check_assigned(place)
        self._paused.discard(place)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self._check_assigned(place)
        self._positions[place] = offset

    def seek_to_beginning(self, *places: TopicPartition) -> None:
        for place in places:
            self.seek(place, 0)

    def position(self, place: TopicPartition) -> int:
        return self._positions[place]

    def highwater(self, place: TopicPartition) -> int:
        return len(self._log(place))

    def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata], **_options: Any) -> None:
        self._cluster.check_up()
        if self._generation != self._group.generation:
            raise CommitFailedError
        self._group.committed |= offsets

    def group_metadata(self) -> SimpleNamespace:
        is_member = self._generation == self._group.generation
        return SimpleNamespace(state=MemberState.STABLE if is_member else MemberState.UNJOINED)

    def close(self, **_options: Any) -> None:
        self._group.generation += 1

    def _join(self) -> None:
        """Take the partitions that no other member has, at their offsets and not paused."""
        self._listener.on_partitions_revoked(self.assignment())
        self._generation = self._group.generation
        self._paused = set()
        self._positions = {}
        for topic in self._topics:
            for number, log in enumerate(self._cluster.topics[topic].partitions):
                place = TopicPartition(topic, number)
                if place in self._group.taken:
                    continue
                known = self._group.committed.get(place)
                offset = known.offset if known is not None else 0
                self._positions[place] = offset if offset <= len(log) else 0
        self._listener.on_partitions_assigned(self.assignment())

    def _log(self, place: TopicPartition) -> list[ConsumerRecord]:
        return self._cluster.topics[place.topic].partitions[place.partition]

    def _check_assigned(self, place: TopicPartition) -> None:
        if place not in self._positions:
            raise IllegalStateError(f"{place} is not assigned")


class Admin:
    """A stand-in for KafkaAdminClient."""

    def __init__(self, cluster: Cluster) -> None:
        cluster.check_up()
        self._cluster = cluster

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        self._cluster.check_up()
        found = self._cluster.topics
        return [
            {
                "name": name,
                "error_code": 0 if name in found else _UNKNOWN_TOPIC,
                "topic_id": found[name].id if name in found else None,
                "partitions": found[name].partitions if name in found else [],
            }
            for name in names
        ]

    def create_topics(self, topics: dict[str, Any], **_options: Any) -> None:
        self._cluster.check_up()
        for name in topics:
            self._cluster.create_topic(name)

    def wait_for_topics(self, names: list[str]) -> None:
        """Do nothing, because topics exist at once."""

    def describe_cluster(self) -> dict[str, str]:
        self._cluster.check_up()
        return {"cluster_id": "in-memory"}

    def describe_configs(self, *_: Any, **_options: Any) -> dict[str, Any]:
        return {}  # the engine needs no value

    def list_group_offsets(
        self, asked: dict[str, list[TopicPartition]]
    ) -> dict[str, dict[TopicPartition, OffsetAndMetadata]]:
        self._cluster.check_up()
        return {
            group: {
                place: offset
                for place, offset in self._cluster.group(group).committed.items()
                if place in places
            }
            for group, places in asked.items()
        }

    def close(self) -> None:
        """Do nothing, because there is no connection."""
